"""What `landing` compiles. Importing this imports numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import compiled
from .landing import RING

Array = Any
"""An array in compiled code, whose elements are numbers to it."""


@compiled
def land(
    low: Array,
    high: Array,
    free_ns: Array,
    bottom: int,
    top: int,
    nbytes: int,
    alignment: int,
    start_ns: float,
    due_ns: float,
    bytes_per_ns: float,
    rule: int,
    pointer: int,
) -> tuple[int, float]:
    """See `landing.land`. Every best base has one end where something becomes free, or begins."""
    points, free = profile(low, high, free_ns, bottom, top, start_ns)
    # Finite, so that what is never free is no better than that none was found yet.
    never = float(np.finfo(np.float64).max)
    best, best_done, best_tight, best_key = -1, never, never, np.inf
    times = np.empty(len(points), np.float64)
    lengths = np.empty(len(points), np.float64)
    for c in range(2 * len(points)):
        if c < len(points):
            base = -(-points[c] // alignment) * alignment
        else:
            base = (points[c - len(points)] - nbytes) // alignment * alignment
        if base < bottom or base + nbytes > top:
            continue
        k = np.searchsorted(points, base, side="right") - 1
        number = 0
        blocked = False
        while k < len(points) - 1 and points[k] < base + nbytes:
            # No better than the best, whatever follows: it is complete later, or as late and not as soon free.
            late = max(free[k], due_ns)
            if late >= best_done + 0.5 or (late >= best_done - 0.5 and free[k] - start_ns > best_tight):
                blocked = True
                break
            length = float(min(points[k + 1], base + nbytes) - max(points[k], base))
            j = number
            while j > 0 and times[j - 1] > free[k]:
                times[j] = times[j - 1]
                lengths[j] = lengths[j - 1]
                j -= 1
            times[j] = free[k]
            lengths[j] = length
            number += 1
            k += 1
        if blocked:
            continue
        done = start_ns
        tight = 0.0
        for j in range(number):
            done = max(done, times[j]) + lengths[j] / bytes_per_ns
            tight = max(tight, times[j] - start_ns)
        key = float(base)
        if rule == RING and base < pointer:
            key += float(top)
        late = max(done, due_ns)
        if late < best_done - 0.5 or (
            late < best_done + 0.5 and (tight < best_tight or (tight == best_tight and key < best_key))
        ):
            best, best_done, best_tight, best_key = base, min(best_done, late), tight, key
    return best, best_done if best >= 0 else np.inf


@compiled
def profile(low: Array, high: Array, free_ns: Array, bottom: int, top: int, start_ns: float) -> tuple[Array, Array]:
    """Ascending addresses from `bottom` to `top`, and from when what lies between each and the next is free.

    Most of what is in the way stays there: between the gaps that it leaves there is nothing to tell apart. The last
    entry of the times means nothing.
    """
    gaps = gaps_between(low, high, free_ns, bottom, top)
    ends = np.empty(2 * len(low) + 2 * len(gaps) + 2, np.int64)  # two of each row at most, however many gaps it spans
    count = 0
    for g in range(len(gaps)):
        ends[count], ends[count + 1] = gaps[g, 0], gaps[g, 1]
        count += 2
    for i in range(len(low)):
        if start_ns < free_ns[i] < np.inf:
            for at in (low[i], high[i]):
                g = np.searchsorted(gaps[:, 1], at, side="right")
                if g < len(gaps) and gaps[g, 0] < at:
                    ends[count] = at
                    count += 1
    ends[count], ends[count + 1] = bottom, top
    points = np.unique(ends[: count + 2])
    free = np.full(len(points), np.inf)
    for g in range(len(gaps)):
        free[np.searchsorted(points, gaps[g, 0]) : np.searchsorted(points, gaps[g, 1])] = start_ns
    for i in range(len(low)):
        if start_ns < free_ns[i] < np.inf:
            k = np.searchsorted(points, max(low[i], bottom))
            while k < len(points) - 1 and points[k] < high[i]:
                free[k] = max(free[k], free_ns[i])
                k += 1
    return points, free


@compiled
def gaps_between(low: Array, high: Array, free_ns: Array, bottom: int, top: int) -> Array:
    """Ascending address ranges [from, to) of [bottom, top) in which everything becomes free some time."""
    lows, highs = np.empty(len(low) + 1, np.int64), np.empty(len(low) + 1, np.int64)
    count = 0
    for i in range(len(low)):
        if free_ns[i] == np.inf and low[i] < top and high[i] > bottom:
            lows[count], highs[count] = low[i], high[i]
            count += 1
    lows[count] = highs[count] = top
    lows, highs = np.sort(lows[: count + 1]), np.sort(highs[: count + 1])
    gaps = np.empty((count + 1, 2), np.int64)
    found = 0
    for k in range(count + 1):
        # The k lowest ends are those of the k ranges that began first, where nothing reaches over this beginning.
        begin = bottom if k == 0 else max(bottom, highs[k - 1])
        if begin < lows[k]:
            gaps[found, 0], gaps[found, 1] = begin, lows[k]
            found += 1
    return gaps[:found]


@compiled
def segments(low: Array, high: Array, free_ns: Array, base: int, nbytes: int, start_ns: float) -> tuple[Array, Array]:
    """See `landing.segments`: addresses from `base` on, and from when what lies between each and the next is free; what
    has no address in between is free from `start_ns` on."""
    rows = np.empty(len(low), np.int64)
    count = 0
    for i in range(len(low)):
        if free_ns[i] > start_ns and low[i] < base + nbytes and high[i] > base:
            rows[count] = i
            count += 1
    cuts = np.empty(2 * count + 2, np.int64)
    for r in range(count):
        cuts[2 * r] = max(low[rows[r]], base)
        cuts[2 * r + 1] = min(high[rows[r]], base + nbytes)
    cuts[2 * count], cuts[2 * count + 1] = base, base + nbytes
    points = np.unique(cuts)
    free = np.full(len(points) - 1, start_ns)
    for r in range(count):
        i = rows[r]
        k = np.searchsorted(points, max(low[i], base))
        while k < len(free) and points[k] < high[i]:
            free[k] = max(free[k], free_ns[i])
            k += 1
    return points, free
