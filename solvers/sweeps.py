"""Compiled sweeps over a cyclic pass that answer a question for very many rows at once, in n log n.

What `neighbours` answers for one row at a time, while rows change, is looked for in a window that grows; where rows
lie far from one another in time, each question then looks at a good part of all of them. Importing this imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import compiled

Ints = NDArray[np.int64]
Array = Any
"""An array of 64-bit integers in compiled code, whose elements are numbers to it."""


def ages_before(low: Ints, high: Ints, at: Ints, rows: Ints, when: Ints, steps: int) -> Ints:
    """For each of `rows`, at its instant `when`: for how many steps nothing has happened at its addresses.

    Row q has the addresses [low, high) and an event at instant `at`, every `steps` instants; all four arrays count
    instants over the passes. An event at the very instant counts (0), the row's own counts, too, so the answer is at
    most `steps`. Rows without addresses (high <= low) have no events.
    """
    points, places = np.unique(np.concatenate([low, high]), return_inverse=True)
    first, last = places[: len(low)].astype(np.int64), places[len(low) :].astype(np.int64)
    events = np.flatnonzero(high > low)
    events = events[np.argsort(at[events] % steps, kind="stable")].astype(np.int64)
    order = np.argsort(when % steps, kind="stable").astype(np.int64)
    found = np.zeros(len(rows), dtype=np.int64)
    _sweep(first, last, at % steps, events, rows.astype(np.int64), when % steps, order, steps, len(points), found)
    return found


@compiled
def _sweep(
    first: Array,
    last: Array,
    at: Array,
    events: Array,
    rows: Array,
    when: Array,
    order: Array,
    steps: int,
    points: int,
    found: Array,
) -> None:
    """Over a pass and the one before it. Each event is later than all before it, so the latest one at an address is the
    largest: a tree over the addresses with, at each node, the latest event of all of it and the latest below it."""
    size = 1
    while size < points:
        size *= 2
    whole, below = np.full(2 * size, -2 * steps, np.int64), np.full(2 * size, -2 * steps, np.int64)
    for q in events:
        _put(whole, below, first[q] + size, last[q] + size, at[q] - steps)
    k = 0
    for n in order:
        while k < len(events) and at[events[k]] <= when[n]:
            q = events[k]
            _put(whole, below, first[q] + size, last[q] + size, at[q])
            k += 1
        i = rows[n]
        found[n] = min(when[n] - _latest(whole, below, first[i] + size, last[i] + size), steps)


@compiled
def _put(whole: Array, below: Array, begin: int, end: int, instant: int) -> None:
    left, right = begin, end - 1
    while begin < end:
        if begin % 2 == 1:
            whole[begin] = below[begin] = instant
            begin += 1
        if end % 2 == 1:
            end -= 1
            whole[end] = below[end] = instant
        begin, end = begin // 2, end // 2
    for leaf in (left, right):
        node = leaf // 2
        while node:
            below[node] = max(whole[node], below[2 * node], below[2 * node + 1])
            node //= 2


@compiled
def _latest(whole: Array, below: Array, begin: int, end: int) -> int:
    left, right = begin, end - 1
    latest = np.iinfo(np.int64).min
    while begin < end:
        if begin % 2 == 1:
            latest = max(latest, below[begin])
            begin += 1
        if end % 2 == 1:
            end -= 1
            latest = max(latest, below[end])
        begin, end = begin // 2, end // 2
    for leaf in (left, right):
        node = leaf // 2
        while node:
            latest = max(latest, whole[node])
            node //= 2
    return latest


@compiled
def hold(free: Array, begins: Array, latest: Array, nbytes: Array) -> Array:
    """Take, one row after another, `nbytes` of what is `free` at each step of a cyclic pass, in place: from step
    `begins` on, until `latest` at most, for a pass at most, or until a step has less; where that is."""
    steps = len(free)
    ends = begins.copy()
    for i in range(len(begins)):
        most = min(latest[i], begins[i] + steps)
        while ends[i] < most and free[ends[i] % steps] >= nbytes[i]:
            free[ends[i] % steps] -= nbytes[i]
            ends[i] += 1
    return ends
