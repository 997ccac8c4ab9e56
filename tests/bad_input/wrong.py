"""What the tests of bad input share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info

from tests.conftest import Said

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


def save(path: Path, nodes: list[Any], shape: list[Any], *, out: list[Any] | None = None) -> Path:
    graph = make_graph(
        nodes, "g", [make_tensor_value_info("x", F32, shape)], [make_tensor_value_info("y", F32, out or shape)]
    )
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path
