"""Where a load lands: against every base, and the order in which its parts come."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.landing import LOWEST, RING, land, segments


def complete(taken: list[tuple[int, int, float]], base: int, nbytes: int, start: float, rate: float) -> float:
    """When a load at `base` is complete: byte by byte, those first that are free first."""
    free = [max([start, *(f for lo, hi, f in taken if lo <= a < hi)]) for a in range(base, base + nbytes)]
    now = start
    for f in sorted(free):
        now = max(now, f) + 1 / rate
    return now


taken_ranges = st.lists(
    st.tuples(st.integers(0, 15), st.integers(1, 8), st.sampled_from([1.0, 3.0, 6.0, float("inf")])), max_size=5
)


@settings(deadline=None, max_examples=200)
@given(taken_ranges, st.integers(1, 8), st.sampled_from([1, 2, 4]), st.sampled_from([0.5, 1.0, 4.0]), st.floats(0, 12))
def test_no_base_at_the_end_of_a_range_is_better(
    ranges: list[tuple[int, int, float]], nbytes: int, alignment: int, rate: float, due: float
) -> None:
    top = 20
    taken = [(lo, min(lo + n, top), f) for lo, n, f in ranges]
    low = np.array([t[0] for t in taken], dtype=np.int64)
    high = np.array([t[1] for t in taken], dtype=np.int64)
    free = np.array([t[2] for t in taken], dtype=np.float64)
    base, done = land(
        low, high, free,
        bottom=0, top=top, nbytes=nbytes, alignment=alignment,
        start_ns=2.0, due_ns=due, bytes_per_ns=rate, rule=LOWEST, pointer=0,
    )  # fmt: skip
    ends = {0, top, *(x for lo, hi, f in taken if f > 2.0 for x in (lo, hi))}
    bases = {-(-x // alignment) * alignment for x in ends} | {(x - nbytes) // alignment * alignment for x in ends}
    every = {b: max(due, complete(taken, b, nbytes, 2.0, rate)) for b in bases if 0 <= b <= top - nbytes}
    best = min(every.values(), default=float("inf"))
    if best == float("inf"):
        assert base == -1
        return
    assert every[base] < best + 1.0  # two that are half a nanosecond apart are equal, and two such pairs may meet
    assert done <= every[base] + 1e-9


def ring(taken: list[tuple[int, int, float]], rule: int, pointer: int) -> int:
    low, high, free = (np.array([t[k] for t in taken]) for k in range(3))
    base, _ = land(
        low.astype(np.int64), high.astype(np.int64), free.astype(np.float64),
        bottom=0, top=100, nbytes=30, alignment=1, start_ns=0.0, due_ns=9.0, bytes_per_ns=10.0,
        rule=rule, pointer=pointer,
    )  # fmt: skip
    return base


def test_the_ring_goes_on_from_its_pointer_and_round() -> None:
    assert ring([], LOWEST, 0) == 0
    assert ring([(40, 50, float("inf"))], RING, 35) == 50
    assert ring([(40, 50, float("inf"))], RING, 80) == 0


def test_parts_are_cut_where_the_time_changes() -> None:
    low, high = np.array([0, 10, 30], dtype=np.int64), np.array([10, 20, 40], dtype=np.int64)
    free = np.array([5.0, 1.0, 7.0], dtype=np.float64)
    assert segments(low, high, free, 4, 30, 2.0) == [(0, 6, 5.0), (6, 26, 2.0), (26, 30, 7.0)]
