"""First fit compiled by numba, for thousands of bodies: one pass over n boxes looks at most at n^2 / 2 pairs."""

from __future__ import annotations

import time

import numpy as np

from ..jit import compiled
from ..neighbours import ENTRIES, Lists, add_row, make_lists, most_entries, touching
from .compact import Compact, Ints, live_bytes
from .greedy import Order, Placed
from .layout import Array

_BLOCKS = 1 << 16
"""Parts of the live sets that have lists of their own."""

_SEARCHING = 50
"""By how much it takes longer to find a box that meets another, and to sort it in, than to pass one by: measured at
100,000 boxes, 83 ns against 1.5."""


@compiled
def fit(
    order: Array, begin: Array, first: Array, last: Array, lo: Array, hi: Array, alignment: Array, base: Array, top: int
) -> int:
    """Give each body of `order` whose `base` is -1 the lowest base that meets nothing placed; bodies with a base come
    first, as given. Returns the peak; stops as soon as it is above `top`, which leaves bases at -1."""
    boxes = len(first)
    starts, ends = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    born, dead = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    count, peak = 0, 0
    given = base >= 0
    for turn in range(2):
        for i in order:
            if given[i] != (turn == 0):
                continue
            align = alignment[i]
            at = base[i] if given[i] else 0
            moved = not given[i]
            while moved:
                moved = False
                for k in range(begin[i], begin[i + 1]):
                    # By rising start: once a gap holds the box, nothing later reaches into it.
                    for q in range(count):
                        if starts[q] >= at + hi[k]:
                            break
                        if born[q] < last[k] and first[k] < dead[q] and ends[q] > at + lo[k]:
                            at = (ends[q] - lo[k] + align - 1) // align * align
                            moved = True
                moved = moved and begin[i + 1] - begin[i] > 1
            base[i] = at
            for k in range(begin[i], begin[i + 1]):
                q = count
                while q > 0 and starts[q - 1] > at + lo[k]:
                    starts[q], ends[q], born[q], dead[q] = starts[q - 1], ends[q - 1], born[q - 1], dead[q - 1]
                    q -= 1
                starts[q], ends[q], born[q], dead[q] = at + lo[k], at + hi[k], first[k], last[k]
                count += 1
                peak = max(peak, at + hi[k])
            if peak > top:
                return peak
    return peak


@compiled
def fit_sparse(
    order: Array, begin: Array, first: Array, last: Array, lo: Array, hi: Array, alignment: Array, base: Array, top: int
) -> int:
    """As `fit`, looking at those of the placed boxes alone that live at the same time: for boxes that meet few."""
    boxes, sets = len(first), 1
    for k in range(boxes):
        sets = max(sets, int(last[k]))
    lists = make_lists(sets, _BLOCKS, 0, boxes, 0)
    lists = _grown(lists, boxes)
    starts, ends = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    born, dead = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    rows, low, high = np.zeros(boxes, np.int64), np.zeros(boxes, np.int64), np.zeros(boxes, np.int64)
    count, peak = 0, 0
    given = base >= 0
    for turn in range(2):
        for i in order:
            if given[i] != (turn == 0):
                continue
            align = alignment[i]
            at = base[i] if given[i] else 0
            moved = not given[i]
            while moved:
                moved = False
                for k in range(begin[i], begin[i + 1]):
                    met = 0
                    for r in range(touching(lists, first[k], last[k], rows)):
                        q = rows[r]
                        if born[q] < last[k] and first[k] < dead[q] and ends[q] > at + lo[k]:
                            low[met], high[met] = starts[q], ends[q]
                            met += 1
                    for q in np.argsort(low[:met]):
                        if low[q] >= at + hi[k]:
                            break
                        if high[q] > at + lo[k]:
                            at = (high[q] - lo[k] + align - 1) // align * align
                            moved = True
                moved = moved and begin[i + 1] - begin[i] > 1
            base[i] = at
            for k in range(begin[i], begin[i + 1]):
                starts[count], ends[count], born[count], dead[count] = at + lo[k], at + hi[k], first[k], last[k]
                lists = _grown(lists, 0)
                add_row(lists, count, first[k], last[k])
                count += 1
                peak = max(peak, at + hi[k])
            if peak > top:
                return peak
    return peak


@compiled
def _grown(lists: Lists, rows: int) -> Lists:
    """`lists` with room for one row more, and for so many more if they take two entries each."""
    used, size = lists.numbers[ENTRIES], lists.entries.shape[1]
    if used + most_entries(lists) <= size:
        return lists
    entries = np.zeros((2, 2 * max(size, rows) + most_entries(lists)), np.int64)
    entries[:, :used] = lists.entries[:, :used]
    return Lists(lists.heads, entries, lists.seen, lists.numbers)


def _meets_few(first: Array, last: Array) -> bool:
    """Whether a box meets so few others, in the mean, that these are found sooner than all that are placed."""
    begins = np.sort(first)
    pairs = int((np.searchsorted(begins, last, "left") - np.searchsorted(begins, first, "left")).sum())
    return _SEARCHING * pairs < len(first) ** 2


def place_compiled(c: Compact, order: Order, bases: Ints | None = None, stop_above: int | None = None) -> Placed | None:
    """First fit in this order around the `bases` that are not -1 (default: the fixed ones).

    None where the peak is above `stop_above`. Sizes must be 64-bit.
    """
    base = (c.fixed if bases is None else np.where(c.fixed >= 0, c.fixed, bases)).astype(np.int64)
    begin, first, last, lo, hi, align = (
        a.astype(np.int64) for a in (c.begin, c.first, c.last, c.lo, c.hi, c.alignment)
    )
    top = np.iinfo(np.int64).max if stop_above is None else stop_above
    place = fit_sparse if _meets_few(first, last) else fit
    peak = int(place(order.astype(np.int64), begin, first, last, lo, hi, align, base, top))
    return None if peak > top else Placed(base, peak, order, "first fit")


def large_orders(c: Compact) -> dict[str, Order]:
    """Orders that do well on thousands of bodies: by size, ties in the order of time or by lifetime."""
    count = len(c)
    height, start, end = np.zeros(count), np.full(count, np.inf), np.zeros(count)
    np.maximum.at(height, c.owner, c.hi.astype(np.float64))
    np.minimum.at(start, c.owner, c.first.astype(np.float64))
    np.maximum.at(end, c.owner, c.last.astype(np.float64))
    return {
        "size-start": np.lexsort((start, -height)),
        "size-end": np.lexsort((-end, -height)),
        "size-lifetime": np.lexsort((start - end, -height)),
        "lifetime": np.lexsort((-height, start - end)),
        "square": np.lexsort((start, -height * np.sqrt(end - start))),
    }


def hottest(c: Compact, most_boxes: int) -> Order:
    """Bodies that live where the load is highest, most loaded first, as many as have `most_boxes` boxes."""
    loads = np.array(live_bytes(c), dtype=np.float64)
    peaks = np.zeros(len(c))
    # The largest load of a range, from a table of powers of two: ranges are many and long.
    table = [loads]
    while 2 ** len(table) <= len(loads):
        half = 2 ** (len(table) - 1)
        table.append(np.maximum(table[-1][:-half], table[-1][half:]))
    for k in range(len(c.owner)):
        a, b = int(c.first[k]), int(c.last[k])
        level = (b - a).bit_length() - 1
        peaks[c.owner[k]] = max(peaks[c.owner[k]], table[level][a], table[level][b - 2**level])
    order = np.argsort(-peaks, kind="stable")
    boxes = np.cumsum(np.diff(c.begin)[order])
    return order[: int(np.searchsorted(boxes, most_boxes, "right"))]


def portfolio_compiled(c: Compact, target: int, deadline: float) -> Placed:
    """Best of the orders for large problems; at least one, the others while there is time and the target not met."""
    best: Placed | None = None
    for name, order in large_orders(c).items():
        found = place_compiled(c, order, stop_above=None if best is None else best.peak - 1)
        if found is not None:
            best = Placed(found.bases, found.peak, order, f"first-fit by {name}")
        assert best is not None
        if best.peak <= target or time.monotonic() >= deadline:
            break
    assert best is not None
    return best
