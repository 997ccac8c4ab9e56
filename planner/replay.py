"""Caches of weights, replayed over passes until they repeat themselves: what recency and next uses would evict."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import accumulate

from .instance import Instance
from .stays import Decisions

WARM_UP_PASSES = 3  # a cache of recency or of next uses repeats itself after the first passes

Urgency = Callable[[int, int], int]
"""Of an item's last use and its next one, in steps counted over the passes: the item of the least goes first."""


def least_recent(last_use: int, next_use: int) -> int:
    """The item whose last use is longest ago goes."""
    del next_use
    return last_use


def farthest(last_use: int, next_use: int) -> int:
    """The item whose next use is farthest goes (Belady 1966)."""
    del last_use
    return -next_use


def replay_cache(instance: Instance, capacity_nbytes: int, urgency: Urgency, *, prefetch: bool) -> Decisions | None:
    """Replay a cache of homed items until its steady state; what misses at its next use was evicted in the gap before.

    Activations stay while they live, and what is written where no link leads down. None where an operator's working
    set and the live activations do not fit.
    """
    items, steps = instance.items, instance.steps
    users, live = _uses(instance)
    cached: dict[int, int] = {}  # to the urgency of the latest use; older entries of the heap are stale
    heap: list[tuple[int, int]] = []
    used = 0
    missed: set[tuple[int, int]] = set()
    for turn in range(WARM_UP_PASSES + 1):
        for t in range(steps):
            wanted = [i for i, _ in users[t]]
            for i, n in users[t]:
                touches = items[i].touches
                if i not in cached:
                    used += items[i].nbytes
                    if turn == WARM_UP_PASSES:
                        missed.add((i, (n - 1) % len(touches)))
                now = turn * steps + t
                cached[i] = urgency(now, now + 1 + (touches[(n + 1) % len(touches)] - t - 1) % steps)
                heappush(heap, (cached[i], i))
            aside: list[tuple[int, int]] = []
            while used + live[t] > capacity_nbytes:
                if not heap:
                    return None
                key, i = heappop(heap)
                if cached.get(i) != key:
                    continue
                if i in wanted:
                    aside.append((key, i))
                    continue
                used -= items[i].nbytes
                del cached[i]
            for entry in aside:
                heappush(heap, entry)
    real = {(g.item, g.before) for g in instance.gaps}
    return Decisions(frozenset(missed & real), {}, prefetch=prefetch)


def _uses(instance: Instance) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """By step, the items of the cache that it touches, with the number of the touch; and the bytes beside the cache."""
    steps = instance.steps
    users: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
    change = [0] * (steps + 1)
    way_back = (instance.fast.name, instance.home.name) in instance.machine.link
    for i, item in enumerate(instance.items):
        if item.homed and (way_back or not item.writes):
            for n, t in enumerate(item.touches):
                users[t].append((i, n))
        else:
            first, end = (0, steps) if item.homed else (item.touches[0], item.touches[-1] + 1)
            change[first] += item.nbytes
            change[end] -= item.nbytes
    return users, list(accumulate(change))[:steps]
