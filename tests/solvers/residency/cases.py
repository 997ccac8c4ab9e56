"""Residency problems, drawn and random, and their optimum by brute force."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

from hypothesis import strategies as st

from tensorstow.solvers.residency import (
    Gap,
    ResidencyProblem,
    ResidencySolution,
    check_residency,
    fluid_time,
    solve_residency,
)
from tensorstow.solvers.result import Result, Status


def problems(*, periodic: bool, dirty: bool, shared: bool = False) -> st.SearchStrategy[ResidencyProblem]:
    """Up to 6 steps and 6 gaps; capacities from the smallest feasible up."""

    @st.composite
    def one(draw: st.DrawFn) -> ResidencyProblem:
        steps = draw(st.integers(1, 6))
        gaps: list[Gap] = []
        base = [draw(st.integers(0, 4)) for _ in range(steps)]
        for item in range(draw(st.integers(0, 4))):
            nbytes, clean = draw(st.integers(1, 8)), not dirty or draw(st.booleans())
            uses = sorted(draw(st.sets(st.integers(0, steps - 1), min_size=1, max_size=3)))
            for t in uses:
                base[t] += nbytes
            if not periodic and clean and draw(st.booleans()):
                gaps.append(Gap(item, nbytes, -1, uses[0], True))
            gaps += [Gap(item, nbytes, a, b, clean) for a, b in itertools.pairwise(uses)]
            if periodic and clean:
                gaps.append(Gap(item, nbytes, uses[-1], uses[0] + steps, True))
        durations = tuple(draw(st.integers(0, 5)) * 10**6 for _ in range(steps))
        capacity = max(base) + draw(st.integers(0, 10))
        rate = 1000.0 * draw(st.sampled_from([0.5, 1.0, 3.0]))
        return ResidencyProblem(durations, tuple(base), tuple(gaps), capacity, rate, 2 * rate, periodic, shared)

    return one()


def brute_force(problem: ResidencyProblem) -> Fraction:
    """Fastest exact timeline over all choices of whole gaps."""
    times: list[Fraction] = []
    for choice in itertools.product((0, 1), repeat=len(problem.gaps)):
        if all(absent or gap.start >= 0 for absent, gap in zip(choice, problem.gaps, strict=True)):
            found = fluid_time(problem, tuple(Fraction(x) for x in choice))
            if found is not None:
                times.append(found)
    return min(times)


def solved(problem: ResidencyProblem, engine: str = "highs") -> Result[ResidencySolution]:
    result = solve_residency(problem, engine=engine)
    assert result.status == Status.OPTIMAL, result
    assert result.solution is not None
    assert result.bound is not None
    assert result.objective is not None
    assert check_residency(problem, result.solution) == ()
    return result


def random_problem(*, steps: int, items: int, seed: int, share: float) -> ResidencyProblem:
    """Weights used once a pass, of four sizes, `share` of what they need, on a disk of 1.2 GB/s."""
    rng = random.Random(seed)
    base, gaps = [1_000_000] * steps, list[Gap]()
    for item in range(items):
        at, nbytes = rng.randrange(steps), rng.choice([100_000, 1_000_000, 2_400_000, 9_000_000])
        base[at] += nbytes
        gaps.append(Gap(item, nbytes, at, at + steps, True))
    durations = tuple(rng.randrange(100_000, 3_000_000) for _ in range(steps))
    capacity = max(int((sum(gap.nbytes for gap in gaps) + max(base)) * share), max(base))
    return ResidencyProblem(durations, tuple(base), tuple(gaps), capacity, 1.2e9, 1.0e9, periodic=True)
