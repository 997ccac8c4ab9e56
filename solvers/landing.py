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
    base, done = _kernel().land(
        low, high, free_ns, bottom, top, nbytes, alignment, start_ns, due_ns, bytes_per_ns, rule, pointer
    )
    return int(base), float(done)


def segments(
    low: Ints, high: Ints, free_ns: Floats, base: int, nbytes: int, start_ns: float
) -> list[tuple[int, int, float]]:
    """The range [base, base + nbytes) cut where the time at which it becomes free changes: (from, to, free), relative
    to the base; what is free before `start_ns` counts as free then."""
    points, free = _kernel().segments(low, high, free_ns, base, nbytes, start_ns)
    found: list[tuple[int, int, float]] = []
    for (a, b), since in zip(pairwise((points - base).tolist()), free.tolist(), strict=True):
        if found and found[-1][2] == since:
            found[-1] = (found[-1][0], b, since)
        else:
            found.append((a, b, since))
    return found


@cache
def _kernel() -> Any:
    from . import landing_kernel  # it imports numba

    return landing_kernel
