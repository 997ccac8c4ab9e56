"""The program of a watch: never above the fine optimum, equal to it when everything is watched; its timelines."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.linear import Highs, LinearAnswer, safe_bound, solve_highs
from tensorstow.solvers.residency import Gap, ResidencyProblem, check_residency, solve_residency
from tensorstow.solvers.residency.bounds import compulsory_bound
from tensorstow.solvers.residency.coarse import build_coarse
from tensorstow.solvers.residency.coarse_groups import gap_arrays
from tensorstow.solvers.residency.coarse_solve import solve_coarse
from tensorstow.solvers.result import Status

ROUNDING = 1e-6


@st.composite
def problems(draw: st.DrawFn) -> ResidencyProblem:
    """Up to 12 steps and 8 items: clean ones, ones made in the pass with several gaps, ones written in every pass whose
    wrap gap is dirty, and ones that lie below when the pass begins."""
    steps, periodic = draw(st.integers(1, 12)), draw(st.booleans())
    gaps: list[Gap] = []
    base = [draw(st.integers(0, 4)) for _ in range(steps)]
    for item in range(draw(st.integers(0, 8))):
        nbytes, clean, lasts = draw(st.integers(1, 8)), draw(st.booleans()), draw(st.booleans())
        uses = sorted(draw(st.sets(st.integers(0, steps - 1), min_size=1, max_size=4)))
        for t in uses:
            base[t] += nbytes
        if not periodic and clean and draw(st.booleans()):
            gaps.append(Gap(item, nbytes, -1, uses[0], True))
        gaps += [Gap(item, nbytes, a, b, clean) for a, b in itertools.pairwise(uses)]
        if periodic and (clean or lasts):
            gaps.append(Gap(item, nbytes, uses[-1], uses[0] + steps, clean))
            if not clean:  # written last at one of its uses
                n = draw(st.integers(1, len(uses)))
                gaps[-n] = replace(gaps[-n], written=True)
    durations = tuple(draw(st.integers(0, 5)) * 10**6 for _ in range(steps))
    rate = 1000.0 * draw(st.sampled_from([0.5, 1.0, 3.0]))
    store = rate * draw(st.sampled_from([0.5, 2.0]))
    capacity, shared = max(base) + draw(st.integers(0, 10)), draw(st.booleans())
    return ResidencyProblem(durations, tuple(base), tuple(gaps), capacity, rate, store, periodic, shared)


def watched_bound(problem: ResidencyProblem, watch: list[int]) -> float:
    """Nanoseconds that the program of a watch proves."""
    model = build_coarse(problem, gap_arrays(problem), np.array(watch))
    answer = solve_highs(model.program, 60.0)
    assert answer.status == Status.OPTIMAL
    assert answer.duals is not None
    return sum(problem.durations_ns) + max(0.0, safe_bound(model.program, answer.duals)) * model.ns_unit


@settings(max_examples=120, deadline=None)
@given(problems(), st.data())
def test_no_watch_is_above_the_fine_optimum(problem: ResidencyProblem, data: st.DataObject) -> None:
    fine = solve_residency(problem, time_limit_s=60.0)
    assert fine.status == Status.OPTIMAL
    assert fine.objective is not None
    last = 2 * len(problem.durations_ns) - 1
    chosen = sorted(data.draw(st.sets(st.integers(0, last))) | {last})
    assert watched_bound(problem, chosen) <= fine.objective * (1 + ROUNDING) + 1


@settings(max_examples=120, deadline=None)
@given(problems())
def test_watching_everything_gives_the_fine_optimum(problem: ResidencyProblem) -> None:
    """For what a pass makes or only reads; of what is written in every pass the coarse program asks less."""
    fine = solve_residency(problem, time_limit_s=60.0)
    assert fine.objective is not None
    steps = len(problem.durations_ns)
    watched = watched_bound(problem, list(range(2 * steps)))
    if any(not gap.clean and gap.end >= steps for gap in problem.gaps):
        assert watched <= fine.objective * (1 + 1e-5) + 10
    else:
        assert watched == pytest.approx(fine.objective, rel=1e-5, abs=10)


@settings(max_examples=120, deadline=None)
@given(problems(), st.integers(1, 6))
def test_answers_are_timelines_above_their_bound(problem: ResidencyProblem, macro_steps: int) -> None:
    fine = solve_residency(problem, time_limit_s=60.0)
    result = solve_coarse(problem, macro_steps=macro_steps, time_limit_s=60.0)
    assert result.solution is not None
    assert result.bound is not None
    assert result.objective is not None
    assert fine.objective is not None
    assert result.bound <= fine.objective * (1 + ROUNDING) + 1
    assert fine.objective <= result.objective * (1 + ROUNDING) + 1
    steps = len(problem.durations_ns)
    if all(gap.clean or gap.end < steps for gap in problem.gaps):
        # The checker takes stores in the order of the pass; of what lasts from pass to pass they count from its write.
        assert check_residency(problem, result.solution, tolerance=1e-5) == ()


@pytest.mark.parametrize("fault", [RuntimeError("crashed"), MemoryError("no memory left")])
def test_an_engine_that_breaks_down_is_an_error_with_the_compulsory_bound(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Highs, time_limit_s: float) -> LinearAnswer:
        raise fault

    monkeypatch.setattr(Highs, "solve", broken)
    gaps = tuple(Gap(i, 4, i, i + 6, clean=True) for i in range(6))
    problem = ResidencyProblem((1,) * 6, (4,) * 6, gaps, 8, 1e9, 1e9, periodic=True)
    result = solve_coarse(problem, macro_steps=2, time_limit_s=60.0)
    assert result.status == Status.ERROR
    assert result.solution is None
    assert str(fault) in result.detail
    assert result.bound == compulsory_bound(problem) > 0
