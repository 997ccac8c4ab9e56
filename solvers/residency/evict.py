"""The loop of `rounding.repair`, compiled. Importing this imports numba."""

from __future__ import annotations

import numpy as np

from ..jit import compiled
from ..packing.layout import Array

_BLOCK = 256
"""Steps of which the highest level is remembered together."""


@compiled
def evict(start: Array, end: Array, nbytes: Array, out: Array, ranked: Array, level: Array, capacity: int) -> bool:
    """Take gaps `out`, in place, until no `level` is above `capacity`: at the first of the highest steps the first of
    `ranked` that reaches over it. False where none does. `level` changes, too."""
    steps, count = len(level), len(ranked)
    following = np.arange(count + 1)  # of each rank the next one, itself included, that is not out
    highest, less = np.zeros(steps // _BLOCK + 1, np.int64), np.zeros(steps // _BLOCK + 1, np.int64)
    for b in range(len(highest)):
        highest[b] = _highest(level, b)
    while steps:
        block = 0
        for b in range(len(highest)):
            if highest[b] - less[b] > highest[block] - less[block]:
                block = b
        if highest[block] - less[block] <= capacity:
            return True
        step = block * _BLOCK
        while level[step] != highest[block]:
            step += 1
        rank = _next(following, 0)
        while rank < count:
            g = ranked[rank]
            if out[g]:
                following[rank] = rank + 1
            elif start[g] < step < end[g] or start[g] < step + steps < end[g]:
                break
            rank = _next(following, rank + 1)
        if rank == count:
            return False
        g = ranked[rank]
        out[g] = True
        following[rank] = rank + 1
        for turn in range(2):
            first, last = max(start[g] + 1 - turn * steps, 0), min(end[g] - turn * steps, steps)
            while first < last:
                b = int(first // _BLOCK)
                if first == b * _BLOCK and last >= min(first + _BLOCK, steps):
                    less[b] += nbytes[g]
                else:
                    level[first : min(last, (b + 1) * _BLOCK)] -= nbytes[g]
                    highest[b] = _highest(level, b)
                first = (b + 1) * _BLOCK
    return True


@compiled
def _highest(level: Array, block: int) -> int:
    found = np.iinfo(np.int64).min // 2
    for step in range(block * _BLOCK, min((block + 1) * _BLOCK, len(level))):
        found = max(found, level[step])
    return found


@compiled
def _next(following: Array, rank: int) -> int:
    found = rank
    while following[found] != found:
        found = following[found]
    while following[rank] != found and rank != found:
        following[rank], rank = found, following[rank]
    return found
