"""The sweep that verifies every packing against the quadratic checker, and fixed bodies beside the exact search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.packing import Body, Box, Packing, PackingProblem, check_packing, load_bound, pack
from tensorstow.solvers.packing.compact import compact
from tensorstow.solvers.packing.disjoint import collision, verify_packing
from tensorstow.solvers.packing.exact import Search
from tensorstow.solvers.packing.fit import hottest, with_fixed
from tensorstow.solvers.packing.problem import peak_of

from .counting import counted
from .instances import cut_rectangle


@st.composite
def packings(draw: st.DrawFn) -> tuple[PackingProblem, Packing]:
    """Bodies of up to three boxes, which may overlap each other, at offsets that may be wrong in any way."""
    bodies: list[Body] = []
    offsets: list[int] = []
    for _ in range(draw(st.integers(0, 5))):
        boxes: list[Box] = []
        for _ in range(draw(st.integers(0, 3))):
            start, lo = draw(st.integers(0, 6)), draw(st.integers(0, 3))
            boxes.append(Box(start, start + draw(st.integers(0, 3)), lo, lo + draw(st.integers(0, 4))))
        offset = draw(st.integers(-1, 16))
        fixed = draw(st.sampled_from([None, None, None, max(0, offset), 2]))
        bodies.append(Body(tuple(boxes), draw(st.sampled_from([1, 1, 1, 2])), fixed))
        offsets.append(offset)
    problem = PackingProblem(tuple(bodies), draw(st.sampled_from([None, None, 12])))
    return problem, Packing(tuple(offsets), peak_of(problem, tuple(offsets)) + draw(st.sampled_from([0, 0, 0, 1])))


@settings(max_examples=150, deadline=None)
@given(packings())
def test_the_sweep_agrees_with_the_checker(made: tuple[PackingProblem, Packing]) -> None:
    problem, packing = made
    assert verify_packing(problem, packing) == check_packing(problem, packing)


@settings(max_examples=150, deadline=None)
@given(packings())
def test_a_collision_is_between_two_bodies(made: tuple[PackingProblem, Packing]) -> None:
    problem, packing = made
    found = collision(problem.bodies, packing.offsets)
    both = [line for line in check_packing(problem, packing) if "both occupy" in line]
    assert (found is None) == (not both)
    if found is not None:
        assert any(f"bodies {found[0]} and {found[1]} both" in line for line in both)


def test_a_packing_is_verified_without_comparing_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = cut_rectangle(40, 1, dropped=0.2)
    calls = counted(monkeypatch, "check_packing")
    assert pack(problem, time_limit_s=60.0).solution is not None
    assert not calls


def far_and_fixed() -> PackingProblem:
    """A full rectangle, of which one piece, in later times of little load, may lie at one address alone: it is where a
    packing of the rectangle turned upside down has it, and fixed bodies are everywhere else."""
    unit, height, end = 1024, 1024, 16 * 60
    pieces = list(cut_rectangle(60, 2).bodies)
    c = compact(PackingProblem(tuple(pieces)))
    found = Search(c).run(height * unit // c.unit, math.inf, most_nodes=60_000).bases
    assert found is not None
    tops = [(int(found[i]) * c.unit // unit, p.boxes[0].hi // unit) for i, p in enumerate(pieces)]
    late = [i for i, p in enumerate(pieces) if p.boxes[0].end == end]
    which = max(late, key=lambda i: abs(height - 2 * tops[i][0] - tops[i][1]))
    base, size = tops[which]
    slot = height - base - size
    assert abs(slot - base) >= size, "turned upside down it lies somewhere else"
    bodies: list[Body] = []
    now = end
    for _ in range(180):  # little load, and yet more than beside the fixed bodies
        bodies.append(Body(tuple(Box(now + k, now + k + 1, 0, 8 * unit) for k in range(10))))
        now += 10
    for at in (*range(0, slot - 3, 4), *range(slot + size, height - 3, 4)):
        bodies.append(Body((Box(now, now + 1, 0, 4 * unit),), fixed=at * unit))
        now += 1
    box = pieces[which].boxes[0]
    pieces[which] = Body((Box(box.start, now, 0, box.hi),))
    return PackingProblem((*pieces, *bodies))


def test_bodies_that_are_packed_first_keep_off_what_is_fixed() -> None:
    problem = far_and_fixed()
    result = pack(problem, time_limit_s=60.0)
    assert result.solution is not None
    assert check_packing(problem, result.solution) == ()
    assert result.objective == load_bound(problem)
    assert "where it is full" in result.method


def test_the_fixed_bodies_beside_others_are_those_that_live_with_them() -> None:
    boxes = ((0, 4, None), (3, 5, 9), (4, 6, 20), (5, 9, None), (8, 9, 30), (9, 12, 40))
    c = compact(PackingProblem(tuple(Body((Box(a, b, 0, 3),), fixed=at) for a, b, at in boxes)))
    assert with_fixed(c, np.array([0])).tolist() == [0, 1]
    assert with_fixed(c, np.array([3])).tolist() == [3, 2, 4]
    assert sorted(with_fixed(c, hottest(c, 99)).tolist()) == list(range(6))


def test_a_wrong_packing_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PackingProblem(tuple(Body((Box(0, 4, 0, 8),)) for _ in range(4)))

    def all_at_zero(*_: object, **__: object) -> np.ndarray:
        return np.zeros(4, dtype=np.int64)

    monkeypatch.setattr("tensorstow.solvers.packing.greedy.first_fit", all_at_zero)
    with pytest.raises(AssertionError, match="both occupy"):
        pack(problem, time_limit_s=0.0)
