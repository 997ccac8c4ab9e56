"""What a user can do wrong, or a disk: one clear error that names the object and the numbers, the right status each,
and no file left half-written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from tensorstow.ir.files import read_plan, write_plan
from tests.conftest import Cli, Said
from tests.models import write_cnn, write_mlp

pytestmark = pytest.mark.usefixtures("no_measuring")

F32 = TensorProto.FLOAT
BUDGET = "dram=600KiB"  # of 4 matrices of 256 KiB


def refused(said: Said, *words: str, status: int = 2) -> None:
    """One error line with these words, no trace of Python, nothing on stdout."""
    assert said.status == status, said
    assert said.out == ""
    assert said.err.count("error:") == 1, said.err
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    for word in words:
        assert word in said.err, f"{word!r} is not in: {said.err}"


def files_in(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [2, 256] through four matrices of 256 KiB."""
    return write_mlp(tmp_path_factory.mktemp("model") / "mlp.onnx", width=256, layers=4, rows=2)


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    for path in model.parent.iterdir():
        shutil.copy2(path, tmp_path / path.name)
    return tmp_path / model.name


@pytest.fixture
def planned(copied: Path, cli: Cli) -> Path:
    """A plan for the copy."""
    path = copied.with_name("plan.json")
    said = cli("plan", copied, "--tier", BUDGET, "-o", path)
    assert said.status == 0, said.err
    return path


def save(path: Path, nodes: list[Any], shape: list[Any], *, out: list[Any] | None = None) -> Path:
    graph = make_graph(
        nodes, "g", [make_tensor_value_info("x", F32, shape)], [make_tensor_value_info("y", F32, out or shape)]
    )
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


# Models


@pytest.mark.parametrize("command", ["plan", "compare"])
def test_a_model_that_is_not_there(cli: Cli, tmp_path: Path, command: str) -> None:
    refused(cli(command, tmp_path / "absent.onnx"), "absent.onnx", "No such file")
    refused(cli(command, tmp_path), str(tmp_path), "directory")


@pytest.mark.parametrize("content", [b"", b"text, not a model", bytes(range(256)) * 16])
def test_a_model_that_is_none(cli: Cli, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    before = files_in(tmp_path)
    refused(cli("plan", path, "-o", tmp_path / "plan.json"), str(path), "ONNX")
    assert files_in(tmp_path) == before


def test_a_truncated_model(cli: Cli, tmp_path: Path) -> None:
    path = write_cnn(tmp_path / "cnn.onnx")
    os.truncate(path, path.stat().st_size // 2)
    refused(cli("plan", path), "cnn.onnx")


def test_an_operator_that_nobody_knows(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [make_node("Frobnicate", ["x"], ["y"])], [2])
    refused(cli("plan", path), "Frobnicate", "m.onnx")


def test_external_data_that_is_missing_short_or_elsewhere(cli: Cli, copied: Path) -> None:
    data = copied.with_name(copied.name + ".data")
    os.truncate(data, data.stat().st_size - 1)
    refused(cli("plan", copied), data.name, str(data.stat().st_size), "truncated")
    data.unlink()
    refused(cli("plan", copied), data.name, "missing")
    proto = onnx.load(str(copied), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../etc/passwd"
    copied.write_bytes(proto.SerializeToString())
    refused(cli("plan", copied), "../../etc/passwd", "leaves the model's folder")


def test_symbolic_dimensions(cli: Cli, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [make_node("Relu", ["x"], ["y"])], ["batch", "time", 4])
    refused(cli("plan", path), "batch", "time", "--dim batch=N --dim time=N")
    refused(cli("plan", path, "--dim", "batch=2"), "time", "--dim time=N")
    refused(cli("plan", path, "--dim", "batch=2", "--dim", "time=3", "--dim", "nope=1"), "'nope'", "'batch', 'time'")
    for wrong in ("batch", "batch=", "=3", "batch=x", "batch=-1", "batch=1.5", "batch=٣"):
        refused(cli("plan", path, "--dim", wrong), wrong)
    refused(cli("plan", path, "--dim", "batch=2", "--dim", "batch=3", "--dim", "time=1"), "batch", "twice")


def test_what_an_onnx_file_cannot_do(cli: Cli, model: Path) -> None:
    refused(cli("plan", model, "--mode", "training"), "training", "ONNX", "inference")
    refused(cli("plan", model, "--mode", "dreaming"), "dreaming", "inference")
    refused(cli("compare", model, "--mode", "training"), "training")


# Machines, tiers, strategies


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


# Budgets and time


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


# Plans and runs


def test_weights_that_changed_after_planning(cli: Cli, copied: Path, planned: Path) -> None:
    data = copied.with_name(copied.name + ".data")
    assert cli("run", planned, "--repeat", 1).status == 0
    stat = data.stat()
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    refused(cli("run", planned), data.name, "changed after planning", "plan again")
    with data.open("r+b") as file:
        file.write(b"\1\2\3\4")
    refused(cli("run", planned), data.name, "changed after planning")
    os.truncate(data, 100)
    refused(cli("run", planned), data.name, "100")
    data.unlink()
    refused(cli("run", planned), data.name)


def test_a_model_that_moved(cli: Cli, copied: Path, planned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in copied.parent.glob("mlp.onnx*"):
        path.rename(folder / path.name)
    refused(cli("run", planned), "mlp.onnx", "--model")
    said = cli("run", planned, "--model", folder / copied.name, "--verify", "--repeat", 1, "--json")
    assert said.status == 0, said.err
    assert said.json["verified"]["bit_identical"]
    refused(cli("run", planned, "--model", tmp_path / "nowhere.onnx"), "nowhere.onnx")
    other = write_mlp(tmp_path / "other.onnx", width=128, layers=4, rows=2)
    refused(cli("run", planned, "--model", other), "other.onnx", "not the model that was planned")


def test_another_model_of_the_same_form(cli: Cli, planned: Path, tmp_path: Path) -> None:
    """Only the file's content differs: the plan runs, with the weights it is given."""
    other = write_mlp(tmp_path / "other.onnx", width=256, layers=4, rows=2, seed=5)
    said = cli("run", planned, "--model", other, "--verify", "--repeat", 1, "--json")
    assert said.status == 0, said.err
    assert said.json["verified"]["bit_identical"]
    assert said.json["verified"]["within_tolerance"]


def test_a_plan_for_another_machine_or_box(cli: Cli, model: Path, planned: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    assert cli("plan", model, "--machine", "jetson-orin", "-o", path).status == 0
    refused(cli("run", path), "jetson-orin", "not this box", "--machine host")
    assert cli("show", path).status == 0
    from dataclasses import replace

    from tensorstow.ir.codec import digest

    file = read_plan(planned)
    box = replace(file.machine, fingerprint="0" * 64)
    write_plan(replace(file, machine=box, plan=replace(file.plan, machine=digest(box))), path)
    refused(cli("run", path), "0000000000", "not this box")


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_plan_that_was_edited_by_hand(cli: Cli, planned: Path) -> None:
    def smaller(document: Any) -> None:
        document["body"]["plan"]["residencies"][0]["offset"] += 64

    edit(planned, smaller)
    for command in ("run", "show"):
        refused(cli(command, planned), "plan.json", "changed after it was written", "plan the model again")


def test_a_plan_whose_digest_was_made_anew(cli: Cli, planned: Path) -> None:
    """Who forges the digest too is caught by the checker."""
    from dataclasses import replace

    file = read_plan(planned)
    moved = tuple(replace(r, offset=0) for r in file.plan.residencies)
    write_plan(replace(file, plan=replace(file.plan, residencies=moved)), planned)
    refused(cli("run", planned), "plan.json", "share addresses", "plan the model again")
    said = cli("show", planned)
    assert said.status == 0
    assert "violation" in said.out


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"schema": "tensorstow-plan/99"}', "\0\1", "NaN"])
def test_what_is_no_plan(cli: Cli, tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    for command in ("run", "show"):
        refused(cli(command, path), str(path))


def test_a_plan_that_is_truncated_missing_or_a_model(cli: Cli, planned: Path, copied: Path, tmp_path: Path) -> None:
    os.truncate(planned, planned.stat().st_size // 2)
    for command in ("run", "show"):
        refused(cli(command, planned), "plan.json", "not a JSON file")
        refused(cli(command, tmp_path / "absent.json"), "absent.json", "No such file")
        refused(cli(command, tmp_path), str(tmp_path), "directory")
        refused(cli(command, copied), "mlp.onnx")


X = np.zeros((2, 256), np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["misses", "'x'"]),
        ({"z": X}, ["misses", "'x'"]),
        ({"x": X, "z": X}, ["does not know", "'z'"]),
        ({"x": X[:1]}, ["'x'", "[2, 256]", "[1, 256]"]),
        ({"x": X.reshape(-1)}, ["'x'", "[2, 256]", "[512]"]),
        ({"x": X.astype(np.float64)}, ["'x'", "float32", "float64"]),
        ({"x": np.full((2, 256), "a")}, ["'x'", "float32"]),
    ],
    ids=["none", "other", "extra", "rows", "rank", "float64", "strings"],
)
def test_inputs_that_do_not_fit(
    cli: Cli, planned: Path, tmp_path: Path, arrays: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    out = tmp_path / "out.npz"
    refused(cli("run", planned, "--input", path, "-o", out), *words)
    assert not out.exists()


def test_inputs_that_are_no_npz(cli: Cli, planned: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    refused(cli("run", planned, "--input", path), "in.npz", "No such file")
    path.write_bytes(b"no archive")
    refused(cli("run", planned, "--input", path), "in.npz")
    path.write_bytes(b"PK\3\4 and then nothing")
    refused(cli("run", planned, "--input", path), "in.npz")
    path.write_bytes(b"")
    refused(cli("run", planned, "--input", path), "in.npz")
    np.save(tmp_path / "in.npy", X)
    refused(cli("run", planned, "--input", tmp_path / "in.npy"), "in.npy", ".npz")
    path.write_bytes(pickle.dumps({"x": X}))
    refused(cli("run", planned, "--input", path), "in.npz")
    np.savez(path, x=np.array([print, None], object))
    refused(cli("run", planned, "--input", path), "in.npz", "pickle")
    np.savez(path, x=X)
    os.truncate(path, path.stat().st_size // 2)
    refused(cli("run", planned, "--input", path), "in.npz")


@pytest.mark.parametrize("fault", ["error", "short"])
def test_a_disk_that_fails_in_the_middle_of_a_run(
    cli: Cli, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    assert cli("run", planned, "--repeat", 1).status == 0
    read = os.preadv

    def faulty(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if threading.current_thread() is threading.main_thread():
            return read(descriptor, buffers, offset)
        if fault == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return 0

    out = tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", faulty)
        said = cli("run", planned, "-o", out)
    refused(said, "weights.bin", "Input/output error" if fault == "error" else "gives no more bytes", "wanted")
    assert not out.exists()
    assert cli("run", planned, "--repeat", 1).status == 0


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="no way to make a place unwritable")
@pytest.mark.parametrize("place", ["missing/plan.json", "folder", "file/plan.json"])
def test_outputs_that_cannot_be_written(cli: Cli, planned: Path, copied: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = files_in(tmp_path)
    where = tmp_path / place
    (tmp_path / "buffers.csv").write_text("id,lower,upper,size\na,0,2,4\n")
    before.add("buffers.csv")
    refused(cli("plan", copied, "--tier", BUDGET, "-o", where), "cannot write", str(where))
    refused(cli("run", planned, "-o", where), "cannot write", str(where))
    refused(cli("pack", tmp_path / "buffers.csv", "-o", where), "cannot write", str(where))
    assert files_in(tmp_path) == before


def test_a_disk_that_is_full_while_repacking(planned: Path, cache: Path) -> None:
    """A process of its own: the limit on file sizes cannot be taken back."""
    code = """
import resource, sys
from tensorstow.cli import run_cli
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.exit(run_cli(["run", sys.argv[1]]))
"""
    stores = cache / "stores"
    before = files_in(stores) if stores.exists() else set[str]()
    done = subprocess.run(
        [sys.executable, "-c", code, str(planned)], capture_output=True, text=True, check=False, timeout=60
    )
    refused(Said(done.returncode, done.stdout, done.stderr), "bytes", "TENSORSTOW_CACHE")
    left = {f for f in files_in(stores) - before if not f.endswith(".lock")}
    assert left == set()


# Buffers to pack


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["id,lower,upper,size"]),
        ("id,lower,size\n", ["upper"]),
        ("id,lower,upper,size\na,0,2\n", ["line 2", "size"]),
        ("id,lower,upper,size\na,0,x,4\n", ["line 2", "upper", "'x'"]),
        ("id,lower,upper,size\na,0,nan,4\n", ["line 2", "upper", "'nan'"]),
        ("id,lower,upper,size\na,3,3,4\n", ["line 2", "'a'", "[3, 3)"]),
        ("id,lower,upper,size\na,0,3,-4\n", ["line 2", "'a'", "-4"]),
        ("id,lower,upper,size\na,0,3,4\na,0,3,4\n", ["'a'", "names two"]),
    ],
)
def test_buffers_that_are_none(cli: Cli, tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "buffers.csv"
    path.write_text(content)
    refused(cli("pack", path, "-o", tmp_path / "out.csv"), "buffers.csv", *words)
    assert not (tmp_path / "out.csv").exists()
    path.write_bytes(b"\xff\xfe\0")
    refused(cli("pack", path), "buffers.csv")
    refused(cli("pack", tmp_path / "absent.csv"), "absent.csv", "No such file")
