"""What a user can do wrong with a model: one clear error that names the object and the numbers."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx.helper import make_node

from tests.bad_input.wrong import files_in, refused, save
from tests.conftest import Cli
from tests.models import write_cnn

pytestmark = pytest.mark.usefixtures("no_measuring")


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
