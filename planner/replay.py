"""Caches, replayed over passes until they repeat themselves: what recency and next uses would evict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate

from .instance import Instance
from .stays import Decisions

WARM_UP_PASSES = 3  # a cache of recency or of next uses repeats itself after the first passes

Urgency = Callable[[int, int], int]
"""Of an entry's last use and its next one, in steps counted over the passes: the entry of the least goes first."""


def least_recent(last_use: int, next_use: int) -> int:
    """The entry whose last use is longest ago goes."""
    del next_use
    return last_use


def farthest(last_use: int, next_use: int) -> int:
    """The entry whose next use is farthest goes (Belady 1966)."""
    del last_use
    return -next_use


@dataclass(frozen=True, slots=True)
class Cacheable:
    """`nbytes` that are used at the steps `uses` of every pass, in order, each time until step `ends` of that use."""

    nbytes: int
    uses: tuple[int, ...]
    ends: tuple[int, ...]


def misses(
    entries: Sequence[Cacheable], beside_nbytes: Sequence[int], capacity_nbytes: int, urgency: Urgency
) -> set[tuple[int, int]] | None:
    """(entry, number of the use) of what is not there when it is used, in a pass of the steady state.

    Beside the cache, `beside_nbytes` of each step are taken. An entry stays while a use lasts. None where what is in
    use does not fit.
    """
    steps = len(beside_nbytes)
    users: list[list[tuple[int, int]]] = [[] for _ in range(steps)]
    for i, entry in enumerate(entries):
        for n, t in enumerate(entry.uses):
            users[t].append((i, n))
    cached: dict[int, int] = {}  # to the urgency of the latest use; older entries of the heap are stale
    busy: dict[int, int] = {}  # to the step until which it is in use
    heap: list[tuple[int, int]] = []
    used = 0
    missed: set[tuple[int, int]] = set()
    for now in range((WARM_UP_PASSES + 1) * steps):
        turn, t = divmod(now, steps)
        for i, n in users[t]:
            entry = entries[i]
            if i not in cached:
                used += entry.nbytes
                if turn == WARM_UP_PASSES:
                    missed.add((i, n))
            cached[i] = urgency(now, now + 1 + (entry.uses[(n + 1) % len(entry.uses)] - t - 1) % steps)
            busy[i] = max(busy.get(i, 0), now - t + entry.ends[n])
            heappush(heap, (cached[i], i))
        aside: list[tuple[int, int]] = []
        while used + beside_nbytes[t] > capacity_nbytes:
            if not heap:
                return None
            key, i = heappop(heap)
            if cached.get(i) != key:
                continue
            if busy[i] > now:
                aside.append((key, i))
                continue
            used -= entries[i].nbytes
            del cached[i]
        for entry in aside:
            heappush(heap, entry)
    return missed


def replay_cache(instance: Instance, capacity_nbytes: int, urgency: Urgency, *, prefetch: bool) -> Decisions | None:
    """Replay a cache of homed items; what misses at its next use was evicted in the gap before.

    Activations stay while they live, and what is written where no link leads down. None where an operator's working
    set and the live activations do not fit.
    """
    steps = instance.steps
    change = [0] * (steps + 1)
    way_back = (instance.fast.name, instance.home.name) in instance.machine.link
    where: list[int] = []
    entries: list[Cacheable] = []
    for i, item in enumerate(instance.items):
        if item.homed and (way_back or not item.writes):
            where.append(i)
            entries.append(Cacheable(item.nbytes, item.touches, tuple(t + 1 for t in item.touches)))
        else:
            first, end = (0, steps) if item.homed else (item.touches[0], item.touches[-1] + 1)
            change[first] += item.nbytes
            change[end] -= item.nbytes
    missed = misses(entries, list(accumulate(change))[:steps], capacity_nbytes, urgency)
    if missed is None:
        return None
    real = {(g.item, g.before) for g in instance.gaps}
    evicted = frozenset((where[k], (n - 1) % len(entries[k].uses)) for k, n in missed)
    return Decisions(evicted & real, {}, prefetch=prefetch)
