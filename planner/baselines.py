"""Baselines: what loaders and caches do today, realised by the same placement, simulator and runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ..ir.errors import InfeasibleError
from ..ir.plan import Plan
from ..ir.sizes import format_size
from .fit import fit
from .instance import Instance
from .place import place
from .realise import realise
from .stays import Decisions, make_stays
from .strategies import Effort, register

WARM_UP_PASSES = 3  # a cache of recency or of next uses repeats itself after the first passes


@register
@dataclass(frozen=True, slots=True)
class Resident:
    """Everything stays in the fast tier, as frameworks do by default; infeasible where it does not fit."""

    name: ClassVar[str] = "resident"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan without any transfer."""
        nothing = Decisions(frozenset(), {}, prefetch=False)
        needed = instance.peak_of_all()
        placed = None
        if needed <= instance.capacity_nbytes:
            stays = make_stays(instance, nothing.evicted)
            placed = place(instance, stays, nothing, packing_time_s=effort.time_limit_s, seed=effort.seed)
        if placed is None:
            needed_total = format_size(needed + instance.workspace_nbytes)
            held = format_size(instance.fast.usable_nbytes)
            raise InfeasibleError(
                f"all of '{instance.graph.name}' takes {needed_total} in tier '{instance.fast.name}', which holds "
                f"{held}; give it --tier {instance.fast.name}={needed + instance.workspace_nbytes} or another strategy",
                smallest_nbytes=needed + instance.workspace_nbytes,
            )
        return realise(instance, placed, self.name)


@register
@dataclass(frozen=True, slots=True)
class OnDemand:
    """Every weight is loaded when its operator is next, and dropped after it: a loader that waits."""

    name: ClassVar[str] = "on-demand"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan that keeps no weight."""
        evicted = frozenset((g.item, g.before) for g in instance.gaps if g.clean)
        return _fitted(instance, effort, self.name, lambda _: Decisions(evicted, {}, prefetch=False))


@register
@dataclass(frozen=True, slots=True)
class Lru:
    """A cache of weights that evicts the least recently used; loads wait for the operator before."""

    name: ClassVar[str] = "lru"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cache's steady state."""
        return _fitted(instance, effort, self.name, lambda c: _cache(instance, c, _least_recent, prefetch=False))


@register
@dataclass(frozen=True, slots=True)
class Belady:
    """A cache of weights that evicts the one whose next use is farthest (Belady 1966); loads wait."""

    name: ClassVar[str] = "belady"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cache's steady state."""
        return _fitted(instance, effort, self.name, lambda c: _cache(instance, c, _farthest, prefetch=False))


@register
@dataclass(frozen=True, slots=True)
class BeladyPrefetch:
    """Belady's evictions, with every load started as early as addresses allow."""

    name: ClassVar[str] = "belady-prefetch"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cache's steady state."""
        return _fitted(instance, effort, self.name, lambda c: _cache(instance, c, _farthest, prefetch=True))


def _fitted(instance: Instance, effort: Effort, name: str, decide: Callable[[int], Decisions | None]) -> Plan:
    placed = fit(instance, decide, packing_time_s=effort.time_limit_s / 4, seed=effort.seed, strategy=name)
    return realise(instance, placed, name)


def _least_recent(cached: dict[int, int], now: int, next_use: Callable[[int, int], int]) -> int:
    del now, next_use
    return min(cached, key=lambda i: cached[i])


def _farthest(cached: dict[int, int], now: int, next_use: Callable[[int, int], int]) -> int:
    return max(cached, key=lambda i: next_use(i, now))


def _cache(
    instance: Instance,
    capacity_nbytes: int,
    victim: Callable[[dict[int, int], int, Callable[[int, int], int]], int],
    *,
    prefetch: bool,
) -> Decisions | None:
    """Replay a cache of homed items until its steady state; what misses at its next use was evicted in the gap before.

    Activations stay while they live. None where an operator's working set and the live activations do not fit.
    """
    items, steps = instance.items, instance.steps
    users: list[list[int]] = [[] for _ in range(steps)]
    live = [0] * steps
    for i, item in enumerate(items):
        if item.homed:
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
