"""Comparisons of outputs: to the bit, and by how much."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.helper import make_node

from tensorstow.execute import write_outputs
from tensorstow.executors import open_executor
from tensorstow.hosts import silent
from tensorstow.ir.errors import InputError
from tensorstow.ir.files import PlanFile
from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import lower_onnx, model_source
from tensorstow.verify import RELATIVE_TOLERANCE, Verification, _difference, _same_bits, verify_outputs  # pyright: ignore[reportPrivateUsage]

from .conftest import host_machine
from .planner.lowered_models import floats, random, write

LONG = np.arange(5000, dtype=np.float32)


def changed(array: np.ndarray, at: int, value: object) -> np.ndarray:
    other = array.copy()
    other[at] = value
    return other


def test_what_prints_alike_is_not_alike() -> None:
    """Long arrays are printed in part, alone, in sequences, and as text."""
    other = changed(LONG, 2500, -1.0)
    words = np.array([f"word {i}" for i in range(3000)], dtype=object)
    for a, b in (
        (LONG, other),
        ([LONG], [other]),
        ({"a": (LONG,)}, {"a": (other,)}),
        (words, changed(words, 1500, "")),
    ):
        assert _same_bits(a, a)
        assert not _same_bits(a, b)
    assert not _same_bits([LONG], [LONG, LONG])
    assert not _same_bits(LONG, LONG.reshape(50, 100))
    assert not _same_bits(np.float32(0.0), np.float32(-0.0))
    assert _same_bits(np.array([np.nan]), np.array([np.nan]))


def test_differences_of_sequences_and_of_small_floats() -> None:
    other = changed(LONG, 2500, 2500.5)
    allowed = RELATIVE_TOLERANCE * 4999
    assert _difference([LONG, LONG], [LONG, other]) == (0.5, pytest.approx(allowed))
    assert _difference([LONG], [LONG, LONG])[0] == inf
    half = np.ones(3, ml_dtypes.bfloat16)
    assert _difference(half, changed(half, 1, 2.0)) == (1.0, RELATIVE_TOLERANCE)
    assert _difference(np.array([inf, np.nan]), np.array([inf, np.nan]))[0] == 0.0
    assert _difference(np.array([inf]), np.array([1.0]))[0] == inf


def test_a_difference_without_a_number_is_still_json() -> None:
    facts = Verification(False, inf, False, "another run").facts()
    assert json.loads(json.dumps(facts, allow_nan=False))["max_abs_err"] is None


def test_maps_differ_by_their_values_and_by_their_keys() -> None:
    assert _difference([{"a": 1.0, "b": 2.0}], [{"b": 2.0, "a": 1.5}])[0] == 0.5
    assert _difference({"a": 1.0}, {"b": 1.0})[0] == inf


def test_a_model_that_draws_is_compared_by_first_passes(tmp_path: Path) -> None:
    nodes = [make_node("RandomNormalLike", ["x"], ["n"], seed=1.0), make_node("Add", ["x", "n"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, [floats("x", 8)], ["y"], {})
    lowered, machine = lower_onnx(path), host_machine()
    plan = plan_graph(lowered.graph, machine, strategy="resident", time_limit_s=2)
    file = PlanFile(plan, lowered.graph, machine, lowered.program, model_source(path, {}), 0)
    inputs = {"x": random(8)}
    with open_executor(file) as executor:
        first, second = executor.run(inputs), executor.run(inputs)
    assert first["y"].tobytes() != second["y"].tobytes()
    found = verify_outputs(file, None, inputs, second, threads=None, progress=silent)
    assert found.bit_identical
    assert found.within_tolerance
    assert "draws random numbers" in found.reference


def test_text_goes_to_a_file_and_what_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.npz"
    write_outputs(path, {"t": np.array(["a", "bc"], dtype=object), "x": LONG})
    with np.load(path) as read:
        assert read["t"].tolist() == ["a", "bc"]
        assert read["x"].tobytes() == LONG.tobytes()
    maps: Any = [{"a": 1.0}]
    with pytest.raises(InputError, match="output 'z' is a list and no array"):
        write_outputs(tmp_path / "other.npz", {"z": maps})
    assert not (tmp_path / "other.npz").exists()
