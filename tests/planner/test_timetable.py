"""Room for what waits to be stored, against a step at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.planner.timetable import take


@settings(deadline=None, max_examples=200)
@given(st.data(), st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_room_is_taken_step_by_step_until_it_is_short_or_time_is_up(data: st.DataObject, room: list[int]) -> None:
    steps = len(room)
    left, free = list(room), np.tile(np.asarray(room, dtype=np.int64), 2)
    for _ in range(3):
        begin = data.draw(st.integers(0, 2 * steps - 1), "begin")
        latest = begin + data.draw(st.integers(0, steps), "length")
        nbytes = data.draw(st.integers(1, 4), "nbytes")
        end = begin
        while end < latest and left[end % steps] >= nbytes:
            left[end % steps] -= nbytes
            end += 1
        assert take(free, steps, begin, latest, nbytes) == end
        assert free.tolist() == left + left
