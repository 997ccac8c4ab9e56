"""The joint program on cases that can be told by hand."""

from __future__ import annotations

import pytest

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


def test_checks_begin_at_step_0_and_look_where_most_exists() -> None:
    problem = one_value(maker=False, store_bytes_per_s=1e9, load_bytes_per_s=1e9)
    assert choose_checks(problem, 100) == tuple(range(7))
    assert 0 in choose_checks(problem, 2) and 5 in choose_checks(problem, 2)


def test_what_cannot_fit_and_what_does_not_match() -> None:
    problem = RecomputeProblem((1,), (20,), ((),), (), (), 10, 1.0, 1.0)
    assert solve_recompute(problem).status == Status.INFEASIBLE
    with pytest.raises(ValueError, match="not rising"):
        RecomputeProblem((1,), (1,), ((),), (Value(1, (3,), False),), (), 10, 1.0, 1.0)
    with pytest.raises(ValueError, match="rate"):
        RecomputeProblem((1,), (1,), ((),), (), (), 10, 0.0, 1.0)
