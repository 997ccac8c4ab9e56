"""The contract of the command line and of the Python API: options, JSON keys, exit statuses, what people see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

import tensorstow as ts
from tensorstow.planner.compare import DEFAULTS
from tests.conftest import Cli
from tests.models import write_cnn, write_mlp
from tests.terminal import on_a_terminal

PLAN_KEYS = {
    *("graph", "strategy", "status", "simulated_s", "bound_s", "bound_kind", "gap", "peak_nbytes", "moved_nbytes"),
    *("fixed_nbytes", "promised_peak_nbytes", "solve_s", "plan"),
}
RUN_KEYS = {
    *("predicted_s", "measured_s", "median_s", "predicted_peak_nbytes", "arena_nbytes", "peak_rss_nbytes"),
    *("read_nbytes", "written_nbytes", "limit_s", "verified"),
}
ROW_KEYS = {"strategy", "status", "simulated_s", "gap", "peak_nbytes", "moved_nbytes", "solve_s"}
BASELINES = {"resident", "on-demand", "lru", "belady", "belady-prefetch"}

Array = NDArray[Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [2, 256] through six matrices of 256 KiB."""
    return write_mlp(tmp_path_factory.mktemp("model") / "mlp.onnx", width=256, layers=6, rows=2)


@pytest.fixture
def plan(cli: Cli, model: Path, tmp_path: Path, no_measuring: int) -> Path:
    """A plan with which weights move."""
    assert no_measuring
    path = tmp_path / "plan.json"
    assert cli("plan", model, "--tier", "dram=900KiB", "-o", path).status == 0
    return path


def test_every_command_and_option_exists(cli: Cli) -> None:
    contract = {
        "plan": "--machine --tier --dim --mode --strategy --profile --time-limit --process-limit -o --json",
        "run": "--model --input --repeat --verify --json",
        "compare": "--machine --tier --dim --mode --profile --time-limit --strategies --json",
        "show": "--html --trace --json",
        "machine": "list show calibrate",
        "machine list": "--json",
        "machine show": "--json",
        "machine calibrate": "-o --json",
        "pack": "--capacity --time-limit -o --json",
    }
    for command, options in contract.items():
        said = cli(*command.split(), "--help")
        assert said.status == 0
        for option in options.split():
            assert option in said.out, f"{command} {option}"
    assert cli("--version").out == f"tensorstow {ts.__version__}\n"


def test_help_comes_at_once() -> None:
    """No solver, engine or torch is loaded to print it."""
    code = "import sys; from tensorstow.cli import run_cli; run_cli(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    loaded = done.stdout.splitlines()[-1]
    for name in ("torch", "onnx", "onnxruntime", "ortools", "highspy", "pulp"):
        assert f"'{name}'" not in loaded


def test_plan_json(cli: Cli, model: Path, tmp_path: Path, no_measuring: int) -> None:
    path = tmp_path / "plan.json"
    said = cli("plan", model, "--tier", "dram=900KiB", "-o", path, "--json")
    assert said.status == 0
    assert said.err == ""
    facts = said.json
    assert set(facts) >= PLAN_KEYS
    assert set(facts["graph"]) >= {"ops", "tensors", "nbytes"}
    assert facts["plan"] == str(path)
    assert facts["strategy"].startswith("stow")
    assert facts["status"] in {"optimal", "feasible"}
    assert facts["peak_nbytes"]["dram"] <= 900 << 10
    assert facts["simulated_s"] >= facts["bound_s"] > 0
    assert facts["gap"] == pytest.approx(facts["simulated_s"] / facts["bound_s"] - 1)
    assert facts["moved_nbytes"]["ssd->dram"] > 0
    assert facts["fixed_nbytes"] == no_measuring
    assert facts["promised_peak_nbytes"] == no_measuring + facts["peak_nbytes"]["dram"]
    assert cli("plan", model, "--tier", "dram=900KiB", "--json").json["plan"] is None


def test_equal_plans_give_equal_files(cli: Cli, model: Path, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    for name in ("a.json", "b.json"):
        assert cli("plan", model, "--tier", "dram=900KiB", "--strategy", "belady", "-o", tmp_path / name).status == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_run_json(cli: Cli, plan: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    out = tmp_path / "out.npz"
    said = cli("run", plan, "--input", tmp_path / "in.npz", "-o", out, "--repeat", 3, "--verify", "--json")
    assert said.status == 0, said.err
    assert said.err == ""
    facts = said.json
    assert set(facts) >= RUN_KEYS
    assert len(facts["measured_s"]) == 3
    assert facts["median_s"] == sorted(facts["measured_s"])[1]
    assert set(facts["limit_s"]) == {"compute", "io"}
    assert facts["read_nbytes"] > 0
    assert facts["written_nbytes"] == 0
    assert facts["predicted_peak_nbytes"]["dram"] <= 900 << 10
    assert facts["arena_nbytes"]["dram"] <= 900 << 10
    verified = facts["verified"]
    assert set(verified) >= {"bit_identical", "max_abs_err", "reference"}
    assert verified["bit_identical"] is True
    assert verified["within_tolerance"] is True
    assert 0 <= verified["max_abs_err"] < 1e-3
    with np.load(out) as arrays:
        assert arrays["y"].shape == (2, 256)
    assert cli("run", plan, "--repeat", 1, "--json").json["verified"] is None


def test_a_run_whose_bits_differ_is_our_fault(cli: Cli, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorstow import verify

    exact = verify._unconstrained  # pyright: ignore[reportPrivateUsage]

    def other(*arguments: Any, **options: Any) -> dict[str, Array]:
        return {n: np.nextafter(a, np.float32(9e9)) for n, a in exact(*arguments, **options).items()}

    monkeypatch.setattr(verify, "_unconstrained", other)
    said = cli("run", plan, "--repeat", 1, "--verify", "--json")
    assert said.status == 1
    assert said.json["verified"]["bit_identical"] is False
    said = cli("run", plan, "--repeat", 1, "--verify")
    assert said.status == 1
    assert "BITS DIFFER" in said.out


def test_compare_json(cli: Cli, model: Path) -> None:
    names = ",".join(sorted({*DEFAULTS["inference"], *BASELINES}))
    said = cli("compare", model, "--tier", "dram=900KiB", "--strategies", names, "--json")
    assert said.status == 0
    assert said.err == ""
    assert set(said.json) >= {"bound_s", "rows"}
    rows: dict[str, Any] = {r["strategy"]: r for r in said.json["rows"]}
    assert set(rows) >= BASELINES | {"stow"}
    for row in rows.values():
        assert set(row) >= ROW_KEYS
    answered = [r for r in rows.values() if r["simulated_s"] is not None]
    assert all(r["simulated_s"] >= said.json["bound_s"] * (1 - 1e-6) for r in answered)
    assert rows["stow"]["simulated_s"] == min(r["simulated_s"] for r in answered)
    usual = cli("compare", model, "--tier", "dram=900KiB", "--json").json
    assert [r["strategy"] for r in usual["rows"]] == list(DEFAULTS["inference"])
    two = cli("compare", model, "--tier", "dram=900KiB", "--strategies", "lru, belady", "--json").json
    assert [r["strategy"] for r in two["rows"]] == ["lru", "belady"]


def test_dimensions(cli: Cli, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    x, y = (make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8]) for n in "xy")
    graph = make_graph([make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "m.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    facts = cli("plan", path, "--dim", "batch=3", "-o", tmp_path / "plan.json", "--json").json
    assert facts["graph"]["nbytes"] == 2 * 3 * 8 * 4
    np.savez(tmp_path / "in.npz", x=np.full((3, 8), -1, np.float32))
    run = cli("run", tmp_path / "plan.json", "--input", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--verify")
    assert run.status == 0, run.err
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["y"], np.zeros((3, 8), np.float32))


def test_profile_measures_every_operator(cli: Cli, model: Path, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    path = tmp_path / "plan.json"
    assert cli("plan", model, "--tier", "dram=900KiB", "--profile", "-o", path).status == 0
    operators = json.loads(path.read_text())["body"]["graph"]["operators"]
    assert all(o["measured_ns"] > 0 for o in operators)
    said = cli("plan", model, "--machine", "npu-2mib", "--profile")
    assert said.status == 2
    assert "not this box" in said.err


def test_a_published_machine(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Plans for other machines can be made, shown and compared, and promise nothing of a process here."""
    path = tmp_path / "plan.json"
    facts = cli("plan", model, "--machine", "npu-2mib", "--tier", "sram=512KiB", "-o", path, "--json").json
    assert facts["peak_nbytes"]["sram"] <= 512 << 10
    assert facts["fixed_nbytes"] == 0
    assert "sram" in cli("show", path).out
    assert cli("compare", model, "--machine", "rtx4090", "--json").status == 0


def test_the_process_limit_holds(cli: Cli, tmp_path: Path) -> None:
    """By the high-water mark of a process of its own, with weights that are more than is left."""
    model = write_mlp(tmp_path / "mlp.onnx", width=1024, layers=8)
    roomy = cli("plan", model, "--tier", "dram=8MiB", "--strategy", "belady", "--json").json
    limit = roomy["promised_peak_nbytes"] + (4 << 20)
    path = tmp_path / "plan.json"
    said = cli("plan", model, "--process-limit", limit, "--strategy", "belady", "-o", path, "--json")
    facts = said.json
    assert facts["promised_peak_nbytes"] <= limit
    assert facts["peak_nbytes"]["dram"] > 8 << 20
    command = [sys.executable, "-m", "tensorstow", "run", str(path), "--json", "--repeat", "3"]
    peaks: list[int] = []
    for _ in range(2):  # the first builds the store
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        peaks.append(json.loads(done.stdout)["peak_rss_nbytes"])
    assert max(peaks) <= limit
    assert min(peaks) >= 0.95 * facts["promised_peak_nbytes"]


# What people see


@pytest.mark.parametrize("columns", ["80", "200"])
def test_what_is_shown_is_whole_and_fits(
    cli: Cli, plan: Path, model: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (
        ["plan", model, "--tier", "dram=900KiB"],
        ["show", plan],
        ["run", plan, "--repeat", 1],
        ["compare", model, "--tier", "dram=900KiB"],
        ["machine", "list"],
        ["machine", "show", "h100"],
    ):
        said = cli(*arguments)
        assert said.status == 0
        assert said.err == ""
        assert "\x1b" not in said.out, "no colours where no terminal is"
        assert "…" not in said.out, "nothing is cut off"
    assert "peak in dram" in cli("plan", model, "--tier", "dram=900KiB").out


def test_show(cli: Cli, plan: Path) -> None:
    said = cli("show", plan)
    for words in ("strategy stow", "nothing wrong", "memory of dram", "timeline", "compute", "largest tensors"):
        assert words in said.out


def test_show_as_json(cli: Cli, plan: Path, tmp_path: Path) -> None:
    facts = cli("show", plan, "--json").json
    assert facts["violations"] == []
    assert facts["gap"] == pytest.approx(facts["simulated_s"] / facts["bound_s"] - 1)
    assert facts["wait_s"] == pytest.approx(sum(w["wait_s"] for w in facts["waits"]))
    assert cli("show", plan, "--json", "--trace", tmp_path / "trace.json").json == facts
    assert (tmp_path / "trace.json").exists()


def test_a_pipe_that_closes_early(plan: Path) -> None:
    """`tensorstow show plan.json | head -1` says what was asked for and nothing else."""
    command = f"{sys.executable} -m tensorstow show {plan} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=300)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_no_color(plan: Path) -> None:
    """A terminal gets colours unless NO_COLOR is set."""
    command = [sys.executable, "-m", "tensorstow", "show", str(plan)]
    seen: dict[bool, bytes] = {}
    for plain in (False, True):
        seen[plain] = on_a_terminal(command, **({"NO_COLOR": "1"} if plain else {}))
    assert b"\x1b[" in seen[False]
    for colour in (b"\x1b[32m", b"\x1b[31m"):
        assert colour not in seen[True]


def test_a_convolutional_network_on_the_command_line(cli: Cli, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    model = write_cnn(tmp_path / "cnn.onnx")
    path = tmp_path / "plan.json"
    assert cli("plan", model, "--tier", "dram=1.5MiB", "-o", path).status == 0
    said = cli("run", path, "--verify", "--repeat", 2)
    assert said.status == 0
    assert "bits equal the unconstrained run" in said.out
