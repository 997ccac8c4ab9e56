"""When stores are done, and room for what waits to be stored, against a step at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.planner.instance import make_instance
from tensorstow.planner.timetable import Clock
from tensorstow.solvers.sweeps import hold

from ..graphs import KIB, chain, machine


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


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=6), st.integers(-40, 80))
def test_the_first_step_from_a_time_on_is_that_of_a_look_at_each(steps: list[tuple[int, int]], ns: int) -> None:
    instance = make_instance(chain([KIB] * len(steps), ns=1), machine(1 << 20))
    clock = Clock(replace(instance, durations_ns=tuple(d for _, d in steps)), tuple(q for q, _ in steps))
    candidates = range(-41 * len(steps), 82 * len(steps))
    assert clock.first_from(ns) == next(t for t in candidates if clock.due(t) >= ns)


def test_a_store_that_is_done_while_a_step_waits_does_not_hold_it_up() -> None:
    """1000 bytes at a byte a nanosecond, from instant 1 on: step 1 waits 1500 ns for something else."""
    instance = make_instance(chain([KIB] * 4, ns=100), machine(1 << 20, bytes_per_s=1e9))
    clock = Clock(instance, (0, 1500, 0, 0))
    assert clock.earliest_ends([(7, 1, 1, 1000)]) == {7: 1}
    assert clock.earliest_ends([(7, 1, 1, 1500)]) == {7: 1}
    assert clock.earliest_ends([(7, 1, 1, 1501)]) == {7: 2}


def test_stores_of_the_pass_before_ran_in_their_own_time() -> None:
    """Three of 300 ns each in a pass of 1000: none is under way when the next pass begins."""
    instance = make_instance(chain([KIB] * 10, ns=100), machine(1 << 20, bytes_per_s=1e9))
    clock = Clock(instance, ())
    jobs = [(i, since, since, 300) for i, since in enumerate((0, 1, 2))]
    assert clock.earliest_ends(jobs) == {0: 3, 1: 6, 2: 9}
    late = [(0, 1, 1, 300), (1, 8, 8, 500)]  # the second one runs into the next pass: until 300 there
    assert clock.earliest_ends(late) == {0: 6, 1: 13}
    assert clock.earliest_ends([]) == {}
