"""What is decided whole: tensors kept or dropped, and what more must leave until it fits."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.residency import (
    ResidencyProblem,
    check_residency,
    fluid_time,
    improve_residency,
    round_and_repair,
)
from tensorstow.solvers.residency.rounding import Pauses, held_profile, repair
from tensorstow.solvers.result import Status

from .cases import brute_force, problems, solved


@settings(max_examples=20, deadline=None)
@given(problems(periodic=True, dirty=True))
def test_whole_tensors(problem: ResidencyProblem) -> None:
    relaxed = solved(problem)
    found = improve_residency(problem, relaxed, time_limit_s=5.0, relative_gap=1e-6)
    assert found.status == Status.OPTIMAL, found
    assert found.solution is not None
    assert found.bound is not None
    assert relaxed.bound is not None
    assert check_residency(problem, found.solution) == ()
    assert all(min(x, 1 - x) < 1e-5 for x in found.solution.absent)
    assert relaxed.bound <= found.bound <= float(brute_force(problem)) * (1 + 1e-9)
    rounded = round_and_repair(problem, relaxed.solution.absent if relaxed.solution else ())
    assert fluid_time(problem, tuple(Fraction(x) for x in rounded)) is not None


@settings(max_examples=15, deadline=None)
@given(problems(periodic=True, dirty=False), st.randoms(use_true_random=False))
def test_decided_gaps_stay_decided(problem: ResidencyProblem, chance: random.Random) -> None:
    relaxed = solved(problem)
    decided = {g: chance.random() < 0.5 for g in range(len(problem.gaps)) if chance.random() < 0.5}
    best: Fraction | None = None
    for choice in itertools.product((0, 1), repeat=len(problem.gaps)):
        if all(choice[g] == absent for g, absent in decided.items() if problem.gaps[g].end > problem.gaps[g].start + 1):
            found = fluid_time(problem, tuple(Fraction(x) for x in choice))
            best = found if best is None or (found is not None and found < best) else best
    result = improve_residency(problem, relaxed, time_limit_s=5.0, relative_gap=1e-6, decided=decided)
    if best is None:
        assert result.status is Status.INFEASIBLE
        return
    assert result.objective == pytest.approx(float(best), rel=1e-5, abs=10)  # pyright: ignore[reportUnknownMemberType]
    assert result.solution is not None
    for g, absent in decided.items():
        if problem.gaps[g].end > problem.gaps[g].start + 1:
            assert round(result.solution.absent[g]) == absent


@settings(max_examples=60, deadline=None)
@given(problems(periodic=True, dirty=True), st.data())
def test_repair_makes_it_fit(problem: ResidencyProblem, data: st.DataObject) -> None:
    absent = tuple(data.draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])) for _ in problem.gaps)
    out = round_and_repair(problem, absent)
    held = list(problem.base_nbytes)
    for gap, gone in zip(problem.gaps, out, strict=True):
        for t in range(len(held)):
            held[t] += gap.nbytes if not gone and problem.covers(gap, t) else 0
    assert max(held) <= problem.capacity_nbytes
    assert all(gone for gone, fraction in zip(out, absent, strict=True) if fraction > 0.5)


@pytest.mark.parametrize("steps", [1, 7, 256, 257, 700])
def test_repair_takes_the_worst_step_and_its_most_absent_gap(steps: int) -> None:
    """Against the rule, followed with a look at everything each time."""
    rng = np.random.default_rng(steps)
    for _ in range(30):
        start = rng.integers(-1, steps, 40)
        pauses = Pauses(
            start, start + rng.integers(1, steps + 1, 40), rng.integers(0, 5, 40), rng.integers(0, 4, steps)
        )
        absent = tuple(rng.choice([0.0, 0.25, 0.5], 40).tolist())
        out, capacity = rng.random(40) < 0.2, int(rng.integers(0, 60))
        expected = out.copy()
        fits = True
        while fits and (held := held_profile(pauses, expected)).max() > capacity:
            worst = int(held.argmax())
            over = [
                (absent[g], int(pauses.end[g] - pauses.start[g]), -g)
                for g in range(40)
                if any(pauses.start[g] < t < pauses.end[g] for t in (worst, worst + steps))
                and pauses.nbytes[g] and not expected[g]
            ]  # fmt: skip
            fits = bool(over)
            if over:
                expected[-max(over)[2]] = True
        assert repair(pauses, absent, out, capacity) == fits
        assert out.tolist() == expected.tolist()
