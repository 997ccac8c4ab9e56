"""First fit in many orders, and a search over orders: the fast half of packing.

First fit places one body after another at the lowest base where it meets nothing placed before. Which order is good
differs from graph to graph, so a portfolio is tried; then the best order is improved by promoting the bodies that
stick out ("squeaky wheel": Joslin and Clements, JAIR 10, 1999).
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .compact import Compact, Ints, live_bytes

Order = NDArray[np.int64]
Conflicts: TypeAlias = "list[NDArray[np.int32]] | None"


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Base of every body, in units, and the peak they reach. `order` is what first fit was given."""

    bases: Ints
    peak: int
    order: Order
    method: str


def by_size(c: Compact) -> Order:
    """The first of the static orders by itself."""
    return _by(*_height_and_span(c))


def order_by(c: Compact) -> dict[str, Order]:
    """Static orders by name, most promising first. Largest keys come first; ties by the second key, then by index."""
    bodies = len(c)
    height, span = _height_and_span(c)
    area = np.zeros(bodies, dtype=object)
    np.add.at(area, c.owner, (c.hi - c.lo).astype(object) * c.span.astype(object))
    load = np.array(live_bytes(c), dtype=object)
    busiest = np.zeros(bodies, dtype=object)
    start = np.full(bodies, c.live_sets, dtype=np.int64)
    np.minimum.at(start, c.owner, c.first)
    for k in range(len(c.owner)):
        busiest[c.owner[k]] = max(busiest[c.owner[k]], load[c.first[k] : c.last[k]].max())
    return {
        "size": _by(height, span),
        "area": _by(area),
        "lifetime": _by(span, height),
        "load": _by(busiest, height, span),
        "load-area": _by(busiest, area),
        "load-lifetime": _by(busiest, span, height),
        "start": _by(-start, height),
        "start-lifetime": _by(-start, span),
    }


def _height_and_span(c: Compact) -> tuple[Ints, Ints]:
    """For each body the highest address above its base, and how long its boxes live together."""
    height = np.zeros(len(c), dtype=c.hi.dtype)
    span = np.zeros(len(c), dtype=object)
    np.maximum.at(height, c.owner, c.hi)
    np.add.at(span, c.owner, c.span.astype(object))
    return height, span


def _by(*keys: Ints) -> Order:
    return np.array(sorted(range(len(keys[0])), key=lambda i: tuple(-key[i] for key in keys)), dtype=np.int64)


def conflicts(c: Compact, limit: int = 10_000_000) -> Conflicts:
    """For each box, the boxes of other bodies that live at the same time; None where there are more than `limit`."""
    firsts, lasts = np.sort(c.first), np.sort(c.last)
    meets = np.searchsorted(firsts, c.last, "left") - np.searchsorted(lasts, c.first, "right")
    if int(meets.sum()) > limit:
        return None
    by_first = np.argsort(c.first, kind="stable").astype(np.int32)
    sorted_last, sorted_owner = c.last[by_first], c.owner[by_first]
    found: list[NDArray[np.int32]] = []
    for k in range(len(c.owner)):
        until = np.searchsorted(firsts, c.last[k], "left")
        live = (sorted_last[:until] > c.first[k]) & (sorted_owner[:until] != c.owner[k])
        found.append(by_first[:until][live])
    return found


def first_fit(
    c: Compact,
    order: Order,
    meets: Conflicts,
    stop_above: int | None = None,
    wished: Sequence[int] | None = None,
) -> Ints:
    """Bases by first fit in this order, fixed bodies before all others.

    `wished` are bases that bodies get if they are free (-1: no wish). `stop_above` gives up as soon
    as a body reaches above that address: bases not yet found stay -1.
    """
    bases = np.where(c.fixed >= 0, c.fixed, -1)
    ends = np.zeros(len(c.owner), dtype=c.hi.dtype)  # absolute end of a placed box; 0 while it is not placed
    starts = np.zeros(len(c.owner), dtype=c.hi.dtype)
    for i in np.flatnonzero(c.fixed >= 0):
        own = slice(int(c.begin[i]), int(c.begin[i + 1]))
        starts[own], ends[own] = bases[i] + c.lo[own], bases[i] + c.hi[own]
    for i in order:
        if c.fixed[i] >= 0:
            continue
        base = -1 if wished is None else wished[int(i)]
        if base < 0 or base != lowest_base(c, int(i), starts, ends, meets, base):
            base = lowest_base(c, int(i), starts, ends, meets)
        own = slice(int(c.begin[i]), int(c.begin[i + 1]))
        bases[i] = base
        starts[own], ends[own] = base + c.lo[own], base + c.hi[own]
        if stop_above is not None and ends[own].max() > stop_above:
            break
    return bases


def lowest_base(c: Compact, i: int, starts: Ints, ends: Ints, meets: Conflicts, least: int = 0) -> int:
    """Lowest aligned base of body i, `least` or above, that meets nothing placed.

    Its box [lo, hi) meets the placed [p, q) exactly for bases strictly between p - hi and q - lo.
    """
    lows: list[Ints] = []
    highs: list[Ints] = []
    for k in range(int(c.begin[i]), int(c.begin[i + 1])):
        if meets is not None:
            others = meets[k]
            others = others[ends[others] > 0]
        else:
            live = (c.first < c.last[k]) & (c.last > c.first[k]) & (ends > 0)
            others = np.flatnonzero(live)
        lows.append(starts[others] - c.hi[k])
        highs.append(ends[others] - c.lo[k])
    low, high = (lows[0], highs[0]) if len(lows) == 1 else (np.concatenate(lows), np.concatenate(highs))
    align = c.alignment[i]
    least = -(-least // align) * align
    if not len(low):
        return int(least)
    sequence = np.argsort(low, kind="stable")
    low = low[sequence]
    # Above all intervals that begin lower: the candidate bases. One is free if the next interval begins at or above.
    above = np.maximum(np.maximum.accumulate(high[sequence]), least)
    if align != 1:
        above = -(-above // align) * align
    if low[0] >= least:
        return int(least)
    free = above[:-1] <= low[1:]
    where = int(free.argmax()) if len(free) else 0
    return int(above[where]) if len(free) and free[where] else int(above[-1])


def place(c: Compact, order: Order, meets: Conflicts, method: str) -> Placed:
    """First fit in one order, with its peak."""
    bases = first_fit(c, order, meets)
    return Placed(bases, int((bases[c.owner] + c.hi).max()) if len(c.owner) else 0, order, method)


def portfolio(c: Compact, meets: Conflicts, target: int, deadline: float) -> Placed:
    """Best of the static orders; stops at `target` (units) or when the time is over, after at least one order."""
    best: Placed | None = None
    for name, order in order_by(c).items():
        found = place(c, order, meets, f"first-fit by {name}")
        if best is None or found.peak < best.peak:
            best = found
        if best.peak <= target or time.monotonic() >= deadline:
            break
    assert best is not None
    return best


def search(
    c: Compact,
    start: Placed,
    meets: Conflicts,
    target: int,
    *,
    passes: int,
    seed: int,
    deadline: float,
) -> Placed:
    """Promote, in the best order, the bodies that reach the peak; at most `passes` first fits.

    A pass is cut off as soon as it reaches above the best peak. Sideways moves are taken, so that the search walks
    along plateaus. The same seed gives the same answer as long as `deadline` does not cut it short.
    """
    rng = random.Random(seed)
    best = current = start
    for _ in range(passes):
        if best.peak <= target or time.monotonic() >= deadline:
            break
        order = _promoted(c, current, rng)
        bases = first_fit(c, order, meets, stop_above=current.peak)
        if (bases < 0).any():
            continue
        peak = int((bases[c.owner] + c.hi).max())
        if peak <= current.peak:
            current = Placed(bases, peak, order, "first-fit search")
            if peak < best.peak:
                best = current
    return best


def _promoted(c: Compact, placed: Placed, rng: random.Random) -> Order:
    """The order with one body that reaches the peak moved forward, and sometimes two random bodies exchanged."""
    order = placed.order.tolist()
    tops = c.owner[(placed.bases[c.owner] + c.hi) == placed.peak]
    position = order.index(int(rng.choice(tops.tolist())))
    order.insert(rng.randrange(position + 1), order.pop(position))
    for _ in range(rng.randrange(3)):
        i, j = rng.randrange(len(order)), rng.randrange(len(order))
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)
