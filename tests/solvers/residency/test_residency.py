"""The fluid optimum against brute force, its bound, its checker, and how it behaves at the edges."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.residency import (
    Gap,
    ResidencyProblem,
    check_residency,
    compulsory_bound,
    fluid_time,
    improve_residency,
    solve_residency,
)
from tensorstow.solvers.result import Status

from .cases import brute_force, problems, random_problem, solved


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("dirty", [False, True])
@settings(max_examples=35, deadline=None)
@given(data=st.data())
def test_bound_is_below_every_timeline(periodic: bool, dirty: bool, data: st.DataObject) -> None:
    problem = data.draw(problems(periodic=periodic, dirty=dirty))
    result = solved(problem)
    best = brute_force(problem)
    assert result.bound is not None
    assert result.solution is not None
    assert Fraction(result.bound) <= best
    assert Fraction(compulsory_bound(problem)) <= best
    if not dirty and all(min(x, 1 - x) < 1e-9 for x in result.solution.absent):
        assert abs(float(best) - result.bound) <= 1e-6 * max(1.0, float(best))
    if not dirty:  # the fractions themselves, run exactly, take the time that was promised
        eps = Fraction(1, 10**9)
        clipped = tuple(min(Fraction(1), Fraction(x) + eps) if x > 0 else Fraction(0) for x in result.solution.absent)
        exact = fluid_time(problem, clipped)
        if exact is not None and not problem.periodic:
            assert float(exact) <= result.bound + 1e-5 * max(1e6, result.bound)


@settings(max_examples=40, deadline=None)
@given(problems(periodic=True, dirty=True, shared=True))
def test_sharing_a_channel_is_never_faster(problem: ResidencyProblem) -> None:
    shared, apart = solved(problem), solved(replace(problem, shared_channel=False))
    assert shared.objective is not None
    assert apart.bound is not None
    assert shared.objective >= apart.bound * (1 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(problems(periodic=True, dirty=True), st.integers(1, 5))
def test_more_memory_and_faster_links_are_never_slower(problem: ResidencyProblem, more: int) -> None:
    tight = solved(problem)
    roomy = solved(replace(problem, capacity_nbytes=problem.capacity_nbytes + more))
    faster = solved(replace(problem, load_bytes_per_s=problem.load_bytes_per_s * 1.5))
    assert tight.objective is not None
    for better in (roomy, faster):
        assert better.bound is not None
        assert better.bound <= tight.objective * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(problems(periodic=True, dirty=True), st.sampled_from([10**3, 10**9, 2**40 + 1]))
def test_units_do_not_matter(problem: ResidencyProblem, scale: int) -> None:
    huge = replace(
        problem,
        base_nbytes=tuple(b * scale for b in problem.base_nbytes),
        gaps=tuple(replace(gap, nbytes=gap.nbytes * scale) for gap in problem.gaps),
        capacity_nbytes=problem.capacity_nbytes * scale,
        durations_ns=tuple(d * scale for d in problem.durations_ns),
    )
    small, large = solved(problem), solved(huge)
    assert small.bound is not None
    assert large.bound is not None
    assert large.bound == pytest.approx(small.bound * scale, rel=1e-6)  # pyright: ignore[reportUnknownMemberType]


def test_a_thousand_steps_are_fast() -> None:
    problem = random_problem(steps=1000, items=700, seed=1, share=0.5)
    began = time.process_time()
    result = solve_residency(problem)
    assert result.status == Status.OPTIMAL
    assert time.process_time() - began < 3.0  # about 0.5 s alone; the limit leaves room for a busy machine


def test_a_known_case() -> None:
    # One weight of 100 bytes beside a step of 1 s that leaves room for half of it: 50 bytes load at 10 bytes a second.
    gap = Gap(0, 100, 0, 2, True)
    problem = ResidencyProblem((10**9, 10**9), (100, 50), (gap,), 100, 10.0, 10.0, periodic=True)
    result = solved(problem)
    # 5 s of loading. None fits during step 1 (full), nor may it: step 0 holds all 100, so all is idle time.
    assert result.bound == pytest.approx(7e9, rel=1e-9)  # pyright: ignore[reportUnknownMemberType]
    assert result.solution is not None
    assert result.solution.absent[0] == pytest.approx(0.5)  # pyright: ignore[reportUnknownMemberType]
    assert max(result.solution.memory_price) > 0


def test_store_ahead_of_the_drop() -> None:
    # Made in step 0, kept beside step 1, dropped beside step 3: storing during step 1 or 2 makes the drop free.
    gaps = (Gap(0, 10, 0, 2, False), Gap(0, 10, 2, 4, False))
    problem = ResidencyProblem((10**9,) * 5, (10, 5, 10, 20, 10), gaps, 20, 10.0, 10.0, periodic=False)
    result = solved(problem)
    assert result.solution is not None
    assert result.solution.absent[1] == pytest.approx(1.0)  # pyright: ignore[reportUnknownMemberType]
    assert result.solution.ahead[0] + result.solution.stored[0] == pytest.approx(1.0)  # pyright: ignore[reportUnknownMemberType]
    late = fluid_time(problem, (Fraction(0), Fraction(1)))
    assert late is not None
    assert result.objective is not None
    assert result.objective < float(late)


def test_infeasible_says_which_step() -> None:
    problem = ResidencyProblem((1, 1), (5, 9), (), 8, 1.0, 1.0, periodic=True)
    result = solve_residency(problem)
    assert result.status == Status.INFEASIBLE
    assert "step 1 needs 9 bytes, the capacity is 8" in result.detail
    stuck = ResidencyProblem((1,), (5,), (Gap(0, 5, -1, 0, True),), 8, 0.0, 0.0, periodic=False)
    assert solve_residency(stuck).status == Status.INFEASIBLE


def test_a_link_that_is_not_needed_may_be_missing() -> None:
    problem = ResidencyProblem((5, 5), (4, 4), (Gap(0, 4, 0, 2, True),), 8, 0.0, 0.0, periodic=True)
    assert solved(problem).objective == 10.0


@pytest.mark.parametrize("periodic", [False, True])
def test_empty(periodic: bool) -> None:
    nothing = ResidencyProblem((), (), (), 0, 1.0, 1.0, periodic)
    assert solved(nothing).objective == 0
    assert solved(ResidencyProblem((7,), (3,), (), 3, 1.0, 1.0, periodic)).objective == 7


def test_time_limit_is_an_answer() -> None:
    problem = random_problem(steps=1000, items=700, seed=2, share=0.4)
    for limit in (0.0, 0.05):
        result = solve_residency(problem, time_limit_s=limit)
        assert result.status in (Status.UNKNOWN, Status.FEASIBLE, Status.OPTIMAL)
        assert result.bound is not None
        assert result.bound >= sum(problem.durations_ns)
        whole = improve_residency(problem, result, time_limit_s=limit)
        assert whole.status in (Status.UNKNOWN, Status.FEASIBLE, Status.OPTIMAL)


def test_same_answer_twice() -> None:
    problem = random_problem(steps=60, items=40, seed=3, share=0.4)
    assert solved(problem).solution == solved(problem).solution


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"durations_ns": (-1, 1)}, "negative duration"),
        ({"base_nbytes": (1,)}, "2 durations for 1"),
        ({"load_bytes_per_s": float("nan")}, "load rate nan"),
        ({"gaps": (Gap(0, 1, 0, 3, True),)}, "not within 2 steps"),
        ({"gaps": (Gap(0, -1, 0, 2, True),)}, "negative size"),
        ({"gaps": (Gap(0, 1, 0, 2, True), Gap(0, 1, 1, 3, True))}, "overlap"),
    ],
)
def test_wrong_problems(change: dict[str, object], message: str) -> None:
    good = ResidencyProblem((1, 1), (1, 1), (), 8, 1.0, 1.0, periodic=True)
    with pytest.raises(ValueError, match=message):
        replace(good, **change)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"absent": (0.0,)}, "bytes are held"),
        ({"loaded_waiting": (0.0, 0.0), "loaded_running": (0.0, 0.0)}, "bytes are loaded in a pass"),
        ({"stall_ns": (0.0, 0.0)}, "too many"),
        ({"absent": (1.5,)}, "not within"),
        ({"absent": ()}, "there are 1"),
    ],
)
def test_checker_finds(change: dict[str, tuple[float, ...]], message: str) -> None:
    problem = ResidencyProblem((10**9, 10**9), (100, 50), (Gap(0, 100, 0, 2, True),), 100, 10.0, 10.0, periodic=True)
    solution = solved(problem).solution
    assert solution is not None
    assert any(message in line for line in check_residency(problem, replace(solution, **change)))


def test_checker_finds_missing_stores() -> None:
    problem = ResidencyProblem((10**9,) * 3, (10, 20, 10), (Gap(0, 10, 0, 2, False),), 20, 10.0, 10.0, periodic=False)
    solution = solved(problem).solution
    assert solution is not None
    assert any("was never stored" in line for line in check_residency(problem, replace(solution, stored=(0.0,))))
