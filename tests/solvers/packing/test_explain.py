"""Irreducible infeasible subsets, earlier packings as a start, and several banks: against brute force."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorstow.solvers.packing import (
    BanksPacking,
    BanksProblem,
    Body,
    Box,
    Conflict,
    PackingProblem,
    check_banks,
    check_packing,
    explain,
    load_bound,
    pack,
    pack_banks,
)
from tensorstow.solvers.packing.explain import only
from tensorstow.solvers.result import Status

from .counting import counted
from .instances import body, crowded, cut_rectangle


@st.composite
def problems(draw: st.DrawFn) -> PackingProblem:
    """Up to six bodies and a capacity that may be too small."""
    made: list[Body] = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 6))
        made.append(
            body(start, start + draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 2])))
        )
    return PackingProblem(tuple(made), capacity=draw(st.integers(1, 14)))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_subset_does_not_fit_and_is_irreducible(problem: PackingProblem) -> None:
    conflict = explain(problem, time_limit_s=60.0)
    fits = pack(problem, time_limit_s=60.0).status != Status.INFEASIBLE
    assert (conflict is None) == fits
    if conflict is not None:
        assert conflict.irreducible
        assert problem.capacity is not None
        assert conflict.needed > problem.capacity
        assert pack(only(problem, conflict.bodies), time_limit_s=60.0).status == Status.INFEASIBLE
        for left_out in conflict.bodies:
            rest = only(problem, [i for i in conflict.bodies if i != left_out])
            assert pack(rest, time_limit_s=60.0).solution is not None


@st.composite
def awkward(draw: st.DrawFn) -> PackingProblem:
    """Up to six bodies of one or two boxes, which may begin above their base; some aligned, at most one fixed."""
    made: list[Body] = []
    for _ in range(draw(st.integers(1, 6))):
        boxes: list[Box] = []
        for _ in range(draw(st.sampled_from([1, 1, 2]))):
            start, lo = draw(st.integers(0, 3)), draw(st.sampled_from([0, 0, 1, 2]))
            boxes.append(Box(start, start + draw(st.integers(1, 3)), lo, lo + draw(st.integers(1, 6))))
        made.append(Body(tuple(boxes), draw(st.sampled_from([1, 1, 2, 8]))))
    if draw(st.booleans()):
        made[0] = replace(made[0], alignment=1, fixed=draw(st.integers(0, 5)))
    return PackingProblem(tuple(made), capacity=draw(st.integers(1, 20)))


def irreducible(problem: PackingProblem, conflict: Conflict) -> bool:
    """Whether the bodies named do not fit, and do without any one of them."""
    rests = [only(problem, [i for i in conflict.bodies if i != left_out]) for left_out in conflict.bodies]
    return pack(only(problem, conflict.bodies), time_limit_s=60.0).status == Status.INFEASIBLE and all(
        pack(rest, time_limit_s=60.0).solution is not None for rest in rests
    )


@settings(max_examples=80, deadline=None)
@given(awkward())
@example(PackingProblem((body(0, 1, 2, fixed=3), body(0, 1, 4), body(0, 1, 4)), 8))
@example(PackingProblem(tuple(body(0, 1, n, a) for n, a in ((1, 8), (2, 1), (5, 8), (5, 8))), 12))
@example(PackingProblem((Body((Box(0, 1, 1, 2),)),) * 3, 3))
def test_the_subset_is_irreducible_whatever_the_bodies(problem: PackingProblem) -> None:
    conflict = explain(problem, time_limit_s=60.0)
    assert (conflict is None) == (pack(problem, time_limit_s=60.0).status != Status.INFEASIBLE)
    if conflict is not None:
        assert problem.capacity is not None
        assert conflict.needed > problem.capacity
        assert conflict.irreducible
        assert irreducible(problem, conflict)


def test_padding_alone_is_explained() -> None:
    problem = PackingProblem((*(body(0, 9, 5, alignment=8) for _ in range(4)), body(0, 9, 1, alignment=4)), 21)
    conflict = explain(problem)
    assert conflict is not None
    assert irreducible(problem, conflict)
    assert (len(conflict.bodies), conflict.irreducible) == (4, True)


def test_a_crowd_is_explained_by_its_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that only have sizes need no proof for each of them; and for others there is an end to proofs."""
    crowd = PackingProblem(tuple(body(0, 4, 1) for _ in range(2_000)), capacity=1_999)
    calls = counted(monkeypatch, "compact")
    conflict = explain(crowd)
    assert conflict is not None
    assert (len(conflict.bodies), conflict.needed, conflict.irreducible) == (2_000, 2_000, True)
    assert len(calls) < 10
    late = replace(crowd, bodies=(*crowd.bodies[1:], body(0, 4, 3, alignment=2)), capacity=2_000)
    calls.clear()
    conflict = explain(late, time_limit_s=0.0)
    assert conflict is not None
    assert (conflict.needed > 2_000, conflict.irreducible) == (True, False)
    assert len(calls) < 10


def test_fixed_bodies_are_not_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = tuple(body(0, 4, 2, fixed=2 * i) for i in range(300))
    calls = counted(monkeypatch, "check_packing")
    clash = explain(PackingProblem((*bodies, body(3, 5, 2, fixed=98)), 600))
    assert clash is not None
    assert (clash.bodies, clash.method, clash.irreducible) == ((49, 300), "fixed offsets", True)
    assert len(calls) < 310


def test_the_load_bound_names_the_fewest() -> None:
    problem = PackingProblem((body(0, 9, 2), body(0, 4, 3), body(3, 9, 6), body(5, 9, 5)), 10, ("a", "b", "c", "d"))
    conflict = explain(problem)
    assert conflict is not None
    assert (conflict.bodies, conflict.needed) == ((2, 3), 11)
    result = pack(problem, explained=True)
    assert result.status == Status.INFEASIBLE
    assert "13 bytes are live at one instant, the capacity is 10" in result.detail
    assert "these 2 bodies alone need 11 or more (load bound): 'c', 'd'" in result.detail


def test_fixed_bodies_that_collide_are_the_subset() -> None:
    problem = PackingProblem((body(0, 9, 1), body(0, 2, 4, fixed=3), body(1, 3, 3, fixed=5)), 99)
    conflict = explain(problem)
    assert conflict is not None
    assert conflict.bodies == (1, 2)
    with pytest.raises(ValueError, match="without a capacity"):
        explain(replace(problem, capacity=None))


@settings(max_examples=40, deadline=None)
@given(problems(), st.lists(st.integers(-1, 12), min_size=6, max_size=6))
def test_any_start_gives_a_right_packing(problem: PackingProblem, wished: list[int]) -> None:
    free = replace(problem, capacity=None)
    start = [None if w < 0 else w for w in wished[: len(problem.bodies)]]
    result = pack(free, start=start, time_limit_s=60.0)
    assert result.solution is not None
    assert check_packing(free, result.solution) == ()
    assert result.status == Status.OPTIMAL
    assert result.objective == pack(free, time_limit_s=60.0).objective


def test_a_good_start_is_kept_and_never_made_worse() -> None:
    problem = cut_rectangle(40, 3)
    first = pack(problem, time_limit_s=60.0).solution
    assert first is not None
    assert pack(problem, start=first.offsets, time_limit_s=0.0).solution == first
    loose = replace(problem, capacity=2 * first.peak)
    moved = tuple(offset + first.peak for offset in first.offsets)
    assert pack(loose, start=moved, time_limit_s=0.0).solution is not None
    assert pack(loose, start=moved, time_limit_s=0.0).solution.offsets == moved  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="1 offsets for 40 bodies"):
        pack(problem, start=[0])


def test_a_start_that_breaks_in_one_place_is_repaired_there() -> None:
    problem = PackingProblem(tuple(body(0, 4, 8) for _ in range(4)), capacity=32)
    result = pack(problem, start=[24, 16, 16, 0])
    assert result.solution is not None
    assert sum(a == b for a, b in zip(result.solution.offsets, (24, 16, 16, 0), strict=True)) == 3


def least_over_banks(bodies: tuple[Body, ...], banks: int) -> int:
    """Brute force: every assignment, each bank packed to its proven least."""
    best = None
    for chosen in itertools.product(range(banks), repeat=len(bodies)):
        peak = 0
        for bank in range(banks):
            part = PackingProblem(tuple(b for b, c in zip(bodies, chosen, strict=True) if c == bank))
            packed = pack(part, time_limit_s=60.0)
            assert packed.status == Status.OPTIMAL
            peak = max(peak, int(packed.objective or 0))
        best = peak if best is None else min(best, peak)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(5))
def test_two_banks_reach_the_least_peak(seed: int) -> None:
    rng = random.Random(seed)
    bodies = tuple(
        body(a, a + rng.randrange(1, 4), rng.randrange(1, 9), rng.choice((1, 2))) for a in rng.choices(range(4), k=5)
    )
    problem = BanksProblem(PackingProblem(bodies), (None, None))
    result = pack_banks(problem, time_limit_s=60.0)
    assert result.status == Status.OPTIMAL
    assert result.objective == least_over_banks(bodies, 2)


def test_banks_of_their_own_size_and_choice() -> None:
    bodies = PackingProblem((body(0, 4, 8), body(0, 4, 5), body(2, 5, 3), body(5, 9, 8)), ids=("a", "b", "c", "d"))
    result = pack_banks(BanksProblem(bodies, (8, 8), ((0,), (0, 1), (0, 1), (1,))))
    assert result.solution is not None
    assert result.solution.banks[1:3] == (1, 1)
    few = pack_banks(BanksProblem(bodies, (8, 7)))
    assert few.status == Status.INFEASIBLE
    assert "16 bytes are live at one instant, the banks hold 15 together" in few.detail
    low = pack_banks(BanksProblem(bodies, (16, 7), ((1,), (0, 1), (0, 1), (0, 1))))
    assert low.status == Status.INFEASIBLE
    assert "body 'a' reaches 8 bytes" in low.detail


def test_banks_of_a_crowd() -> None:
    bodies = PackingProblem(tuple(crowded(40, 1)))
    result = pack_banks(BanksProblem(bodies, (None, None, None)), time_limit_s=5.0)
    assert result.solution is not None
    assert result.bound is not None
    assert -(-load_bound(bodies) // 3) <= result.bound <= max(result.solution.peaks)


def test_the_checker_of_banks() -> None:
    problem = BanksProblem(PackingProblem((body(0, 2, 4), body(1, 3, 4))), (4, 9), ((0,), (1,)))
    assert check_banks(problem, BanksPacking((0, 1), (0, 5), (4, 9))) == ()
    assert "it may go to (1,)" in check_banks(problem, BanksPacking((0, 0), (0, 4), (8, 0)))[0]
    assert "capacity is 9" in check_banks(problem, BanksPacking((0, 1), (0, 6), (4, 10)))[0]


@pytest.mark.parametrize(
    ("capacities", "allowed", "message"),
    [((), (), "no banks"), ((-1,), (), "0 or more"), ((4,), ((1,),), "there are 1"), ((4,), ((0,), (0,)), "2 choices")],
)
def test_banks_that_are_none(capacities: tuple[int, ...], allowed: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BanksProblem(PackingProblem((body(0, 2, 4),)), capacities, allowed)
