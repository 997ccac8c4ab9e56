"""Sweeps over a cyclic pass against a look at every row, one instant after another."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.sweeps import ages_before

ROW = st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(-30, 30), st.integers(-30, 30))


@settings(deadline=None, max_examples=100)
@given(st.lists(ROW, min_size=1, max_size=12), st.integers(1, 15))
def test_the_last_event_is_that_of_a_look_back_instant_by_instant(
    rows: list[tuple[int, int, int, int]], steps: int
) -> None:
    low, size, at, when = (np.asarray(column, dtype=np.int64) for column in zip(*rows, strict=True))
    asked = np.flatnonzero(size > 0)
    found = ages_before(low, low + size, at, asked, when[asked], steps)
    for i, age in zip(asked.tolist(), found.tolist(), strict=True):
        beside = [q for q, (a, n, *_) in enumerate(rows) if n and a < low[i] + size[i] and low[i] < a + n]
        events = {int(at[q]) % steps for q in beside}
        assert age == next(n for n in range(steps + 1) if (when[i] - n) % steps in events)


def test_a_hundred_thousand_rows_are_a_matter_of_a_moment() -> None:
    """A stair of addresses, each row with its event 7,919 instants after that of the one below, and one instant before
    its own asked for it: to look at all others for each would take minutes."""
    count = 100_000
    low = np.arange(count, dtype=np.int64)
    at = (low * 7919) % count
    found = ages_before(low, low + 2, at, low, at - 1, count)
    assert found[0] == count - 1 - 7919
    assert (found[1:] == 7918).all()
