"""Packing at the edges: long lives, no time limit, many parts, proofs that end a search, and the work they take."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tensorstow.solvers.packing import (
    BanksProblem,
    Body,
    Box,
    PackingProblem,
    check_banks,
    check_packing,
    explain,
    load_bound,
    pack,
    pack_banks,
)
from tensorstow.solvers.packing.compact import compact
from tensorstow.solvers.packing.exact import Search
from tensorstow.solvers.result import Status

from .counting import counted
from .instances import body, crowded, cut_rectangle


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was not to be called")


@pytest.mark.parametrize("most", [2**62, 9 * 10**18, 2**64, 10**30])
def test_lives_may_be_longer_than_64_bits_count(most: int) -> None:
    bodies = (body(-most, most, 4), body(-most, 0, 3), body(0, most, 5), body(most - 1, most, 2))
    result = pack(PackingProblem(bodies))
    assert result.status == Status.OPTIMAL
    assert result.objective == 11
    tight = cut_rectangle(30, 2)
    scaled = tuple(Body(tuple(Box(most * b.start, most * b.end, 0, b.hi) for b in p.boxes)) for p in tight.bodies)
    assert pack(PackingProblem(scaled, tight.capacity), time_limit_s=60.0).solution is not None


@pytest.mark.parametrize("time_limit_s", [math.inf, 1e12])
def test_the_search_may_have_all_the_time(time_limit_s: float) -> None:
    assert pack(cut_rectangle(60, 2), time_limit_s=time_limit_s).method.startswith("exact search")


def test_a_late_second_name_is_found_by_one_look_at_each() -> None:
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)  # pyright: ignore[reportUnknownVariableType]

    names = tuple(Name(f"b{i}") for i in range(400))
    with pytest.raises(ValueError, match="'b399' names two bodies"):
        PackingProblem(tuple(body(0, 1, 1) for _ in range(401)), ids=(*names, Name("b399")))
    assert compared < 4_000


@pytest.mark.parametrize("count", [2, 5])
def test_alike_bodies_may_begin_above_their_base(count: int) -> None:
    problem = PackingProblem((Body((Box(0, 1, 3, 5),)),) * count)
    c = compact(problem)
    assert Search(c).run(3 + 2 * count, math.inf, rounds=1).status == Status.FEASIBLE
    assert Search(c).run(2 + 2 * count, math.inf, rounds=1).status == Status.INFEASIBLE


def test_alike_bodies_that_do_not_fit_are_all_named() -> None:
    problem = PackingProblem((Body((Box(0, 1, 1, 2),)),) * 3, capacity=3)
    conflict = explain(problem)
    assert conflict is not None
    assert (conflict.bodies, conflict.needed, conflict.irreducible) == ((0, 1, 2), 4, True)


def many_parts(parts: int) -> tuple[Body, ...]:
    """Pairs of bodies that share an instant with each other alone."""
    return tuple(b for i in range(parts) for b in (body(3 * i, 3 * i + 2, 3), body(3 * i + 1, 3 * i + 3, 4)))


def test_thousands_of_parts_are_packed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PackingProblem(many_parts(3_000))
    calls = counted(monkeypatch, "compact")
    result = pack(problem)
    assert result.status == Status.OPTIMAL
    assert result.objective == 7
    assert len(calls) < 10


def test_a_hard_part_among_thousands_is_searched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = cut_rectangle(60, 2)
    later = tuple(
        Body((Box(b.boxes[0].start + 10**6, b.boxes[0].end + 10**6, 0, b.boxes[0].hi),)) for b in tight.bodies
    )
    problem = PackingProblem((*later, *many_parts(1_000)), tight.capacity)
    calls = counted(monkeypatch, "compact")
    result = pack(problem, time_limit_s=60.0)
    assert result.solution is not None
    assert result.method.startswith("exact search")
    assert check_packing(problem, result.solution) == ()
    assert len(calls) < 15


@pytest.mark.parametrize("with_start", [False, True])
def test_parts_of_every_kind_together(with_start: bool) -> None:
    """Alignments, fixed bodies and several boxes in parts that are first fitted side by side."""
    bodies: list[Body] = []
    for k in range(30):
        at, few = 100 * k, crowded(6, k, at=100 * k)
        bodies += [Body(b.boxes, alignment=(1, 8, 4)[k % 3]) for b in few]
        bodies.append(body(at + 5, at + 9, 7, fixed=3 + k if k % 4 == 0 else None))
        bodies.append(Body((Box(at + 1, at + 3, 2, 9), Box(at + 7, at + 12, 0, 12)), alignment=2))
    problem = PackingProblem(tuple(bodies))
    start = [100 * (i % 9) for i in range(len(bodies))] if with_start else None
    result = pack(problem, start=start, time_limit_s=10.0)
    assert result.solution is not None
    assert check_packing(problem, result.solution) == ()
    alone = [pack(PackingProblem(tuple(bodies[k : k + 8])), time_limit_s=10.0) for k in range(0, len(bodies), 8)]
    assert all(found.status == Status.OPTIMAL for found in alone)
    assert result.objective == max(found.objective or 0 for found in alone)
    assert result.status == Status.OPTIMAL


def stuck(at: int) -> tuple[Body, Body]:
    """Two bodies of 12 bytes together, which need 15: one is fixed at 3, the other fits above it alone."""
    return body(at, at + 1, 2, fixed=3), body(at, at + 1, 10)


def test_a_part_that_cannot_fit_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PackingProblem((*stuck(0), *stuck(5), *stuck(9)), 12)
    assert load_bound(problem) == 12
    monkeypatch.setattr("tensorstow.solvers.packing.improve._cpsat", refuse)
    calls = counted(monkeypatch, "_compiled")
    result = pack(problem, explained=True)
    assert result.status == Status.INFEASIBLE
    assert len(calls) == 1
    assert "these 2 bodies alone need 13 or more (exact search): 0, 1" in result.detail


def test_padding_of_one_part_may_exceed_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a body that is not aligned no padding counts; within its own part it does."""
    aligned = tuple(body(10, 11, 5, alignment=8) for _ in range(3))
    problem = PackingProblem((body(0, 1, 7), *aligned), 20)
    assert load_bound(problem) == 15
    monkeypatch.setattr("tensorstow.solvers.packing.improve.improve", refuse)
    result = pack(problem, explained=True)
    assert result.status == Status.INFEASIBLE
    assert result.bound == 21
    assert "these 3 bodies alone need 21 or more (load bound): 1, 2, 3" in result.detail


@pytest.mark.parametrize("nbytes", [4, 0])
@pytest.mark.parametrize("capacities", [(None, None), (9, 9)])
def test_banks_refuse_a_fixed_body_off_its_alignment(nbytes: int, capacities: tuple[int | None, ...]) -> None:
    problem = BanksProblem(PackingProblem((body(0, 1, nbytes, alignment=2, fixed=3),), ids=("a",)), capacities)
    result = pack_banks(problem)
    assert result.status == Status.INFEASIBLE
    assert result.detail == "body 'a' at 3 is not aligned to 2"


def test_banks_that_all_have_a_capacity_are_not_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = PackingProblem(tuple(body(0, 4, 4) for _ in range(3)))
    for name in ("_repack", "_together"):
        monkeypatch.setattr(f"tensorstow.solvers.packing.banks.{name}", refuse)
    result = pack_banks(BanksProblem(bodies, (20, 20)))
    assert (result.status, result.bound) == (Status.FEASIBLE, 6)
    with pytest.raises(AssertionError, match="not to be called"):
        pack_banks(BanksProblem(bodies, (20, None)))


def test_what_no_deal_brings_into_the_banks_is_searched_for() -> None:
    def split(*sizes: int) -> BanksProblem:
        return BanksProblem(PackingProblem(tuple(body(0, 4, n) for n in sizes)), (9, 9))

    result = pack_banks(split(5, 4, 3, 3, 3), time_limit_s=60.0)
    assert result.solution is not None
    assert result.method == "CP-SAT"
    assert check_banks(split(5, 4, 3, 3, 3), result.solution) == ()
    assert (result.status, result.objective, result.bound) == (Status.OPTIMAL, 9, 9)
    assert pack_banks(split(5, 5, 5, 3), time_limit_s=60.0).status == Status.INFEASIBLE
