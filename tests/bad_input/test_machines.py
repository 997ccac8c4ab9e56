"""Machines, tiers, strategies, budgets and time limits that cannot be: one clear error, the right status each."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx.helper import make_node

from tests.bad_input.wrong import BUDGET, refused, save
from tests.conftest import Cli
from tests.models import write_mlp

pytestmark = pytest.mark.usefixtures("no_measuring")


def profile(**changes: str) -> str:
    values = {"capacity_nbytes": '"1GiB"', "bytes_per_s": "1e9", "flops": "1e11", "origin": '"ssd"', **changes}
    return f"""
name = "mine"
[[tiers]]
name = "dram"
kind = "dram"
capacity_nbytes = {values["capacity_nbytes"]}
[[tiers]]
name = "ssd"
kind = "ssd"
capacity_nbytes = "1TiB"
[[links]]
origin = {values["origin"]}
target = "dram"
bytes_per_s = {values["bytes_per_s"]}
[[links]]
origin = "dram"
target = "ssd"
bytes_per_s = 1e9
[[units]]
name = "cpu"
tier = "dram"
flops_per_s = {{ float32 = {values["flops"]} }}
bytes_per_s = 1e10
"""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bytes_per_s": "nan"}, ["ssd->dram", "bytes_per_s", "nan"]),
        ({"bytes_per_s": "inf"}, ["bytes_per_s", "inf"]),
        ({"flops": "nan"}, ["float32", "nan"]),
        ({"flops": "-1.0"}, ["float32", "-1"]),
        ({"capacity_nbytes": "0"}, ["capacity_nbytes", "0"]),
        ({"capacity_nbytes": '"lots"'}, ["capacity_nbytes", "lots"]),
        ({"origin": '"tape"'}, ["'tape'", "dram, ssd"]),
        ({"origin": "7"}, ["origin", "str"]),
    ],
)
def test_a_machine_file_that_is_wrong(
    cli: Cli, model: Path, tmp_path: Path, changes: dict[str, str], words: list[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(profile(**changes))
    refused(cli("plan", model, "--machine", path), "mine.toml", *words)
    refused(cli("machine", "show", path), "mine.toml", *words)


def test_machines_that_are_not_there(cli: Cli, model: Path, tmp_path: Path) -> None:
    refused(cli("plan", model, "--machine", "rtx9999"), "rtx9999", "rtx4090", "FILE.toml")
    refused(cli("plan", model, "--machine", tmp_path / "no.toml"), "no.toml", "No such file")
    (tmp_path / "bad.toml").write_text("name = ")
    refused(cli("machine", "show", tmp_path / "bad.toml"), "bad.toml", "TOML")


@pytest.mark.parametrize("size", ["", "0", "-1", "many", "12QiB", "1.5", "0x10", "nan", "1e9", "1 2MiB"])
def test_sizes_that_are_none(cli: Cli, model: Path, size: str) -> None:
    refused(cli("plan", model, "--tier", f"dram={size}"), size or "dram=")
    if size:
        refused(cli("plan", model, "--process-limit", size), size)
        refused(cli("pack", model, "--capacity", size), size)


def test_tiers_and_strategies_that_are_not_there(cli: Cli, model: Path) -> None:
    refused(cli("plan", model, "--tier", "hbm=1GiB"), "'hbm'", "dram, ssd")
    refused(cli("plan", model, "--tier", "1GiB"), "1GiB", "NAME=SIZE")
    refused(cli("plan", model, "--tier", "dram=1GiB", "--tier", "dram=2GiB"), "dram", "twice")
    refused(cli("plan", model, "--strategy", "magic"), "'magic'", "stow", "belady")
    refused(cli("compare", model, "--strategies", "stow,magic"), "'magic'", "stow", "belady")
    refused(cli("compare", model, "--strategies", ","), "strategies")


def test_usage_errors_are_one_json_object_too(cli: Cli, model: Path) -> None:
    for arguments in (["plan"], ["plan", model, "--nope"], ["frob"], ["run", model, "--repeat", "0"]):
        said = cli(*arguments, "--json")
        assert said.status == 2
        assert said.json["exit_status"] == 2
        assert said.err
    for limit in ("0", "-3", "nan", "soon"):
        assert cli("plan", model, "--time-limit", limit).status == 2


def test_an_error_is_one_json_object_too(cli: Cli, tmp_path: Path) -> None:
    said = cli("plan", tmp_path / "absent.onnx", "--json")
    assert said.status == 2
    assert said.json["exit_status"] == 2
    assert "absent.onnx" in said.json["error"]
    assert said.json["error"] in " ".join(said.err.split())


def test_a_budget_below_the_working_set(cli: Cli, tmp_path: Path) -> None:
    nodes = [make_node("Relu", ["x"], ["a"], name="first"), make_node("Add", ["a", "x"], ["y"], name="second")]
    model = save(tmp_path / "m.onnx", nodes, [1000, 1000])
    said = cli("plan", model, "--tier", "dram=5MB", "-o", tmp_path / "plan.json")
    refused(said, "needs", "dram", "smallest feasible budget", status=3)
    assert not (tmp_path / "plan.json").exists()
    said = cli("plan", model, "--tier", "dram=5MB", "--json")
    assert said.status == said.json["exit_status"] == 3
    smallest = said.json["smallest_nbytes"]
    assert f"--tier dram={smallest}" in said.json["error"]
    assert "4.8 MiB" in said.json["error"]
    assert cli("plan", model, "--tier", f"dram={smallest}").status == 0
    assert cli("plan", model, "--tier", f"dram={smallest - 8192}").status == 3


def test_the_smallest_budget_named_is_feasible_and_far_below_the_largest_weight(cli: Cli, tmp_path: Path) -> None:
    model = write_mlp(tmp_path / "wide.onnx", width=1024, layers=2)
    said = cli("plan", model, "--tier", "dram=2KiB", "--json")
    assert said.status == 3
    smallest = said.json["smallest_nbytes"]
    assert smallest < 1024 * 1024 * 4 // 4
    found = cli("plan", model, "--tier", f"dram={smallest}", "--json")
    assert found.status == 0, found.err
    assert found.json["peak_nbytes"]["dram"] <= smallest


def test_a_strategy_that_cannot_answer_says_why_in_its_row(cli: Cli, model: Path) -> None:
    said = cli("compare", model, "--tier", BUDGET, "--json")
    rows = {r["strategy"]: r for r in said.json["rows"]}
    assert rows["resident"]["status"] == "infeasible"
    assert rows["resident"]["simulated_s"] is None
    assert "KiB" in rows["resident"]["reason"] or "MiB" in rows["resident"]["reason"]
    assert cli("plan", model, "--tier", BUDGET, "--strategy", "resident").status == 3


def test_a_process_limit_below_the_fixed_part(cli: Cli, model: Path) -> None:
    refused(cli("plan", model, "--process-limit", "50MiB"), "100.0 MiB", "50.0 MiB", "--process-limit", status=3)
    refused(cli("plan", model, "--process-limit", 1 << 10), "bytes for the model", "raise --process-limit", status=3)
    tight = cli("plan", model, "--process-limit", (100 << 20) + (200 << 10), "--json")
    assert tight.status == 3
    assert "fixed part takes 100.0 MiB" in tight.json["error"]
    enough = tight.json["smallest_nbytes"]
    assert f"--process-limit {enough}" in tight.json["error"]
    assert cli("plan", model, "--process-limit", enough, "--json").json["promised_peak_nbytes"] <= enough
    refused(cli("plan", model, "--machine", "rtx4090", "--process-limit", "1GiB"), "rtx4090", "not this box")


def test_the_time_limit(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorstow.ir.errors import TimeLimitError
    from tensorstow.planner import build

    def late(*_: object, **__: object) -> None:
        raise TimeLimitError("the residency LP found no answer in 0.1 s; raise --time-limit")

    monkeypatch.setattr(build, "plan_graph", late)
    refused(cli("plan", model, "--tier", BUDGET, "--time-limit", "0.1"), "0.1 s", "--time-limit", status=4)
