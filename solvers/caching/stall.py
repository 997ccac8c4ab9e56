"""Replays with time: loads run behind computation over one link, and what is not there in time is waited for.

Event after event: what the set lacks is brought in at once, ahead of all else, and waited for; then the event computes
for its time, and the link goes through a list of loads ahead, in order, as far as it gets. A load that an event cuts
off keeps what it has brought (transfers go in chunks) and takes its place in the cache from its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jit import compiled
from .offline import next_uses
from .problem import Ints, Requests


@dataclass(frozen=True, slots=True)
class Stall:
    """What a replay waited, over the rounds counted: `stall_ns` in all, over `rounds`; loads brought on demand and
    ahead, in units of size, and of those ahead the ones that were evicted unused."""

    stall_ns: float
    rounds: int
    demanded: int
    ahead: int
    wasted: int


@dataclass(frozen=True, slots=True)
class Pace:
    """`load_ns` for one unit of size over the link, `compute_ns` for an event. `warm_rounds` are not counted."""

    load_ns: float
    compute_ns: float
    warm_rounds: int = 0


def stall_on_demand(requests: Requests, capacity: int | Ints, pace: Pace) -> Stall:
    """LRU, nothing ahead."""
    return _known(requests, capacity, pace, 0, True)


def stall_known(requests: Requests, capacity: int | Ints, pace: Pace, *, lookahead: int = 32) -> Stall:
    """With known routes: what is needed next is loaded next, up to `lookahead` rounds ahead.

    It takes the place of what is used again last, if that is later than its own use (the aggressive rule of Cao et
    al., 'A study of integrated prefetching and caching strategies', SIGMETRICS 1995).
    """
    return _known(requests, capacity, pace, lookahead, False)


def _known(requests: Requests, capacity: int | Ints, pace: Pace, lookahead: int, recency: bool) -> Stall:
    limits = requests.capacities(capacity)
    found = _replay_known(
        requests.ids,
        requests.sizes,
        limits,
        requests.resets(),
        next_uses(requests),
        (float(pace.load_ns), float(pace.compute_ns), pace.warm_rounds),
        lookahead,
        recency,
    )
    return Stall(float(found[0]), requests.rounds - pace.warm_rounds, int(found[1]), int(found[2]), int(found[3]))


@compiled
def bring(part: Any, c: Any, o: Any, size: Any, load_ns: Any, budget: Any) -> Any:
    """Load as much of an object as `budget` (ns) allows; what is left of it. `part` is the time still missing."""
    if part[c, o] < 0:
        part[c, o] = size * load_ns
    moved = min(part[c, o], budget)
    part[c, o] -= moved
    return budget - moved


@compiled
def _replay_known(ids: Any, sizes: Any, limits: Any, begins: Any, following: Any, pace: Any, lookahead: Any, recency: Any) -> Any:  # fmt: skip  # noqa: E501
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    load_ns, compute_ns, warm = pace
    resident = np.zeros((caches, objects), np.bool_)  # has a place; all there once `part` is 0
    part = np.full((caches, objects), -1.0, np.float64)
    early = np.zeros((caches, objects), np.bool_)
    again = np.full((caches, objects), 1 << 60, np.int64)
    last = np.full((caches, objects), -1, np.int64)
    stamp = np.full((caches, objects), -1, np.int64)
    used = np.zeros(caches, np.int64)
    found = np.zeros(4, np.float64)
    for t in range(rounds):
        counts = 1.0 if t >= warm else 0.0
        if begins[t]:
            resident[:] = False
            part[:] = -1.0
            used[:] = 0
        for c in range(caches):
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                stamp[c, o] = t
                if not resident[c, o]:
                    resident[c, o] = True
                    used[c] += sizes[c, o]
                    found[1] += counts * sizes[c, o]
                early[c, o] = False
            while used[c] > limits[c]:
                victim = _worst(resident[c], stamp[c], t, again[c], last[c], recency)
                found[3] += counts * sizes[c, victim] * early[c, victim]
                resident[c, victim] = False
                part[c, victim] = -1.0
                used[c] -= sizes[c, victim]
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                if part[c, o] != 0.0:
                    if part[c, o] < 0:
                        part[c, o] = sizes[c, o] * load_ns
                    found[0] += counts * part[c, o]
                    part[c, o] = 0.0
                again[c, o] = following[t, c, k]
                last[c, o] = t * width + (width - 1 - k)
            budget = compute_ns
            for step in range(1, lookahead * caches + 1):
                if budget <= 0:
                    break
                at = t * caches + c + step
                s, d = at // caches, at % caches
                if s >= rounds or begins[s]:
                    break
                for k in range(width):
                    o = ids[s, d, k]
                    if o < 0 or (resident[d, o] and part[d, o] == 0.0):
                        continue
                    if not resident[d, o]:
                        room = limits[d] - used[d]
                        while room < sizes[d, o]:
                            victim = _worst(resident[d], stamp[d], t if d == c else -1, again[d], last[d], recency)
                            if victim < 0 or again[d, victim] <= s:
                                break
                            found[3] += counts * sizes[d, victim] * early[d, victim]
                            resident[d, victim] = False
                            part[d, victim] = -1.0
                            used[d] -= sizes[d, victim]
                            room += sizes[d, victim]
                        if room < sizes[d, o]:
                            continue
                        resident[d, o] = True
                        used[d] += sizes[d, o]
                        again[d, o] = s
                        early[d, o] = True
                        found[2] += counts * sizes[d, o]
                    budget = bring(part, d, o, sizes[d, o], load_ns, budget)
                    if budget <= 0:
                        break
    return found


@compiled
def _worst(resident: Any, stamp: Any, now: Any, again: Any, last: Any, recency: Any) -> Any:
    """What goes first, those of round `now` apart: the least recent, or what is used again last. -1: nothing."""
    victim = -1
    for o in range(resident.shape[0]):
        if not resident[o] or stamp[o] == now:
            continue
        if victim < 0 or (last[o] < last[victim] if recency else again[o] > again[victim]):
            victim = o
    return victim
