"""The compiled first fit on hundreds of bodies, whose boxes lie on shelves of many levels: it is the first fit."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.packing import Body, Box, PackingProblem
from tensorstow.solvers.packing.compact import Compact, compact
from tensorstow.solvers.packing.fit import large_orders, place_compiled
from tensorstow.solvers.packing.greedy import conflicts, place
from tensorstow.solvers.packing.shelves import make_shelves


def mixed(bodies: int, seed: int) -> PackingProblem:
    """Bodies of one to three boxes, some aligned, some fixed above each other, from an instant long to all of it."""
    rng = random.Random(seed)
    made: list[Body] = []
    fixed_at = 0
    for _ in range(bodies):
        boxes: list[Box] = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            length = rng.choice((1, 2, rng.randrange(1, 20), rng.randrange(1, 2 * bodies)))
            start, lo = rng.randrange(2 * bodies), rng.choice((0, 0, rng.randrange(30)))
            boxes.append(Box(start, start + length, lo, lo + rng.randrange(1, 50)))
        fixed = None
        if rng.random() < 0.02:
            fixed = fixed_at
            fixed_at += max(b.hi for b in boxes)
        made.append(Body(tuple(boxes), alignment=1 if fixed is not None else rng.choice((1, 1, 2, 8, 12)), fixed=fixed))
    return PackingProblem(tuple(made))


def by_first_fit(c: Compact, order: np.ndarray, wished: np.ndarray) -> list[int]:
    """Plainly: the lowest base after base of every body, beside all boxes that were placed before it."""
    bases = np.where(c.fixed >= 0, c.fixed, wished)
    given = bases >= 0
    done = given[c.owner]
    for i in (i for i in order if not given[i]):
        at, align, moved = 0, int(c.alignment[i]), True
        while moved:
            moved = False
            for k in range(c.begin[i], c.begin[i + 1]):
                low, high = bases[c.owner] + c.lo, bases[c.owner] + c.hi
                lives = done & (c.first < c.last[k]) & (c.first[k] < c.last)
                meets = lives & (low < at + c.hi[k]) & (high > at + c.lo[k])
                if meets.any():
                    at, moved = -(-int(high[meets].min() - c.lo[k]) // align) * align, True
        bases[i] = at
        done[c.begin[i] : c.begin[i + 1]] = True
    return bases.tolist()


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 90), st.integers(0, 1 << 30))
def test_it_is_the_first_fit(bodies: int, seed: int) -> None:
    c = compact(mixed(bodies, seed))
    rng = np.random.default_rng(seed)
    wished = np.full(len(c), -1)
    for order in [*list(large_orders(c).values())[:2], rng.permutation(len(c))]:
        found = place_compiled(c, order, wished)
        assert found is not None
        assert found.bases.tolist() == by_first_fit(c, order, wished)
        assert found.peak == int((found.bases[c.owner] + c.hi).max())
        assert place_compiled(c, order, wished, stop_above=found.peak) is not None
        assert place_compiled(c, order, wished, stop_above=found.peak - 1) is None
        chosen = rng.random(len(c)) < 0.2  # the next time these are given, and the rest lies around them
        wished = np.where(chosen & (np.diff(c.begin) == 1), found.bases, -1)


def test_it_agrees_with_the_greedy_one_on_a_thousand_bodies() -> None:
    c = compact(PackingProblem(tuple(b for b in mixed(1000, 5).bodies if b.fixed is None)))
    order = large_orders(c)["size-lifetime"]
    found = place_compiled(c, order)
    assert found is not None
    assert found.bases.tolist() == place(c, order, conflicts(c), "").bases.tolist()


def test_a_box_is_as_long_as_the_ranges_of_its_shelf_at_most() -> None:
    c = compact(mixed(300, 1))
    shelves = make_shelves(c.first, c.last)
    levels = np.searchsorted(shelves.levels, shelves.own, side="right") - 1
    width = 1 << (shelves.shift + levels)
    length = c.last - c.first
    assert len(set(levels.tolist())) > 3
    assert (length <= width).all()
    assert (2 * length > width)[levels > 0].all(), "a lower level would have done"
    assert (shelves.own - shelves.levels[levels] == c.first // width).all()
    assert int(np.diff(shelves.begin).sum()) == len(c.owner)
