"""Forms of models: outputs, branches, loops, dimensions, types of elements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from tests.end_to_end.subject import (
    F32,
    I64,
    Subject,
    check_at_budgets,
)


def small(
    path: Path,
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, Any]],
    outputs: Mapping[str, tuple[int, Any]],
    tensors: list[Any] | None = None,
) -> Path:
    given, made = ([make_tensor_value_info(n, t, s) for n, (t, s) in v.items()] for v in (inputs, outputs))
    graph = make_graph(nodes, path.stem, given, made, tensors or [])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), path)
    return path


def test_several_outputs_some_of_them_used_on(tmp_path: Path) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((64, 64), np.float32), "w")
    nodes = [
        make_node("MatMul", ["x", "w"], ["a"]),
        make_node("Split", ["a"], ["b", "c"], axis=1),
        make_node("Tanh", ["b"], ["d"]),
        make_node("TopK", ["c", "k"], ["values", "indices"], axis=1),
        make_node("Identity", ["x"], ["same"]),
    ]
    outputs = {"a": (F32, [4, 64]), "d": (F32, [4, 32]), "values": (F32, [4, 3]), "indices": (I64, [4, 3])}
    path = small(
        tmp_path / "m.onnx",
        nodes,
        {"x": (F32, [4, 64])},
        {**outputs, "same": (F32, [4, 64])},
        [w, from_array(np.array([3]), "k")],
    )
    check_at_budgets(Subject(path))


def test_optional_inputs_that_are_left_out(tmp_path: Path) -> None:
    nodes = [
        make_node("Clip", ["x", "", "high"], ["a"]),
        make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest"),
        make_node("Pad", ["b", "pads", "", "axes"], ["y"]),
    ]
    tensors = [
        from_array(np.array(0.5, np.float32), "high"),
        from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        from_array(np.array([1, 2]), "pads"),
        from_array(np.array([3]), "axes"),
    ]
    graph = make_graph(
        nodes,
        "optional",
        [make_tensor_value_info("x", F32, [1, 2, 8, 8])],
        [make_tensor_value_info("y", F32, [1, 2, 16, 19])],
        tensors,
    )
    path = tmp_path / "m.onnx"
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=8), path)
    check_at_budgets(Subject(path))


@pytest.mark.parametrize("flag", [True, False])
def test_branches(tmp_path: Path, flag: bool) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((32, 32), np.float32), "w")
    branches = {
        name: make_graph(
            [make_node("MatMul", ["a", "w"], ["t"]), make_node(op, ["t"], [name])],
            name,
            [],
            [make_tensor_value_info(name, F32, [2, 32])],
        )
        for name, op in (("yes", "Tanh"), ("no", "Neg"))
    }
    nodes = [
        make_node("Relu", ["x"], ["a"]),
        make_node("If", ["flag"], ["b"], then_branch=branches["yes"], else_branch=branches["no"]),
        make_node("Add", ["b", "a"], ["y"]),
    ]
    inputs = {"x": (F32, [2, 32]), "flag": (TensorProto.BOOL, [])}
    path = small(tmp_path / "m.onnx", nodes, inputs, {"y": (F32, [2, 32])}, [w])
    x = np.random.default_rng(1).standard_normal((2, 32), np.float32)
    check_at_budgets(Subject(path, inputs={"x": x, "flag": np.array(flag)}))


def test_a_loop(tmp_path: Path) -> None:
    body = make_graph(
        [
            make_node("Identity", ["go"], ["go_on"]),
            make_node("MatMul", ["state", "w"], ["t"]),
            make_node("Tanh", ["t"], ["state_out"]),
        ],
        "body",
        [
            make_tensor_value_info("i", I64, []),
            make_tensor_value_info("go", TensorProto.BOOL, []),
            make_tensor_value_info("state", F32, [2, 32]),
        ],
        [make_tensor_value_info("go_on", TensorProto.BOOL, []), make_tensor_value_info("state_out", F32, [2, 32])],
    )
    nodes = [
        make_node("Relu", ["x"], ["a"]),
        make_node("Loop", ["times", "", "a"], ["b"], body=body),
        make_node("Neg", ["b"], ["y"]),
    ]
    w = from_array(np.random.default_rng(0).standard_normal((32, 32), np.float32), "w")
    times = from_array(np.array(5), "times")
    path = small(tmp_path / "m.onnx", nodes, {"x": (F32, [2, 32])}, {"y": (F32, [2, 32])}, [w, times])
    check_at_budgets(Subject(path))


def test_dimensions_that_are_set(tmp_path: Path) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((64, 512), np.float32), "w")
    nodes = [make_node("MatMul", ["x", "w"], ["a"]), make_node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0)]
    inputs = {"x": (F32, ["batch", "time", 64])}
    path = small(tmp_path / "m.onnx", nodes, inputs, {"y": (F32, ["batch", 512])}, [w])
    one, more = (Subject(path, dims={"batch": batch, "time": steps}) for batch, steps in ((1, 1), (3, 5)))
    assert one.exact["y"].shape == (1, 512)
    assert more.exact["y"].shape == (3, 512)
    one.check_close()
    check_at_budgets(more)


@pytest.mark.parametrize("op", ["Relu", "Identity", None])
def test_models_of_one_operator_or_none(tmp_path: Path, op: str | None) -> None:
    nodes = [] if op is None else [make_node(op, ["x"], ["y"])]
    name = "x" if op is None else "y"
    path = small(tmp_path / "m.onnx", nodes, {"x": (F32, [3, 5])}, {name: (F32, [3, 5])})
    subject = Subject(path)
    subject.check_close()
    subject.check_exact(subject.plan(max(subject.peak, 4096)))


def test_a_weight_that_is_an_output(tmp_path: Path) -> None:
    w = from_array(np.random.default_rng(0).standard_normal((128, 128), np.float32), "w")
    nodes = [make_node("MatMul", ["x", "w"], ["y"]), make_node("Identity", ["w"], ["copy"])]
    outputs = {"y": (F32, [1, 128]), "copy": (F32, [128, 128])}
    check_at_budgets(Subject(small(tmp_path / "m.onnx", nodes, {"x": (F32, [1, 128])}, outputs, [w])))


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    nodes = [make_node("Concat", ["x", "none"], ["y"], axis=0), make_node("ReduceSum", ["x"], ["sum"], keepdims=0)]
    none = from_array(np.zeros((0, 4), np.float32), "none")
    outputs = {"y": (F32, [2, 4]), "sum": (F32, [])}
    check_at_budgets(Subject(small(tmp_path / "m.onnx", nodes, {"x": (F32, [2, 4])}, outputs, [none])))


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.BOOL])
def test_other_types_of_elements(tmp_path: Path, dtype: int) -> None:
    nodes = [make_node("Transpose", ["x"], ["a"], perm=[1, 0]), make_node("Concat", ["a", "a"], ["y"], axis=1)]
    path = small(tmp_path / "m.onnx", nodes, {"x": (dtype, [6, 4])}, {"y": (dtype, [4, 12])})
    check_at_budgets(Subject(path))
