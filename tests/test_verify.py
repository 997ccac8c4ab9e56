"""Comparisons of outputs: to the bit, and by how much."""

from __future__ import annotations

import json
from math import inf

import ml_dtypes
import numpy as np
import pytest

from tensorstow.verify import RELATIVE_TOLERANCE, Verification, _difference, _same_bits  # pyright: ignore[reportPrivateUsage]

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
