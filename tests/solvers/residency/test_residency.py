"""The fluid optimum against brute force, its bound, its checker, and how it behaves at the edges."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.residency import (
    Gap,
    ResidencyProblem,
    ResidencySolution,
    check_residency,
    compulsory_bound,
    fluid_time,
    improve_residency,
    round_and_repair,
    solve_residency,
)
from tensorstow.solvers.residency.lp import Relaxer
from tensorstow.solvers.residency.rounding import Pauses, held_profile, repair
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


@pytest.mark.parametrize("engine", ["cbc", "cpsat"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_engines_agree_on_whole_tensors(engine: str, data: st.DataObject) -> None:
    problem = data.draw(problems(periodic=True, dirty=True))
    relaxed = solved(problem)
    reference = improve_residency(problem, relaxed, time_limit_s=5.0, relative_gap=1e-6)
    other = improve_residency(problem, relaxed, time_limit_s=10.0, relative_gap=1e-6, engine=engine)
    assert reference.objective is not None
    assert other.objective is not None
    assert other.bound is not None
    assert other.objective == pytest.approx(reference.objective, rel=1e-5)  # pyright: ignore[reportUnknownMemberType]
    assert other.bound <= float(brute_force(problem)) * (1 + 1e-9)
    assert other.method == f"MIP by {engine}"


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


def test_an_engine_that_breaks_down_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("basis is singular")

    monkeypatch.setattr("tensorstow.solvers.residency.lp.Highs", crash)
    result = solve_residency(random_problem(steps=12, items=8, seed=4, share=0.4))
    assert result.status is Status.ERROR
    assert "highs broke down: basis is singular" in result.detail
    assert result.bound is not None


@pytest.mark.parametrize("engine", ["auto", "highs", "glop", "cbc", "cpsat"])
def test_engines_agree(engine: str) -> None:
    problem = random_problem(steps=12, items=8, seed=4, share=0.4)
    reference = solved(problem)
    other = solved(problem, engine)
    assert other.bound == pytest.approx(reference.bound, rel=1e-6)  # pyright: ignore[reportUnknownMemberType]


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


@pytest.mark.parametrize("engine", ["highs", "glop"])
def test_other_capacities_one_after_another_are_as_good_as_alone(engine: str) -> None:
    problem = random_problem(steps=60, items=80, seed=3, share=0.5)
    room = problem.capacity_nbytes - max(problem.base_nbytes)
    relaxer = Relaxer(problem, engine=engine)
    for share in (0.0, 0.3, 0.1, 0.6, -0.2, 0.3):  # below zero: more than the first had
        capacity = problem.capacity_nbytes - int(share * room)
        warm = relaxer.solve(capacity, time_limit_s=30)
        cold = solve_residency(replace(problem, capacity_nbytes=capacity), engine=engine)
        assert warm.status == cold.status == Status.OPTIMAL
        assert warm.objective == pytest.approx(cold.objective, rel=1e-5)
        assert warm.bound == pytest.approx(cold.bound, rel=1e-5)
        assert warm.solution is not None
        assert not check_residency(replace(problem, capacity_nbytes=capacity), warm.solution)


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


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="'abacus' is unknown; choose one of auto, highs, glop, cbc, cpsat"):
        solve_residency(ResidencyProblem((), (), (), 0, 1.0, 1.0, True), engine="abacus")


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


@pytest.mark.parametrize("first", ["highspy", "ortools.sat.python.cp_model"])
def test_engines_share_a_process(first: str) -> None:
    second = "ortools.sat.python.cp_model" if first == "highspy" else "highspy"
    code = f"""
import {first}, {second}
from tensorstow.solvers.residency import Gap, ResidencyProblem, solve_residency
from tensorstow.solvers.packing import Body, Box, PackingProblem, pack
p = ResidencyProblem((10**9, 10**9), (100, 50), (Gap(0, 100, 0, 2, True),), 100, 10.0, 10.0, True)
assert all(abs(solve_residency(p, engine=e).objective - 7e9) < 7e3 for e in ("highs", "glop"))
sizes = ((0, 2, 3), (1, 4, 3), (3, 6, 3), (0, 6, 2))
assert pack(PackingProblem(tuple(Body((Box(a, b, 0, n),)) for a, b, n in sizes))).objective == 8
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
