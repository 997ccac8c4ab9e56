"""Forms in which models come: weights as inputs, sparse ones, functions, open dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.helper import (
    make_function,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_sparse_tensor,
    make_tensor_value_info,
)
from onnx.numpy_helper import from_array

from tensorstow.planner.onnx import lower_onnx

from .lowered_models import F32, check, floats, random, write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_old_models_whose_weights_are_inputs(tmp_path: Path, cache: Path) -> None:
    graph = make_graph(
        [make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "old",
        [floats("x", 2, 128), floats("w", 256, 128), floats("b", 256)],
        [floats("y", 2, 256)],
        [from_array(random(256, 128), "w"), from_array(random(256), "b")],
    )
    path = tmp_path / "old.onnx"
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 8)], ir_version=3).SerializeToString())
    lowered = check(path, {"x": random(2, 128)}, cache)
    assert lowered.graph.inputs == ("x",)


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_weights_become_dense(tmp_path: Path, cache: Path, coordinates: bool) -> None:
    at = np.array([[0, 0], [0, 5], [17, 20]]) if coordinates else np.array([0, 5, 700])
    sparse = make_sparse_tensor(from_array(random(3), "w"), from_array(at), [20, 40])
    path = write(tmp_path / "m.onnx", [make_node("MatMul", ["x", "w"], ["y"])], [floats("x", 3, 20)], ["y"], {})
    model = onnx.load(path)
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, path)
    check(path, {"x": random(3, 20)}, cache)


def test_functions_of_the_model_are_inlined(tmp_path: Path, cache: Path) -> None:
    body = [make_node("MatMul", ["a", "m"], ["p"]), make_node("Add", ["p", "p"], ["r"])]
    double = make_function("own", "Twice", ["a", "m"], ["r"], body, [make_opsetid("", 17)])
    path = write(
        tmp_path / "m.onnx",
        [make_node("Twice", ["x", "w"], ["y"], domain="own")],
        [floats("x", 2, 128)],
        ["y"],
        {"w": random(128, 256)},
        functions=[double],
        opsets=[make_opsetid("own", 1)],
    )
    lowered = check(path, {"x": random(2, 128)}, cache)
    assert lowered.program.blob["w"].path == str(path)


def test_dims_are_set_by_name_or_by_input_and_axis(tmp_path: Path, cache: Path) -> None:
    x = make_tensor_value_info("x", F32, ["batch", None, 4])
    path = write(tmp_path / "m.onnx", [make_node("Relu", ["x"], ["y"])], [x], ["y"], {})
    lowered = lower_onnx(path, dims={"batch": 2, "x.1": 3}, cache=cache)
    assert lowered.graph.tensor["y"].shape == (2, 3, 4)
