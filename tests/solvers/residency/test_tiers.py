"""Residency on N tiers: with two it is the residency problem; with more its bound is below every timeline found."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorstow.solvers.linear import ENGINES, LinearAnswer, LinearProgram
from tensorstow.solvers.residency import Gap, check_residency, solve_residency
from tensorstow.solvers.residency.tiers import (
    TieredProblem,
    TieredSolution,
    TierLink,
    compulsory_tiers_bound,
    cut_problem,
    solve_tiers,
)
from tensorstow.solvers.result import Result, Status

MS = 10**6


def chain_of_links(rates: list[float], *, channel: str | None = None) -> tuple[TierLink, ...]:
    """Links both ways between neighbours; those down are twice as fast."""
    up = [TierLink(k + 1, k, rate, channel) for k, rate in enumerate(rates)]
    return (*up, *(TierLink(k, k + 1, 2 * rate, channel) for k, rate in enumerate(rates)))


@st.composite
def problems(draw: st.DrawFn, tiers: int = 3, *, dirty: bool = True, channel: str | None = None) -> TieredProblem:
    """Up to 6 steps and 4 items, periodic; capacities from the smallest feasible up."""
    steps = draw(st.integers(1, 6))
    gaps: list[Gap] = []
    base = [0] * steps
    for item in range(draw(st.integers(0, 4))):
        nbytes, clean = draw(st.integers(1, 8)), not dirty or draw(st.booleans())
        uses = sorted(draw(st.sets(st.integers(0, steps - 1), min_size=1, max_size=3)))
        for t in uses:
            base[t] += nbytes
        gaps += [Gap(item, nbytes, a, b, clean) for a, b in itertools.pairwise(uses)]
        if clean:
            gaps.append(Gap(item, nbytes, uses[-1], uses[0] + steps, True))
    durations = tuple(draw(st.integers(0, 5)) * MS for _ in range(steps))
    fast = max(base) + draw(st.integers(0, 10))
    middle = [draw(st.integers(0, 8)) for _ in range(tiers - 2)]
    rates = [1000.0 * draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in range(tiers - 1)]
    return TieredProblem(
        durations, tuple(base), tuple(gaps), (fast, *middle, None), chain_of_links(rates, channel=channel), True
    )


def solved(problem: TieredProblem, engine: str = "highs") -> tuple[Result[TieredSolution], float, float]:
    """(result, objective, bound), every side checked by the checker of two tiers."""
    result = solve_tiers(problem, engine=engine)
    assert result.status == Status.OPTIMAL, result
    assert result.solution is not None
    assert result.objective is not None
    assert result.bound is not None
    for cut, side in zip(problem.cuts, result.solution.sides, strict=True):
        assert check_residency(cut_problem(problem, cut), side) == ()
        assert side.stall_ns == result.solution.stall_ns
    for g in range(len(problem.gaps)):
        assert sum(result.solution.resting(g)) == pytest.approx(1.0, abs=1e-6)
    return result, float(result.objective), float(result.bound)


@settings(max_examples=60, deadline=None)
@given(problems(2), st.booleans())
def test_two_tiers_are_the_residency_problem(problem: TieredProblem, shared: bool) -> None:
    if shared:
        problem = replace(problem, links=tuple(replace(k, channel="bus") for k in problem.links))
    _, _, bound = solved(problem)
    assert cut_problem(problem, 1).shared_channel == shared
    assert bound == pytest.approx(alone(problem, 1), rel=1e-6, abs=1.0)


@settings(max_examples=40, deadline=None)
@given(problems(3))
def test_three_tiers_are_no_faster_than_any_two_of_their_sides(problem: TieredProblem) -> None:
    _, objective, bound = solved(problem)
    for cut in problem.cuts:
        assert objective >= alone(problem, cut) * (1 - 1e-9)
    assert compulsory_tiers_bound(problem) <= bound


@settings(max_examples=30, deadline=None)
@given(problems(3))
def test_a_middle_tier_that_holds_everything_is_a_bottom(problem: TieredProblem) -> None:
    everything = sum(gap.nbytes for gap in problem.gaps) + max(problem.base_nbytes)
    roomy = replace(problem, capacities_nbytes=(problem.capacities_nbytes[0], everything, None))
    _, _, bound = solved(roomy)
    assert bound == pytest.approx(alone(problem, 1), rel=1e-6, abs=1.0)


@settings(max_examples=30, deadline=None)
@given(problems(4), st.integers(1, 4))
def test_more_room_in_a_middle_tier_is_never_slower(problem: TieredProblem, more: int) -> None:
    _, objective, _ = solved(problem)
    fast, second, *rest = problem.capacities_nbytes
    assert second is not None
    _, _, bound = solved(replace(problem, capacities_nbytes=(fast, second + more, *rest)))
    assert bound <= objective * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(problems(3, channel="bus"))
def test_taking_turns_is_never_faster(problem: TieredProblem) -> None:
    apart = replace(problem, links=tuple(replace(k, channel=None) for k in problem.links))
    _, objective, bound = solved(problem)
    _, _, other = solved(apart)
    assert objective >= other * (1 - 1e-9)
    assert compulsory_tiers_bound(problem) <= bound


# Its steps take no time and the fast tier has no room to spare: glop's answer is off by its tolerance, in nanoseconds.
NO_TIME = TieredProblem(
    (0, 0), (1, 0), (Gap(0, 1, 0, 2, True),), (1, 0, None), chain_of_links([1000.0, 500.0]), periodic=True
)


@settings(max_examples=15, deadline=None)
@given(problems(3))
@example(NO_TIME)
def test_engines_agree(problem: TieredProblem) -> None:
    _, highs, _ = solved(problem)
    _, glop, _ = solved(problem, "glop")
    assert glop == pytest.approx(highs, rel=1e-6, abs=1.0)


def test_another_engine_is_asked_where_one_finds_a_program_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HiGHS does where a step fills the fast tier to the byte; what is infeasible stays so."""

    def wrong(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
        del program, time_limit_s
        return LinearAnswer(Status.INFEASIBLE, None, None, detail="out of tolerance")

    monkeypatch.setitem(ENGINES, "wrong", wrong)
    problem = streamed(30, ssd_rate=100.0)
    assert solved(problem, "wrong")[1:] == solved(problem, "glop")[1:]
    monkeypatch.setitem(ENGINES, "glop", wrong)
    assert solve_tiers(problem, engine="wrong").status == Status.INFEASIBLE


def streamed(middle: int | None, *, ssd_rate: float = 1000.0) -> TieredProblem:
    """Four weights of 10 bytes, used one after another for 10 ms each; the fast tier holds two; 1 byte a ms up."""
    gaps = tuple(Gap(i, 10, i, i + 4, True) for i in range(4))
    links = (TierLink(1, 0, 10_000.0), TierLink(2, 1, ssd_rate), TierLink(0, 1, 10_000.0))
    return TieredProblem((10 * MS,) * 4, (10,) * 4, gaps, (20, middle, None), links, True)


def alone(problem: TieredProblem, cut: int) -> float:
    bound = solve_residency(cut_problem(problem, cut)).bound
    assert bound is not None
    return float(bound)


def test_what_neither_fast_nor_middle_tier_holds_comes_over_the_slow_link() -> None:
    """With 30 bytes in the middle only the upper link matters; with a slow lower one, only that, in both directions."""
    assert solved(streamed(30, ssd_rate=100.0))[2] == pytest.approx(40 * MS, rel=1e-6)
    slow = streamed(10, ssd_rate=100.0)
    result, _, bound = solved(slow)
    assert bound == pytest.approx(alone(slow, 2), rel=1e-6)
    assert bound > 100 * MS  # 10 bytes at least are in neither, and never all of them while their own step runs
    assert solved(streamed(0, ssd_rate=100.0))[2] > bound
    assert result.solution is not None
    below = sum(10 * result.solution.resting(g)[2] for g in range(4))
    assert below >= 10.0 - 1e-5


def test_a_link_past_the_middle_tier_counts_for_both_cuts() -> None:
    """A second way of the same rate from the bottom to the top is like a link twice as fast, unless they take turns."""
    slow = streamed(10, ssd_rate=100.0)
    direct = replace(slow, links=(*slow.links, TierLink(2, 0, 100.0)))
    assert solved(direct)[2] == pytest.approx(solved(streamed(10, ssd_rate=200.0))[2], rel=1e-6)
    both = tuple(replace(k, channel="c") for k in (slow.links[1], TierLink(2, 0, 100.0)))
    turns = replace(slow, links=(slow.links[0], slow.links[2], *both))
    assert solved(turns)[2] == pytest.approx(solved(slow)[2], rel=1e-6)


def test_spills_go_on_to_the_bottom_where_the_middle_tier_is_full() -> None:
    """30 bytes live over a step that fills the fast tier; the middle one takes 10 of them, the bottom 20, both ways."""
    gaps = tuple(Gap(i, 10, 0, 2, False) for i in range(3))
    links = chain_of_links([10_000.0, 1000.0])
    problem = TieredProblem((MS, MS, MS), (30, 40, 30), gaps, (40, 10, None), links, True)
    result, _, bound = solved(problem)
    # Up 20 bytes at 1 byte a ms and down 20 at 2 a ms, one after another, beside what the steps themselves hide.
    assert bound >= 30 * MS - 3 * MS
    assert result.solution is not None
    assert sum(10 * result.solution.resting(g)[2] for g in range(3)) == pytest.approx(20.0, abs=1e-4)


def test_what_cannot_be() -> None:
    problem = streamed(10)
    assert solve_tiers(replace(problem, capacities_nbytes=(9, 10, None))).status == Status.INFEASIBLE
    full = solve_tiers(replace(problem, capacities_nbytes=(20, 10, 9)))
    assert full.status == Status.INFEASIBLE
    assert "40 bytes live at step 0, all tiers together hold 39" in full.detail
    apart = replace(problem, links=problem.links[:1])
    assert solve_tiers(apart).status == Status.INFEASIBLE
    assert compulsory_tiers_bound(apart) == float("inf")
    with pytest.raises(ValueError, match="1 tiers"):
        replace(problem, capacities_nbytes=(20,))
    with pytest.raises(ValueError, match="tier 1 has no capacity"):
        replace(problem, capacities_nbytes=(20, None, None))
    with pytest.raises(ValueError, match="joins tiers 3 and 0"):
        replace(problem, links=(TierLink(3, 0, 1.0),))
    with pytest.raises(ValueError, match="engine 'none'"):
        solve_tiers(problem, engine="none")


def test_nothing_to_decide() -> None:
    empty = TieredProblem((), (), (), (10, 10, None), (), True)
    assert solve_tiers(empty).bound == 0.0
    result = solve_tiers(TieredProblem((5,), (3,), (), (10, 10, None), (), True))
    assert (result.status, result.bound) == (Status.OPTIMAL, 5.0)


@settings(max_examples=40, deadline=None)
@given(problems(3, dirty=False), st.data())
def test_the_bound_is_below_stagings_run_by_hand(problem: TieredProblem, data: st.DataObject) -> None:
    """Any choice of whole gaps, each absent item staged at its deadline with nothing overlapped, where it fits."""
    _, _, bound = solved(problem)
    fast, middle, _ = problem.capacities_nbytes
    assert fast is not None
    assert middle is not None
    rest = [data.draw(st.integers(0, 2)) for _ in problem.gaps]
    steps = len(problem.durations_ns)
    up = {k.origin: Fraction(k.bytes_per_s) for k in problem.links if k.target < k.origin}
    total = Fraction(sum(problem.durations_ns))
    for t in range(steps):
        over = [g for g, gap in enumerate(problem.gaps) if cut_problem(problem, 1).covers(gap, t)]
        due = [g for g, gap in enumerate(problem.gaps) if gap.end % steps == t and rest[g]]
        held = problem.base_nbytes[t] + sum(problem.gaps[g].nbytes for g in over if rest[g] == 0)
        below = sum(problem.gaps[g].nbytes for g in over if rest[g] == 1)
        staged = max((problem.gaps[g].nbytes for g in due if rest[g] == 2), default=0)
        resting = sum(problem.gaps[g].nbytes for g in due if rest[g] == 1)
        if held > fast or below + resting + staged > middle:
            return  # not a plan
        for g in due:
            total += sum(problem.gaps[g].nbytes * 10**9 / up[k] for k in range(1, rest[g] + 1))
    assert Fraction(bound) <= total
