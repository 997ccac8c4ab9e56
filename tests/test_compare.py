"""`tensorstow compare`: what stands on stdout, in each format, and what the options refuse."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

import tensorstow as ts
from tensorstow import console
from tensorstow.planner.bounds import Bound
from tensorstow.planner.compare import DEFAULTS, Comparison, Row, chosen_names
from tensorstow.planner.strategies import strategy_names
from tensorstow.report_compare import CSV_COLUMNS, csv_of, print_comparison

from .conftest import Cli
from .models import write_mlp

BOX = ("--machine", "npu-2mib", "--tier", "sram=900KiB")
THREE = ("--strategies", "resident,belady,lru", "--workers", "0")
ROW_KEYS = {
    "strategy", "status", "simulated_s", "gap", "peak_nbytes", "moved_nbytes", "solve_s", "reason", "bound_s",
    "bound_kind", "own_gap", "best", "runs", "simulated_min_s", "simulated_median_s", "simulated_max_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "mlp.onnx"
    write_mlp(path, width=256, layers=6)
    return path


def test_the_json_object(cli: Cli, model: Path) -> None:
    said = cli("compare", model, *BOX, *THREE, "--json")
    assert said.status == 0
    assert said.err == ""
    facts = said.json
    assert set(facts) == {"bound_s", "bound_kind", "bounds", "best", "rows"}
    assert [r["strategy"] for r in facts["rows"]] == ["resident", "belady", "lru"]
    for row in facts["rows"]:
        assert set(row) == ROW_KEYS
    resident, belady, lru = facts["rows"]
    assert facts["best"] == "belady"
    assert [r["best"] for r in facts["rows"]] == [False, True, False]
    assert (resident["status"], belady["status"]) == ("infeasible", "feasible")
    assert resident["simulated_s"] is resident["gap"] is resident["bound_s"] is resident["peak_nbytes"] is None
    assert "give it --tier sram=" in resident["reason"]
    assert belady["gap"] == pytest.approx(belady["simulated_s"] / facts["bound_s"] - 1)
    assert belady["simulated_s"] < lru["simulated_s"]
    assert belady["moved_nbytes"]["dram->sram"] < lru["moved_nbytes"]["dram->sram"]
    assert [set(r) for r in lru["runs"]] == [{"seed", "status", "reason", "simulated_s", "solve_s"}]
    for bound in facts["bounds"]:
        assert set(bound) == {"name", "kind", "seconds", "nbytes"}
    assert {b["name"] for b in facts["bounds"]} == {
        "compute", "compute on any unit", "working set", "compulsory traffic", "whole operands", "residency LP",
    }  # fmt: skip


def test_workers_are_the_default(cli: Cli, model: Path) -> None:
    here = cli("compare", model, *BOX, *THREE, "--json").json
    there = cli("compare", model, *BOX, "--strategies", "resident,belady,lru", "--json").json
    for a, b in zip(here["rows"], there["rows"], strict=True):
        assert (a["simulated_s"], a["status"], a["reason"]) == (b["simulated_s"], b["status"], b["reason"])


def test_the_table(cli: Cli, model: Path) -> None:
    said = cli("compare", model, *BOX, *THREE)
    assert said.status == 0
    lines = said.out.splitlines()
    assert lines[0].split() == ["strategy", "status", "pass", "gap", "peak", "sram", "moved", "solved", "in"]
    assert [line.split()[0] for line in lines[1:4]] == ["belady", "lru", "resident"]
    assert lines[1].split()[1] == "*"
    assert sum("*" in line for line in lines[:4]) == 1
    assert lines[4].startswith("gap: above the bound of ")
    assert any(line.startswith("bound ") and "compulsory traffic: any order" in line for line in lines)
    assert lines[-1].startswith("resident: all of 'mlp' takes ")


def test_a_reason_is_a_line_or_two(capsys: pytest.CaptureFixture[str]) -> None:
    long = "it did not work;\n" + " because of this" * 200
    rows = tuple(
        Row(name, None, "crashed", reason, 1.0) for name, reason in (("a", long), ("b", "short"), ("c", "short"))
    )
    print_comparison(Comparison(Bound(1.0, "none"), rows), ts.Machine.load("npu-2mib"))
    lines = capsys.readouterr().out.splitlines()
    said = lines[next(i for i, line in enumerate(lines) if line.startswith("a: ")) :]
    assert said[-1] == "b, c: short"
    assert len(said) <= 4
    assert max(map(len, said)) <= console.WIDTH
    assert " ".join(said[:-1]).endswith("...")
    assert " because of this" * 100 in csv_of(Comparison(Bound(1.0, "none"), rows), ts.Machine.load("npu-2mib"))


def test_what_is_compared_by_default() -> None:
    assert chosen_names(None, "inference")[0] == chosen_names(None, "training")[0] == "stow"
    for mode, names in DEFAULTS.items():
        assert set(names) < set(strategy_names())
        assert chosen_names(None, mode) == names
    assert chosen_names("all", "inference") == strategy_names()
    assert chosen_names(" lru ,stow", "training") == ("lru", "stow")
    with pytest.raises(ts.InputError, match="--strategies ', ' names none; give 'all', or some of: stow, "):
        chosen_names(", ", "training")


def test_markdown_is_the_table_alone(cli: Cli, model: Path) -> None:
    said = cli("compare", model, *BOX, *THREE, "--markdown")
    assert said.status == 0
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in said.out.splitlines()]
    assert cells[0] == ["strategy", "status", "pass", "gap", "peak sram", "moved", "solved in"]
    assert cells[1] == ["---", "---", *["---:"] * 5]
    assert [row[0] for row in cells[2:]] == ["belady *", "lru", "resident"]
    assert cells[4][1:6] == ["infeasible", "-", "-", "-", "-"]
    assert {len(row) for row in cells} == {7}
    assert "gap: above the bound of" in said.err
    assert "resident: all of" in said.err


def test_csv_is_the_table_alone(cli: Cli, model: Path, tmp_path: Path) -> None:
    said = cli("compare", model, *BOX, *THREE, "--csv", "-")
    assert said.status == 0
    assert said.out.splitlines()[0] == ",".join(CSV_COLUMNS)
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [r["strategy"] for r in rows] == ["belady", "lru", "resident"]
    assert [r["best"] for r in rows] == ["yes", "no", "no"]
    facts = {r["strategy"]: r for r in cli("compare", model, *BOX, *THREE, "--json").json["rows"]}
    assert float(rows[0]["simulated_s"]) == facts["belady"]["simulated_s"]
    assert int(rows[1]["moved_nbytes"]) == sum(facts["lru"]["moved_nbytes"].values())
    assert int(rows[1]["peak_nbytes"]) == facts["lru"]["peak_nbytes"]["sram"]
    assert rows[2]["simulated_s"] == rows[2]["gap"] == rows[2]["own_bound_s"] == ""
    assert rows[2]["reason"] == facts["resident"]["reason"]
    path = tmp_path / "rows.csv"
    both = cli("compare", model, *BOX, *THREE, "--csv", path)
    assert both.out.startswith("strategy ")
    assert [r["strategy"] for r in csv.DictReader(path.open())] == ["belady", "lru", "resident"]


def test_repeated_runs(cli: Cli, model: Path) -> None:
    listed = ("--strategies", "lru", "--workers", "0", "--json")
    (row,) = cli("compare", model, *BOX, *listed, "--repeat", 2, "--seed", 5).json["rows"]
    assert [r["seed"] for r in row["runs"]] == [5, 6]
    assert row["simulated_min_s"] == row["simulated_median_s"] == row["simulated_max_s"] == row["simulated_s"]
    (row,) = cli("compare", model, *BOX, *listed, "--seeds", "3,9,4").json["rows"]
    assert [r["seed"] for r in row["runs"]] == [3, 9, 4]
    said = cli("compare", model, *BOX, "--strategies", "lru", "--workers", "0", "--repeat", 2)
    assert "min / median / max" in said.out.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1,2", "--repeat", "2"], "both say how often"),
        (["--seeds", "1,x"], "--seeds 1,x: write whole numbers"),
        (["--seeds", "1,1"], "different ones"),
        (["--strategies", "lru,lru"], "different ones"),
        (["--strategies", "lru,magic"], "no strategy is called 'magic'"),
        (["--limit", "lru"], "--limit lru: write it as NAME="),
        (["--limit", "lru=soon"], "--limit lru=soon: write seconds"),
        (["--limit", "lru=-1"], "time limit of strategy 'lru' is -1 s"),
        (["--limit", "magic=3"], "given for strategy 'magic'"),
        (["--workers", "0", "--memory-limit", "1GiB"], "memory limit needs workers"),
        (["--memory-limit", "lots"], "'lots' is not a size"),
        (["--json", "--markdown"], "each want stdout"),
        (["--markdown", "--csv", "-"], "each want stdout"),
        (["--csv", "/nowhere/at/all.csv"], "there is no folder"),
    ],
)
def test_options_that_cannot_be(cli: Cli, model: Path, options: list[str], message: str) -> None:
    said = cli("compare", model, *BOX, *options)
    assert said.status == 2
    assert message in " ".join(said.err.split())


def test_a_budget_below_every_strategy(cli: Cli, model: Path) -> None:
    said = cli("compare", model, "--machine", "npu-2mib", "--tier", "sram=2KiB", *THREE, "--json")
    assert said.status == said.json["exit_status"] == 3
    smallest = said.json["smallest_nbytes"]
    assert f"--tier sram={smallest}" in said.json["error"]
    assert cli("compare", model, "--machine", "npu-2mib", "--tier", f"sram={smallest}", *THREE).status == 0


def test_the_api(model: Path) -> None:
    machine = ts.Machine.load("npu-2mib", sram="900KiB")
    comparison = ts.compare(
        model, machine=machine, strategies=("lru", "belady"), seeds=(1, 2), time_limits={"lru": 2.0}
    )
    assert [r.strategy for r in comparison.rows] == ["lru", "belady"]
    assert [len(r.runs) for r in comparison.rows] == [2, 2]
    assert comparison.best is comparison.rows[1]
