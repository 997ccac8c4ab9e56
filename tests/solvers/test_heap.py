"""The heap of chunks on a cycle against a grid that marks every byte at every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tensorstow.solvers.heap import Heap

STEPS, CAPACITY = 6, 24


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(-6, 6), st.integers(1, 6), st.integers(1, 10), st.sampled_from([1, 2, 4]), st.booleans()),
        max_size=10,
    )
)
def test_best_fit_is_the_smallest_hole_of_the_grid(requests: list[tuple[int, int, int, int, bool]]) -> None:
    heap, grid = Heap(STEPS, CAPACITY), np.zeros((STEPS, CAPACITY), dtype=np.int64)
    for start, length, nbytes, alignment, kept in requests:
        rows = np.arange(start, start + length) % STEPS
        free = grid[rows].sum(axis=0) == 0
        found = heap.best_fit(start, start + length, nbytes, alignment)
        expected = _best(free, nbytes, alignment)
        assert found == expected
        for offset in range(CAPACITY - nbytes + 1):
            assert heap.is_free(start, start + length, offset, nbytes) == bool(free[offset : offset + nbytes].all())
        if found is None:
            continue
        handle = heap.take(start, start + length, found, nbytes)
        if not kept:
            heap.copy().give(handle)  # a copy's changes stay its own
            assert not heap.is_free(start, start + length, found, nbytes)
            heap.give(handle)
        else:
            grid[np.ix_(rows, np.arange(found, found + nbytes))] = 1


def _best(free: NDArray[np.bool_], nbytes: int, alignment: int) -> int | None:
    """Over all maximal free runs, the aligned start in the one with the fewest bytes behind it."""
    best: tuple[int, int] | None = None
    begin = 0
    while begin < CAPACITY:
        if not free[begin]:
            begin += 1
            continue
        end = begin
        while end < CAPACITY and free[end]:
            end += 1
        at = -(-begin // alignment) * alignment
        if end - at >= nbytes and (best is None or end - at < best[0]):
            best = (end - at, at)
        begin = end
    return None if best is None else best[1]


def test_many_chunks_and_wrong_intervals() -> None:
    heap = Heap(2, 1000)
    for k in range(500):
        heap.take(0, 1, k, 1)
    assert heap.best_fit(0, 1, 1) == 500
    assert heap.best_fit(1, 2, 1000) == 0
    with pytest.raises(ValueError, match=r"steps \[0, 3\) are not an interval within a cycle of 2"):
        heap.take(0, 3, 0, 1)
    with pytest.raises(ValueError, match=r"outside the capacity of 1000"):
        heap.take(0, 1, 999, 2)
