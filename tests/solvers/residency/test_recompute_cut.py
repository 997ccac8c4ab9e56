"""Minimum cuts against every subset, on small random problems."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.residency.recompute_cut import CutProblem, cheapest_makers


@st.composite
def problems(draw: st.DrawFn) -> CutProblem:
    """Makers in a row; each makes one or two values and reads values made before; some values have no maker."""
    hold: list[int | None] = [draw(st.integers(0, 9)) for _ in range(draw(st.integers(1, 2)))]
    maker = [-1] * len(hold)
    price: list[int] = []
    reads: list[tuple[int, ...]] = []
    for m in range(draw(st.integers(1, 6))):
        reads.append(tuple(draw(st.lists(st.sampled_from(range(len(hold))), max_size=3, unique=True))))
        price.append(draw(st.integers(0, 9)))
        for _ in range(draw(st.integers(1, 2))):
            hold.append(draw(st.one_of(st.none(), st.integers(0, 9))))
            maker.append(m)
    needed = tuple(draw(st.lists(st.sampled_from(range(len(hold))), max_size=4, unique=True)))
    return CutProblem(tuple(hold), tuple(maker), tuple(price), tuple(reads), needed)


def total(problem: CutProblem, again: frozenset[int]) -> float:
    """The price when exactly these makers are called again and the rest of what they and the needs ask for is held."""
    asked = set(problem.needed).union(*(problem.reads[m] for m in again))
    held = [problem.hold[v] for v in asked if problem.maker[v] not in again]
    return float("inf") if None in held else sum(problem.price[m] for m in again) + sum(h for h in held if h)


@settings(deadline=None, max_examples=150)
@given(problems())
def test_the_cut_is_the_cheapest_of_all_subsets(problem: CutProblem) -> None:
    makers = range(len(problem.price))
    subsets = (frozenset(m for m in makers if bits[m]) for bits in product((0, 1), repeat=len(problem.price)))
    best = min(total(problem, again) for again in subsets)
    value, again = cheapest_makers(problem)
    assert value == best == total(problem, again)


def test_dear_memory_is_bought_with_calls() -> None:
    chain = CutProblem((0, 5, 7), (-1, 0, 1), (2, 4), ((0,), (1,)), (1, 2))
    assert cheapest_makers(chain) == (6, frozenset({0, 1}))
    cheap = CutProblem((0, 1, 1), (-1, 0, 1), (2, 4), ((0,), (1,)), (1, 2))
    assert cheapest_makers(cheap) == (2, frozenset())


def test_prices_may_be_those_of_terabytes() -> None:
    dear = 10**9 << 40
    assert cheapest_makers(CutProblem((dear, dear), (-1, 0), (5,), ((0,),), (1,))) == (dear, frozenset())
    assert cheapest_makers(CutProblem((0, dear), (-1, 0), (5,), ((0,),), (1,))) == (5, frozenset({0}))


def test_what_can_be_had_in_no_way_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither held nor made again"):
        cheapest_makers(CutProblem((None,), (-1,), (), (), (0,)))
    with pytest.raises(ValueError, match="value 0"):
        CutProblem((-1,), (-1,), (), (), (0,))
    with pytest.raises(ValueError, match="maker 0"):
        CutProblem((1,), (0,), (1,), ((4,),), (0,))
