"""Policies that know the future: Belady's rule, and the segment cache of SCH.

Belady's rule evicts what is used again last. With sets it evicts among what the current set leaves, and with equal
sizes it is optimal: no policy that loads on demand misses less (`bounds` proves it case by case). With unequal sizes it
weighs the distance by the size, as a heuristic; the bound is then the linear program's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..jit import compiled
from .event import take_in
from .problem import Ints, Outcome, Requests, asked

NEVER = 1 << 60


def next_uses(requests: Requests) -> Ints:
    """The round in which each requested object is requested again before the next reset; `NEVER` where it is not.

    int64, shaped as `requests.ids`.
    """
    return _next_uses(requests.ids, requests.objects, requests.resets())


def replay_belady(requests: Requests, capacity: int | Ints) -> Outcome:
    """Evict what is used again last; where sizes differ, what has the most bytes times rounds until then."""
    limits = requests.capacities(capacity)
    hits, loaded = _belady(
        requests.ids, requests.sizes, limits, requests.resets(), next_uses(requests), not requests.unit_sized()
    )
    return Outcome(hits, asked(requests), loaded, np.zeros_like(loaded))


def replay_segment(requests: Requests, capacity: int | Ints, m: int, *, protect: bool = True) -> Outcome:
    """The segment cache of SCH(m, C): keep what is most used in the next `m` rounds, ties by recency.

    From 'Not All Models Suit Expert Offloading' (arXiv 2505.16056). Filled on demand. With `protect` the set just
    asked for stays, as under every policy here; without, it too gives way to what is used more.
    """
    if m < 1:
        raise ValueError(f"a segment of {m} rounds; give 1 or more")
    limits = requests.capacities(capacity)
    hits, loaded = _segment(requests.ids, requests.sizes, limits, requests.resets(), m, protect)
    return Outcome(hits, asked(requests), loaded, np.zeros_like(loaded))


@compiled
def _next_uses(ids: Any, objects: Any, begins: Any) -> Any:
    rounds, caches, width = ids.shape
    found = np.full((rounds, caches, width), 1 << 60, np.int64)
    for c in range(caches):
        after = np.full(objects, 1 << 60, np.int64)
        for t in range(rounds - 1, -1, -1):
            for k in range(width):
                if ids[t, c, k] >= 0:
                    found[t, c, k] = after[ids[t, c, k]]
                    after[ids[t, c, k]] = t
            if begins[t]:
                after[:] = 1 << 60
    return found


@compiled
def _belady(ids: Any, sizes: Any, limits: Any, begins: Any, following: Any, weighed: Any) -> Any:
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    hits = np.zeros((rounds, caches), np.int32)
    loaded = np.zeros((rounds, caches), np.int64)
    for c in range(caches):
        resident = np.zeros(objects, np.bool_)
        again = np.full(objects, 1 << 60, np.int64)
        stamp = np.full(objects, -1, np.int64)
        used = 0
        for t in range(rounds):
            if begins[t]:
                resident[:] = False
                used = 0
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                stamp[o] = t
                again[o] = following[t, c, k]
            hits[t, c], missing = take_in(ids[t, c], sizes[c], resident)
            loaded[t, c] += missing
            used += missing
            while used > limits[c]:
                victim = -1
                far = -1.0
                for o in range(objects):
                    if resident[o] and stamp[o] != t:
                        value = float(again[o] - t)
                        if weighed:
                            value *= sizes[c, o]
                        if value > far:
                            victim, far = o, value
                resident[victim] = False
                used -= sizes[c, victim]
    return hits, loaded


@compiled
def _segment(ids: Any, sizes: Any, limits: Any, begins: Any, m: Any, protect: Any) -> Any:
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    hits = np.zeros((rounds, caches), np.int32)
    loaded = np.zeros((rounds, caches), np.int64)
    ends = np.zeros(rounds, np.int64)  # where the prompt of a round ends: a reset makes later uses worthless
    end = rounds
    for t in range(rounds - 1, -1, -1):
        ends[t] = end
        if begins[t]:
            end = t
    for c in range(caches):
        resident = np.zeros(objects, np.bool_)
        coming = np.zeros(objects, np.int64)
        last = np.full(objects, -1, np.int64)
        stamp = np.full(objects, -1, np.int64)
        used = 0
        counted = 0  # uses in rounds (t, counted) are in `coming`
        for t in range(rounds):
            if begins[t]:
                resident[:] = False
                coming[:] = 0
                used = 0
                counted = t
            while counted < min(t + m + 1, ends[t]):
                for k in range(width):
                    if ids[counted, c, k] >= 0:
                        coming[ids[counted, c, k]] += 1
                counted += 1
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                stamp[o] = t
                coming[o] -= 1
                last[o] = t * width + (width - 1 - k)
            hits[t, c], missing = take_in(ids[t, c], sizes[c], resident)
            loaded[t, c] += missing
            used += missing
            while used > limits[c]:
                victim = -1
                for o in range(objects):
                    if not resident[o] or (protect and stamp[o] == t):
                        continue
                    if (
                        victim < 0
                        or coming[o] < coming[victim]
                        or (coming[o] == coming[victim] and last[o] < last[victim])
                    ):
                        victim = o
                resident[victim] = False
                used -= sizes[c, victim]
    return hits, loaded
