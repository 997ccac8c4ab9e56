"""Where a load lands: the address at which it can be complete first, when addresses become free one after another.

A load of n bytes may begin at a time S and moves at a given rate. Each address of the room becomes free at a known
time, or stays taken. The bytes may come in any order, so those whose place is free first come first: put at base b,
with the segments of [b, b + n) in the order in which they become free, it is complete at

    f(b) = the last of  t_k = max(t_(k-1), free_k) + length_k / rate,  t_0 = S.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LOWEST, RING = 0, 1
"""Which of several equal bases is taken: the lowest, or the next above a pointer, round the room."""


def land(
    low: Ints,
    high: Ints,
    free_ns: Floats,
    *,
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
    """The base, a multiple of `alignment` in [bottom, top - nbytes], and when the load is complete there.

    Ranges [low, high) become free at `free_ns`, infinite for those that never do; other addresses are free. The
    base at which the load is complete first is taken, all that are by `due_ns` being equal in this; among those the one
    that is wholly free first, all that are by `start_ns` being equal in this; among those `rule` decides. Completions
    half a nanosecond apart are equal: the simulator counts in whole ones. (-1, inf): nowhere.
    """
    base, done = _compiled()(
        low, high, free_ns, bottom, top, nbytes, alignment, start_ns, due_ns, bytes_per_ns, rule, pointer
    )
    return int(base), float(done)


def segments(
    low: Ints, high: Ints, free_ns: Floats, base: int, nbytes: int, start_ns: float
) -> list[tuple[int, int, float]]:
    """The range [base, base + nbytes) cut where the time at which it becomes free changes: (from, to, free), relative
    to the base; what is free before `start_ns` counts as free then."""
    inside = (low < base + nbytes) & (high > base) & (free_ns > start_ns)
    cuts = np.unique(np.concatenate([[base, base + nbytes], low[inside], high[inside]]))
    cuts = cuts[(cuts >= base) & (cuts <= base + nbytes)]
    found: list[tuple[int, int, float]] = []
    for a, b in pairwise(cuts.tolist()):
        over = free_ns[inside & (low <= a) & (high >= b)]
        free = max(start_ns, float(over.max(initial=start_ns)))
        if found and found[-1][2] == free:
            found[-1] = (found[-1][0], b - base, free)
        else:
            found.append((a - base, b - base, free))
    return found


@cache
def _compiled() -> Any:
    from .jit import compiled

    return compiled(_land)


def _land(low, high, free_ns, bottom, top, nbytes, alignment, start_ns, due_ns, bytes_per_ns, rule, pointer):  # type: ignore[no-untyped-def]
    ends = np.empty(2 * len(low) + 2, np.int64)
    count = 0
    for i in range(len(low)):
        if free_ns[i] > start_ns and high[i] > bottom and low[i] < top:
            ends[count] = max(low[i], bottom)
            ends[count + 1] = min(high[i], top)
            count += 2
    ends[count] = bottom
    ends[count + 1] = top
    points = np.unique(ends[: count + 2])
    free = np.full(len(points), start_ns)
    for i in range(len(low)):
        if free_ns[i] > start_ns and high[i] > bottom and low[i] < top:
            k = np.searchsorted(points, max(low[i], bottom))
            while points[k] < min(high[i], top):
                free[k] = max(free[k], free_ns[i])
                k += 1
    # Finite, so that what is never free is no better than that none was found yet.
    never = np.finfo(np.float64).max
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
        if rule == 1 and base < pointer:
            key += float(top)
        late = max(done, due_ns)
        if late < best_done - 0.5 or (
            late < best_done + 0.5 and (tight < best_tight or (tight == best_tight and key < best_key))
        ):
            best, best_done, best_tight, best_key = base, min(best_done, late), tight, key
    return best, best_done if best >= 0 else np.inf
