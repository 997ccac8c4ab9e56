"""Tests of runtime/drawing.py: operators that draw random numbers have generators and seeds of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx.helper import make_graph, make_node, make_tensor_value_info

from tensorstow.ir.operators import is_random
from tensorstow.planner.onnx import Lowered

from ..planner.lowered_models import floats, random, write
from .build import same_bits
from .lowered import executed, lowered_at, whole

SHAPE: dict[str, Any] = {"shape": [4], "dtype": 1}


def test_operators_of_equal_form_and_seed_draw_what_they_draw_in_the_whole_model(tmp_path: Path) -> None:
    nodes = [
        make_node("RandomNormal", [], ["a"], seed=1.0, **SHAPE),
        make_node("RandomNormal", [], ["b"], seed=1.0, **SHAPE),
        make_node("RandomUniformLike", ["x"], ["c"], seed=3.0),
        make_node("RandomUniformLike", ["x"], ["d"], seed=3.0),
        make_node("Multinomial", ["x"], ["e"], seed=2.0, sample_size=6),
        make_node("Multinomial", ["x"], ["f"], seed=2.0, sample_size=6),
    ]
    path = write(tmp_path / "m.onnx", nodes, [floats("x", 2, 3)], list("abcdef"), {})
    inputs = {"x": random(2, 3)}
    expected = whole(path, inputs, 2)
    assert same_bits({"": expected[0]["a"]}, {"": expected[0]["b"]})
    found = executed(lowered_at(path), tmp_path, inputs, 2)
    assert all(same_bits(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_without_a_seed_no_two_begin_alike_and_a_seed_of_the_process_is_followed(tmp_path: Path) -> None:
    nodes = [
        make_node("RandomNormal", [], ["a"], **SHAPE),
        make_node("RandomNormal", [], ["b"], shape=[8], dtype=1),
        make_node("RandomNormal", [], ["c"], **SHAPE),
        make_node("RandomNormalLike", ["a"], ["d"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, [floats("x", 1)], list("abcd"), {})
    lowered = lowered_at(path)

    def drawn(seed: int) -> dict[str, Any]:
        onnxruntime.set_seed(seed)
        return executed(lowered, tmp_path, {"x": random(1)})[0]

    first = drawn(1)
    assert len({array[0] for array in first.values()}) == 4
    assert same_bits(drawn(1), first)
    assert not any(np.array_equal(a, b) for a, b in zip(drawn(2).values(), first.values(), strict=True))


def _branches(seed: float) -> dict[str, Any]:
    def branch(op: str, **attributes: Any) -> Any:
        inputs = ["x"] if op.endswith("Like") or op == "Neg" else []
        return make_graph([make_node(op, inputs, ["r"], **attributes)], op, [], [floats("r", 4)])

    return {"then_branch": branch("RandomNormalLike", seed=seed), "else_branch": branch("Neg")}


def _with_ifs(path: Path) -> Lowered:
    nodes = [
        make_node("If", ["condition"], ["y"], "first", **_branches(5.0)),
        make_node("If", ["condition"], ["z"], "second", **_branches(5.0)),
    ]
    inputs = [make_tensor_value_info("condition", 9, []), floats("x", 4)]
    return lowered_at(write(path, nodes, inputs, ["y", "z"], {}))


def test_what_draws_inside_a_body_is_known_to_draw(tmp_path: Path) -> None:
    lowered = _with_ifs(tmp_path / "m.onnx")
    assert [(op.op_type, is_random(op)) for op in lowered.graph.operators] == [("random:If", True)] * 2


def test_bodies_of_equal_form_draw_what_they_draw_in_the_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    lowered = _with_ifs(path)
    inputs = {"condition": np.array(True), "x": random(4)}
    found, expected = executed(lowered, tmp_path, inputs, 2), whole(path, inputs, 2)
    assert all(same_bits(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
