"""First fit compiled by numba, for hundreds of thousands of boxes: a box is compared with those alone that may live at
the same time.

The live sets are divided into ranges of equal width, and these again and again, each level into ranges half as wide. A
box lies on the shelf of the range in which it begins, on the lowest level whose ranges are as wide as the box is long:
so it reaches into the next range at most, and a box meets on each level only what lies in the ranges that it covers and
in the one before them. On its shelf a box stands by its address.

The lowest base at which a box meets nothing does not depend on the order in which those that stand in its way are
found: one that meets it at a base meets it at all bases from there up to its own end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..jit import compiled

Array = Any
"""An array of 64-bit integers in compiled code, whose elements are numbers to it."""

_BOXES_PER_SHELF = 16
"""Of the lowest level, in the mean: fewer shelves have to be looked at for long boxes, and more boxes for short ones.
With 4, 8 and 32, 150,000 boxes of a training step took 3.0, 2.5 and 2.2 s; looking at all of them, 21.6 s."""


class Shelves(NamedTuple):
    """Placed boxes by level, range and address.

    Ranges of level v are 2 ** (`shift` + v) live sets wide; their shelves are numbered from `levels`[v]. Shelf s has
    room for the rows [`begin`[s], `begin`[s + 1]), of which the first `used`[s] are taken: their addresses [`low`,
    `high`) and live sets [`born`, `dead`). `own` is the shelf of each box. `seen` is for searches.
    """

    shift: int
    levels: Array
    begin: Array
    used: Array
    low: Array
    high: Array
    born: Array
    dead: Array
    own: Array
    seen: Array


@compiled
def make_shelves(first: Array, last: Array) -> Shelves:
    """Empty shelves with room for boxes that live in [first, last)."""
    boxes, sets = len(first), 1
    for k in range(boxes):
        sets = max(sets, last[k])
    shift = 0
    while boxes << shift < _BOXES_PER_SHELF * sets:
        shift += 1
    count = 1
    while 1 << (shift + count - 1) < sets:
        count += 1
    levels = np.zeros(count + 1, np.int64)
    for v in range(count):
        levels[v + 1] = levels[v] + ((sets - 1) >> (shift + v)) + 1
    begin, own = np.zeros(levels[count] + 1, np.int64), np.zeros(boxes, np.int64)
    for k in range(boxes):
        v = 0
        while 1 << (shift + v) < last[k] - first[k]:
            v += 1
        own[k] = levels[v] + (first[k] >> (shift + v))
        begin[own[k] + 1] += 1
    for s in range(levels[count]):
        begin[s + 1] += begin[s]
    low, high = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    born, dead = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    used, seen = np.zeros(levels[count], np.int64), np.zeros((2, levels[count]), np.int64)
    return Shelves(shift, levels, begin, used, low, high, born, dead, own, seen)


@compiled
def put(shelves: Shelves, shelf: int, low: int, high: int, first: int, last: int) -> None:
    """A box at the addresses [low, high) that lives in [first, last)."""
    begin = shelves.begin[shelf]
    q = begin + shelves.used[shelf]
    shelves.used[shelf] += 1
    while q > begin and shelves.low[q - 1] > low:
        shelves.low[q], shelves.high[q] = shelves.low[q - 1], shelves.high[q - 1]
        shelves.born[q], shelves.dead[q] = shelves.born[q - 1], shelves.dead[q - 1]
        q -= 1
    shelves.low[q], shelves.high[q], shelves.born[q], shelves.dead[q] = low, high, first, last


@compiled
def rise(shelves: Shelves, at: int, first: int, last: int, lo: int, hi: int, alignment: int) -> int:
    """The least multiple of `alignment` from `at` on at which nothing meets a box of addresses [lo, hi) above it."""
    low, high, born, dead, seen = shelves.low, shelves.high, shelves.born, shelves.dead, shelves.seen
    open_shelves = 0
    for v in range(len(shelves.levels) - 1):
        width, start = shelves.shift + v, shelves.levels[v]
        for s in range(start + max(0, (first >> width) - 1), start + ((last - 1) >> width) + 1):
            if shelves.used[s]:
                seen[0, open_shelves], seen[1, open_shelves] = shelves.begin[s], shelves.begin[s] + shelves.used[s]
                open_shelves += 1
    moved = True
    while moved:
        moved, i = False, 0
        while i < open_shelves:
            # What was passed once is below the base, or lives at another time: it cannot be met any more.
            q, end = seen[0, i], seen[1, i]
            while q < end and low[q] < at + hi:
                if high[q] > at + lo and born[q] < last and first < dead[q]:
                    at = (high[q] - lo + alignment - 1) // alignment * alignment
                    moved = True
                q += 1
            if q < end:
                seen[0, i] = q
                i += 1
            else:
                open_shelves -= 1
                seen[0, i], seen[1, i] = seen[0, open_shelves], seen[1, open_shelves]
    return at


@compiled
def fit(
    order: Array, begin: Array, first: Array, last: Array, lo: Array, hi: Array, alignment: Array, base: Array, top: int
) -> int:
    """Give each body of `order` whose `base` is -1 the lowest base that meets nothing placed; bodies with a base come
    first, as given. Returns the peak; stops as soon as it is above `top`, which leaves bases at -1."""
    shelves = make_shelves(first, last)
    peak = 0
    given = base >= 0
    for turn in range(2):
        for i in order:
            if given[i] != (turn == 0):
                continue
            at = base[i] if given[i] else 0
            moved = not given[i]
            while moved:
                before = at
                for k in range(begin[i], begin[i + 1]):
                    at = rise(shelves, at, first[k], last[k], lo[k], hi[k], alignment[i])
                moved = at > before and begin[i + 1] - begin[i] > 1
            base[i] = at
            for k in range(begin[i], begin[i + 1]):
                put(shelves, shelves.own[k], at + lo[k], at + hi[k], first[k], last[k])
                peak = max(peak, at + hi[k])
            if peak > top:
                return peak
    return peak
