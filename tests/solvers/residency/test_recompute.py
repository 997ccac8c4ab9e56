"""The joint program on cases that can be told by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.solvers.residency.problem import Gap
from tensorstow.solvers.residency.recompute import RecomputeProblem, Value, choose_checks, solve_recompute
from tensorstow.solvers.result import Status


def one_value(*, maker: bool, store_bytes_per_s: float, load_bytes_per_s: float) -> RecomputeProblem:
    """A value of 10 bytes that steps 0 to 3 and 6 touch; step 5 leaves no room. Each step takes 10 ns."""
    value = Value(10, (0, 1, 2, 3, 6), maker)
    needed = (10, 10, 10, 10, 0, 100, 10)
    rates = load_bytes_per_s, store_bytes_per_s
    return RecomputeProblem((10,) * 7, needed, ((),) * 7, (value,), (), 100, *rates)


def test_a_value_may_be_stored_while_steps_still_touch_it() -> None:
    # 35 ns of storing hide behind steps 0 to 4; loading takes 10 ns and runs during step 5, after its start.
    problem = one_value(maker=False, store_bytes_per_s=10 / 35e-9, load_bytes_per_s=1e9)
    for windows in (2, 100):
        bound = solve_recompute(problem, windows=windows).bound
        assert bound is not None and bound <= 70.0 * (1 + 1e-6)


def test_the_cheaper_of_moving_and_calling_again_counts() -> None:
    slow = solve_recompute(one_value(maker=False, store_bytes_per_s=1e6, load_bytes_per_s=1e6))
    assert slow.bound is not None and slow.bound > 1e4
    again = solve_recompute(one_value(maker=True, store_bytes_per_s=1e6, load_bytes_per_s=1e6))
    assert again.bound == pytest.approx(80.0, rel=1e-3) and again.solution is not None
    assert again.solution.repeated[0] == pytest.approx(1.0, abs=1e-2)
    whole = solve_recompute(one_value(maker=True, store_bytes_per_s=1e6, load_bytes_per_s=1e6), whole=True)
    assert whole.solution is not None and whole.solution.repeated[0] == pytest.approx(1.0)


def test_what_is_written_in_every_pass_goes_down_and_comes_up_between_its_writes() -> None:
    """10 bytes that step 0 writes in each pass; step 3 leaves no room. They are stored while 30 ns compute, which takes
    200, and loaded while other 30 ns do, which takes 100; bytes of a copy from before the write do not count."""
    state = Value(10, (0, 6), False)
    needed = (10, 0, 0, 100, 0, 0)
    problem = RecomputeProblem((10,) * 6, needed, ((),) * 6, (state,), (), 100, 10 / 100e-9, 10 / 200e-9)
    assert solve_recompute(problem, windows=100).bound == pytest.approx(60 + 170 + 70, rel=1e-4)
    shared = replace(problem, shared_channel=True)
    assert solve_recompute(shared, windows=100).bound == pytest.approx(300, rel=1e-4)
    alike = replace(problem, values=(Value(4, (0, 6), False), Value(6, (0, 6), False)))  # one mass for both
    assert solve_recompute(alike, windows=100).bound == pytest.approx(300, rel=1e-4)


def test_a_tenth_that_is_stored_once_does_not_make_ten_tenths() -> None:
    """b is made from a at step 1 and needed at the end; in between is room for half of either. Moving 10 bytes takes
    1000 ns, calling `b` again 10: a must come back, however often it is loaded and b made again in parts."""
    values = (Value(10, (0, 1), False), Value(10, (1, 12), True))
    needed = (10, 20, *(95,) * 10, 10)
    rate = 10 / 1000e-9
    problem = RecomputeProblem((10,) * 13, needed, ((), (0,), *((),) * 11), values, (), 100, rate, rate)
    bound = solve_recompute(problem, windows=100).bound
    # Half of b may stay; the other half is stored before step 2 and loaded, or half of a is, for a call of b.
    assert bound is not None and 130 + 400 <= bound <= 130 + 2 * 500


def test_checks_begin_at_step_0_and_look_where_most_exists() -> None:
    problem = one_value(maker=False, store_bytes_per_s=1e9, load_bytes_per_s=1e9)
    assert choose_checks(problem, 100) == tuple(range(7))
    assert 0 in choose_checks(problem, 2) and 5 in choose_checks(problem, 2)


def test_what_cannot_fit_and_what_does_not_match() -> None:
    problem = RecomputeProblem((1,), (20,), ((),), (), (), 10, 1.0, 1.0)
    assert solve_recompute(problem).status == Status.INFEASIBLE
    with pytest.raises(ValueError, match="not rising"):
        RecomputeProblem((1,), (1,), ((),), (Value(1, (3,), False),), (), 10, 1.0, 1.0)
    with pytest.raises(ValueError, match="not rising"):
        RecomputeProblem((1,), (1,), ((),), (Value(1, (0, 1), True),), (), 10, 1.0, 1.0)
    with pytest.raises(ValueError, match="not clean"):
        RecomputeProblem((1,), (1,), ((),), (), (Gap(0, 1, 0, 1, clean=False),), 10, 1.0, 1.0)
    with pytest.raises(ValueError, match="rate"):
        RecomputeProblem((1,), (1,), ((),), (), (), 10, 0.0, 1.0)
