"""Orders for the compiled first fit (`shelves`), for thousands of bodies."""

from __future__ import annotations

import time

import numpy as np

from .compact import Compact, Ints, live_bytes
from .greedy import Order, Placed
from .shelves import fit


def place_compiled(c: Compact, order: Order, bases: Ints | None = None, stop_above: int | None = None) -> Placed | None:
    """First fit in this order around the `bases` that are not -1 (default: the fixed ones).

    None where the peak is above `stop_above`. Sizes must be 64-bit.
    """
    base = (c.fixed if bases is None else np.where(c.fixed >= 0, c.fixed, bases)).astype(np.int64)
    begin, first, last, lo, hi, align = (
        a.astype(np.int64) for a in (c.begin, c.first, c.last, c.lo, c.hi, c.alignment)
    )
    top = np.iinfo(np.int64).max if stop_above is None else stop_above
    peak = int(fit(order.astype(np.int64), begin, first, last, lo, hi, align, base, top))
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


def with_fixed(c: Compact, chosen: Order) -> Order:
    """`chosen` bodies, and the fixed ones that live when one of them does: what these may not lie upon."""
    inside = np.zeros(len(c), dtype=bool)
    inside[chosen] = True
    own = inside[c.owner]
    change = np.zeros(c.live_sets + 1, dtype=np.int64)
    np.add.at(change, c.first[own], 1)
    np.add.at(change, c.last[own], -1)
    shared = np.concatenate(([0], np.cumsum(np.cumsum(change[:-1]) > 0)))
    near = (shared[c.last] > shared[c.first]) & ~own & (c.fixed[c.owner] >= 0)
    return np.concatenate((chosen, np.unique(c.owner[near])))


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
