"""Caches of weights, replayed over passes until they repeat themselves: what recency and next uses would evict."""

from __future__ import annotations

from collections.abc import Callable

from .instance import Instance
from .stays import Decisions

WARM_UP_PASSES = 3  # a cache of recency or of next uses repeats itself after the first passes


def least_recent(cached: dict[int, int], now: int, next_use: Callable[[int, int], int]) -> int:
    """The item whose last use is longest ago."""
    del now, next_use
    return min(cached, key=lambda i: cached[i])


def farthest(cached: dict[int, int], now: int, next_use: Callable[[int, int], int]) -> int:
    """The item whose next use is farthest (Belady 1966)."""
    return max(cached, key=lambda i: next_use(i, now))


def replay_cache(
    instance: Instance,
    capacity_nbytes: int,
    victim: Callable[[dict[int, int], int, Callable[[int, int], int]], int],
    *,
    prefetch: bool,
) -> Decisions | None:
    """Replay a cache of homed items until its steady state; what misses at its next use was evicted in the gap before.

    Activations stay while they live, and what is written where no link leads down. None where an operator's working
    set and the live activations do not fit.
    """
    items, steps = instance.items, instance.steps
    users: list[list[int]] = [[] for _ in range(steps)]
    live = [0] * steps
    way_back = (instance.fast.name, instance.home.name) in instance.machine.link
    for i, item in enumerate(items):
        if item.homed and item.writes and not way_back:
            live = [n + item.nbytes for n in live]
        elif item.homed:
            for t in item.touches:
                users[t].append(i)
        else:
            for t in range(item.touches[0], item.touches[-1] + 1):
                live[t] += item.nbytes

    def next_use(i: int, now: int) -> int:
        t = now % steps
        return min((u - t - 1) % steps for u in items[i].touches)

    cached: dict[int, int] = {}
    used = 0
    missed: set[tuple[int, int]] = set()
    for turn in range(WARM_UP_PASSES + 1):
        for t in range(steps):
            now = turn * steps + t
            wanted = users[t]
            for i in wanted:
                if i not in cached:
                    used += items[i].nbytes
                    n = items[i].touches.index(t)
                    if turn == WARM_UP_PASSES:
                        missed.add((i, (n - 1) % len(items[i].touches)))
                cached[i] = now
            while used + live[t] > capacity_nbytes:
                others = {i: at for i, at in cached.items() if i not in wanted}
                if not others:
                    return None
                out = victim(others, now, next_use)
                used -= items[out].nbytes
                del cached[out]
    real = {(g.item, g.before) for g in instance.gaps}
    return Decisions(frozenset(missed & real), {}, prefetch=prefetch)
