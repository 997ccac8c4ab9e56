"""Packing against brute force, its bound, its checker, and how it behaves at the edges."""

from __future__ import annotations

import csv
import itertools
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.packing import Body, Box, Packing, PackingProblem, check_packing, load_bound, pack
from tensorstow.solvers.packing.compact import compact, components
from tensorstow.solvers.packing.greedy import conflicts, order_by, place
from tensorstow.solvers.result import Result, Status

DATA = Path(os.environ.get("TENSORSTOW_DATA", Path(__file__).parents[4] / "shared" / "data")) / "packing"


def body(start: int, end: int, nbytes: int, alignment: int = 1, fixed: int | None = None) -> Body:
    return Body((Box(start, end, 0, nbytes),), alignment, fixed)


@st.composite
def problems(draw: st.DrawFn, most: int = 5) -> PackingProblem:
    """Up to `most` bodies of one or two boxes, some aligned, at most one fixed."""
    bodies: list[Body] = []
    for _ in range(draw(st.integers(0, most))):
        start, span, nbytes = draw(st.integers(0, 6)), draw(st.integers(0, 5)), draw(st.integers(0, 6))
        boxes = [Box(start, start + span, 0, nbytes)]
        if draw(st.booleans()):
            lo = draw(st.integers(0, 2))
            again = draw(st.integers(0, 8))
            boxes.append(Box(again, again + draw(st.integers(0, 3)), lo, lo + draw(st.integers(0, 4))))
        bodies.append(Body(tuple(boxes), draw(st.sampled_from([1, 1, 2, 4]))))
    if bodies and draw(st.booleans()):
        bodies[0] = replace(bodies[0], alignment=1, fixed=draw(st.integers(0, 3)))
    return PackingProblem(tuple(bodies))


def brute_force(problem: PackingProblem) -> int:
    """Least peak over first fit in all orders, which includes an optimum: push all bodies down, take them by base."""
    c = compact(problem)
    meets = conflicts(c)
    if not len(c):
        return 0
    orders = (np.array(order, dtype=np.int64) for order in itertools.permutations(range(len(c))))
    return min(place(c, order, meets, "").peak * c.unit for order in orders)


def packed(problem: PackingProblem, time_limit_s: float = 5.0) -> Result[Packing]:
    result = pack(problem, time_limit_s=time_limit_s)
    assert result.solution is not None, result
    assert check_packing(problem, result.solution) == ()
    assert result.bound is not None
    assert load_bound(problem) <= result.bound <= result.solution.peak == result.objective
    return result


@settings(max_examples=35, deadline=None)
@given(problems())
def test_least_peak(problem: PackingProblem) -> None:
    result = packed(problem)
    assert result.status == Status.OPTIMAL
    assert result.objective == brute_force(problem)


@settings(max_examples=35, deadline=None)
@given(problems(), st.integers(0, 20))
def test_capacity(problem: PackingProblem, capacity: int) -> None:
    limited = replace(problem, capacity=capacity)
    result, least = pack(limited), brute_force(problem)
    if capacity < least:
        assert result.status == Status.INFEASIBLE, result
    else:
        assert result.solution is not None, (result, least)
        assert check_packing(limited, result.solution) == ()


@settings(max_examples=100, deadline=None)
@given(problems(most=8))
def test_first_fit_is_valid_in_every_order(problem: PackingProblem) -> None:
    c = compact(problem)
    for name, order in order_by(c).items() if len(c) else ():
        for meets in (conflicts(c), None):
            found = place(c, order, meets, name)
            offsets = [b.fixed or 0 for b in problem.bodies]
            for index, base in zip(c.bodies, found.bases, strict=True):
                offsets[index] = int(base) * c.unit
            assert check_packing(problem, Packing(tuple(offsets), found.peak * c.unit)) == ()


def test_alignment_counts_in_the_bound() -> None:
    # Three bodies of 5 at multiples of 8: the lower two occupy 8 each, the highest only its 5.
    problem = PackingProblem(tuple(body(0, 1, 5, alignment=8) for _ in range(3)))
    assert load_bound(problem) == 21
    assert packed(problem).status == Status.OPTIMAL


def test_overlapping_boxes_of_one_body_count_once() -> None:
    problem = PackingProblem((Body((Box(0, 4, 0, 10), Box(2, 6, 0, 10), Box(2, 3, 5, 12))),))
    assert load_bound(problem) == 12
    assert packed(problem).objective == 12


def test_independent_parts_are_told_apart() -> None:
    problem = PackingProblem((body(0, 3, 5), body(2, 4, 5), body(4, 6, 5), body(5, 7, 5)))
    assert sorted(map(sorted, components(compact(problem)))) == [[0, 1], [2, 3]]
    joined = PackingProblem((*problem.bodies, Body((Box(0, 1, 0, 1), Box(6, 7, 0, 1)))))
    assert len(components(compact(joined))) == 1


def test_large_integers() -> None:
    unit = 2**61 + 1
    problem = PackingProblem(tuple(body(a, b, n * unit) for a, b, n in ((0, 2, 3), (1, 4, 3), (3, 6, 3), (0, 6, 2))))
    assert packed(problem).objective == 8 * unit
    odd = PackingProblem(tuple(body(0, 9, 2**62 + k, alignment=64) for k in range(5)))
    assert packed(odd).gap == 0


def test_fixed() -> None:
    problem = PackingProblem((body(0, 2, 4, fixed=3), body(1, 3, 3), body(1, 3, 1)))
    assert packed(problem).objective == 8
    clash = PackingProblem((body(0, 2, 4, fixed=3), body(1, 3, 3, fixed=5)), ids=("a", "b"))
    result = pack(clash)
    assert result.status == Status.INFEASIBLE
    assert "'a'" in result.detail
    assert "[5, 7)" in result.detail
    assert pack(PackingProblem((body(0, 1, 4, alignment=4, fixed=2),))).status == Status.INFEASIBLE


def test_empty() -> None:
    assert packed(PackingProblem(())).objective == 0
    assert packed(PackingProblem((body(0, 5, 0), body(3, 3, 9), Body(())))).objective == 0


def test_infeasible_capacity_says_why() -> None:
    result = pack(PackingProblem((body(0, 2, 4), body(1, 3, 4)), capacity=7))
    assert result.status == Status.INFEASIBLE
    assert "8 bytes are live at one instant, the capacity is 7" in result.detail


def hard(bodies: int, seed: int) -> PackingProblem:
    rng = random.Random(seed)
    return PackingProblem(
        tuple(body(a, a + rng.randrange(1, 60), rng.randrange(1, 100)) for a in rng.choices(range(200), k=bodies))
    )


def test_time_limit_is_an_answer() -> None:
    problem = hard(120, 0)
    result = packed(problem, time_limit_s=0.0)
    assert result.status in (Status.FEASIBLE, Status.OPTIMAL)
    tight = pack(replace(problem, capacity=load_bound(problem)), time_limit_s=0.0)
    assert tight.status in (Status.UNKNOWN, Status.FEASIBLE, Status.OPTIMAL)


def test_same_answer_twice() -> None:
    problem = hard(40, 1)
    first, second = (pack(problem, seed=3, workers=1, time_limit_s=30.0) for _ in range(2))
    assert first.solution == second.solution


def test_thousands_are_fast() -> None:
    problem = hard(2000, 2)
    c = compact(problem)
    began = time.process_time()
    meets = conflicts(c)
    place(c, order_by(c)["size"], meets, "")
    assert time.process_time() - began < 2.0  # about 0.3 s alone


@pytest.mark.parametrize(
    ("offsets", "peak", "message"),
    [
        ((0, 2), 6, "both occupy addresses [2, 4) at times [1, 2)"),
        ((0, -4), 4, "negative offset"),
        ((0, 5), 9, "not aligned to 2"),
        ((0, 4), 9, "peak 9 is stated, 8 is reached"),
        ((0, 6), 10, "the capacity is 9"),
        ((0,), 4, "1 offsets for 2 bodies"),
    ],
)
def test_checker_finds(offsets: tuple[int, ...], peak: int, message: str) -> None:
    problem = PackingProblem((body(0, 2, 4), body(1, 3, 4, alignment=2)), capacity=9)
    assert any(message in line for line in check_packing(problem, Packing(offsets, peak)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackingProblem((body(3, 1, 4),)), "ends at 1, before its start 3"),
        (lambda: PackingProblem((body(0, 1, -4),)), "not 0 <= lo <= hi"),
        (lambda: PackingProblem((body(0, 1, 4, alignment=0),)), "alignment 0"),
        (lambda: PackingProblem((body(0, 1, 4), body(0, 1, 4)), ids=("a", "a")), "names two bodies"),
    ],
)
def test_wrong_problems(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("name", "within"), [("resnet50.csv", 1.01), ("input.12.csv", 1.0)])
def test_published_instances(name: str, within: float) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set TENSORSTOW_DATA to the folder that holds packing/")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    problem = PackingProblem(
        tuple(body(int(r["lower"]), int(r["upper"]), int(r["size"])) for r in rows), ids=tuple(r["id"] for r in rows)
    )
    result = packed(problem, time_limit_s=2.0)
    assert result.objective is not None
    assert result.objective <= within * load_bound(problem)
