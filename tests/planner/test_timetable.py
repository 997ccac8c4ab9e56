"""Room for what waits to be stored, against a step at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.sweeps import hold


@settings(deadline=None, max_examples=200)
@given(st.data(), st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_room_is_taken_step_by_step_until_it_is_short_or_time_is_up(data: st.DataObject, room: list[int]) -> None:
    steps, rows = len(room), data.draw(st.integers(0, 4))
    begins = [data.draw(st.integers(-steps, 2 * steps - 1), "begin") for _ in range(rows)]
    latest = [begin + data.draw(st.integers(-2, 2 * steps), "length") for begin in begins]
    nbytes = [data.draw(st.integers(1, 4), "nbytes") for _ in range(rows)]
    left, ends = list(room), list[int]()
    for begin, last, size in zip(begins, latest, nbytes, strict=True):
        end = begin
        while end < min(last, begin + steps) and left[end % steps] >= size:
            left[end % steps] -= size
            end += 1
        ends.append(end)
    free = np.asarray(room, dtype=np.int64)
    columns = (np.asarray(column, dtype=np.int64) for column in (begins, latest, nbytes))
    assert hold(free, *columns).tolist() == ends
    assert free.tolist() == left
