"""Tests of planner/onnx/bodies.py and uncounted.py: what a body computes and holds is counted, or told not to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.helper import make_graph, make_node, make_tensor_value_info
from onnx.numpy_helper import from_array

from tensorstow.ir.graph import Operator
from tensorstow.planner.onnx import Lowered, lower_onnx, uncounted

from .lowered_models import I64, floats, random, write

N = 64
PRODUCT = 2 * N**3
SQUARE = 4 * N * N


def _model(path: Path, nodes: list[Any], inputs: list[Any], weights: dict[str, Any] | None = None) -> Lowered:
    return lower_onnx(write(path, nodes, inputs, ["y"], weights or {}), cache=path.parent / "cache")


def _only(lowered: Lowered, kind: str) -> Operator:
    return next(op for op in lowered.graph.operators if op.op_type == kind)


def _loop_body(*, ends: bool = False) -> Any:
    """h = h w w, `ends` when the first element of h says so."""
    nodes = [make_node("MatMul", ["h", "w"], ["t"]), make_node("MatMul", ["t", "w"], ["u"])]
    if ends:
        nodes += [
            make_node("ReduceMax", ["u"], ["most"], keepdims=0),
            make_node("Cast", ["most"], ["going"], to=TensorProto.BOOL),
        ]
    else:
        nodes.append(make_node("Identity", ["on"], ["going"]))
    given = [
        make_tensor_value_info("i", I64, []),
        make_tensor_value_info("on", TensorProto.BOOL, []),
        floats("h", N, N),
    ]
    return make_graph(nodes, "body", given, [make_tensor_value_info("going", TensorProto.BOOL, []), floats("u", N, N)])


def _loop(path: Path, rounds: int | None, *, ends: bool = False) -> Lowered:
    inputs = [floats("x", N, N), floats("w", N, N)]
    weights: dict[str, Any] = {"yes": np.array(True)}
    if rounds is None:
        inputs.append(make_tensor_value_info("rounds", I64, []))
    else:
        weights["rounds"] = np.array(rounds)
    return _model(path, [make_node("Loop", ["rounds", "yes", "x"], ["y"], body=_loop_body(ends=ends))], inputs, weights)


def test_a_loop_counts_as_often_as_its_constant_says(tmp_path: Path) -> None:
    lowered = _loop(tmp_path / "m.onnx", 1000)
    op = _only(lowered, "Loop")
    assert 2000 * PRODUCT <= op.flops < 2001 * PRODUCT
    assert op.cost_class == "matmul"
    assert 2000 * 3 * SQUARE <= op.moved_nbytes < 2010 * 3 * SQUARE
    assert 2 * SQUARE <= op.workspace_nbytes <= 3 * SQUARE  # a product, the one before it, the round before
    assert uncounted(lowered.graph, lowered.program).loops == ()


def test_a_loop_whose_rounds_depend_on_data_counts_once_and_is_told(tmp_path: Path) -> None:
    for name, lowered in (
        ("given", _loop(tmp_path / "given.onnx", None)),
        ("ends", _loop(tmp_path / "ends.onnx", 1000, ends=True)),
        ("endless", _loop(tmp_path / "endless.onnx", (1 << 63) - 1)),
    ):
        op = _only(lowered, "Loop")
        assert 2 * PRODUCT <= op.flops < 3 * PRODUCT, name
        found = uncounted(lowered.graph, lowered.program)
        assert found.loops == (op.id,), name
        assert found.text is not None
        assert "1 loops count as one round" in found.text
        assert "--profile" in found.text


def test_an_if_counts_as_its_larger_branch(tmp_path: Path) -> None:
    small = make_graph([make_node("Neg", ["x"], ["o"])], "small", [], [floats("o", N, N)])
    large = make_graph(
        [make_node("MatMul", ["x", "k"], ["t"]), make_node("MatMul", ["t", "k"], ["o"])],
        "large",
        [],
        [floats("o", N, N)],
        [from_array(random(N, N), "k")],
    )
    inputs = [make_tensor_value_info("condition", TensorProto.BOOL, []), floats("x", N, N)]
    for then, other in ((small, large), (large, small)):
        node = make_node("If", ["condition"], ["y"], then_branch=then, else_branch=other)
        op = _only(_model(tmp_path / "m.onnx", [node], inputs), "If")
        assert (op.flops, op.cost_class) == (2 * PRODUCT, "matmul")
        assert SQUARE <= op.workspace_nbytes < 2 * SQUARE  # the first product; the second one is the result


def test_a_scan_counts_once_for_each_element(tmp_path: Path) -> None:
    body = make_graph(
        [make_node("MatMul", ["s", "w"], ["t"]), make_node("Add", ["t", "e"], ["n"]), make_node("Neg", ["n"], ["o"])],
        "body",
        [floats("s", 1, N), floats("e", 1, N)],
        [floats("n", 1, N), floats("o", 1, N)],
    )
    inputs = [floats("s0", 1, N), floats("xs", 7, 1, N), floats("w", N, N)]
    node = make_node("Scan", ["s0", "xs"], ["last", "y"], body=body, num_scan_inputs=1)
    lowered = _model(tmp_path / "m.onnx", [node], inputs)
    op = _only(lowered, "Scan")
    assert 7 * 2 * N * N < op.flops <= 7 * (2 * N * N + 2 * N)
    assert op.cost_class == "matvec"
    assert uncounted(lowered.graph, lowered.program).loops == ()


def test_bodies_within_bodies_are_multiplied(tmp_path: Path) -> None:
    inner = make_node("Loop", ["three", "", "h"], ["v"], body=_loop_body())
    given = [
        make_tensor_value_info("j", I64, []),
        make_tensor_value_info("go", TensorProto.BOOL, []),
        floats("h", N, N),
    ]
    results = [make_tensor_value_info("go_on", TensorProto.BOOL, []), floats("v", N, N)]
    three = [from_array(np.array(3), "three")]
    body = make_graph([inner, make_node("Identity", ["go"], ["go_on"])], "outer", given, results, three)
    node = make_node("Loop", ["five", "", "x"], ["y"], body=body)
    lowered = _model(tmp_path / "m.onnx", [node], [floats("x", N, N), floats("w", N, N)], {"five": np.array(5)})
    assert 30 * PRODUCT <= _only(lowered, "Loop").flops < 31 * PRODUCT
    assert uncounted(lowered.graph, lowered.program).loops == ()


def test_values_without_a_size_are_told(tmp_path: Path) -> None:
    nodes = [make_node("NonZero", ["x"], ["where"]), make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT)]
    lowered = _model(tmp_path / "m.onnx", nodes, [floats("x", 5)])
    found = uncounted(lowered.graph, lowered.program)
    assert found.values == ("where", "y")
    assert found.text is not None
    assert "2 results have no size before the run ('where' first)" in found.text
