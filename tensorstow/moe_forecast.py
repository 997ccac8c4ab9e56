"""How long a pass waits for its experts, and what it reads: the runtime's own caches, replayed in virtual time.

What is asked for comes from a trace, or is drawn (`moe_passes`). The caches, what they evict and what they read ahead
are the code that runs (`runtime/module/experts_cache.py`, `experts_ahead.py`, `experts_recall.py`); only time is not:
reads share a `VirtualLink`, and computing takes what the plan says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .ir.machine import Link
from .ir.program import ExpertCaching
from .moe_link import VirtualLink, VirtualPool
from .moe_passes import Asked, Passes

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from .planner.pytorch.experts_time import Pace
    from .runtime.module.experts_cache import ExpertCache
    from .runtime.module.experts_worth import Worth


@dataclass(frozen=True, slots=True)
class Forecast:
    """The mean of the passes that count: nanoseconds of a pass in all; what is waited for, and what is computed, in
    each layer; hits among uses, bytes read, and bytes that whoever caches must read. `decide_ns` is what the policy
    took here for all layers of a pass, in real time: it is in none of the others."""

    pass_ns: float
    wait_ns: tuple[float, ...]
    loop_ns: tuple[float, ...]
    hit_rate: float
    read_nbytes: float
    least_nbytes: float
    decide_ns: float = field(compare=False)


def forecast(caching: ExpertCaching, pace: Pace, link: Link, passes: Passes) -> Forecast:
    """Replay `passes` from empty caches on."""
    from .runtime.module.experts import READERS

    replay = _Replay(caching, pace, VirtualLink(link.bytes_per_s, link.latency_s * 1e9, READERS))
    count = sum(passes.counted)
    hits = misses = reads = 0
    passed_ns = 0.0
    for asked, counts in zip(passes.asked, passes.counted, strict=True):
        began, before = replay.link.now_ns, replace(replay.stats)
        replay.run(asked, counts=counts)
        if counts:
            passed_ns += replay.link.now_ns - began
            hits += replay.stats.hits - before.hits
            misses += replay.stats.misses - before.misses
            reads += replay.stats.misses - before.misses + replay.stats.ahead - before.ahead
    return Forecast(
        pass_ns=passed_ns / count,
        wait_ns=tuple(ns / count for ns in replay.waited),
        loop_ns=tuple(ns / count for ns in replay.computed),
        hit_rate=hits / max(hits + misses, 1),
        read_nbytes=reads * _mean_nbytes(caching, passes) / count,
        least_nbytes=_least_nbytes(caching, passes) / count,
        decide_ns=replay.stats.decided_ns / len(passes.asked),
    )


def _mean_nbytes(caching: ExpertCaching, passes: Passes) -> float:
    """Of an expert that is asked for."""
    counts = passes.means()
    nbytes = sum(n * layer.nbytes for n, layer in zip(counts, caching.layers, strict=True))
    return nbytes / max(sum(counts), 1e-9)


def _least_nbytes(caching: ExpertCaching, passes: Passes) -> float:
    """Bytes that the passes that count read at least, whoever caches them in as many slots with each layer's set of a
    pass side by side, whatever lay there before: Belady's misses from empty caches on, but for one a slot, in each row
    of such passes. Nothing is known of sets that do not fit, and of shared slots."""
    rows = groupby(zip(passes.counted, passes.asked, strict=True), key=lambda pair: pair[0])
    return sum(_least_of_row(caching, [asked for _, asked in row]) for counts, row in rows if counts)


def _least_of_row(caching: ExpertCaching, asked: Sequence[Asked]) -> float:
    from .solvers.caching.offline import replay_belady
    from .solvers.caching.problem import NONE, Requests

    layers = caching.layers
    width = max((len(chosen) for one in asked for chosen in one), default=0)
    if caching.shared or not width or width > caching.slots:
        return 0.0
    ids = np.full((len(asked), len(layers), width), NONE, np.int32)
    for k, one in enumerate(asked):
        for number, chosen in enumerate(one):
            ids[k, number, : len(chosen)] = chosen
    found = replay_belady(
        Requests(ids, np.ones((len(layers), max(x.experts for x in layers)), np.int64)), caching.slots
    )
    misses = (found.asked - found.hits).sum(axis=0) - caching.slots
    return float(sum(max(0, int(n)) * layer.nbytes for n, layer in zip(misses, layers, strict=True)))


@dataclass(frozen=True, slots=True)
class _Layer:
    """As `runtime.module.experts.LayerExperts`, without memory."""

    number: int
    cache: ExpertCache
    first: int

    def objects(self, experts: Sequence[int]) -> list[int]:
        """As the cache calls them."""
        return [self.first + e for e in experts]


class _Replay:
    """Caches of all layers, and a pass through them as `runtime.module.experts.ExpertForwards` has it. `waited` and
    `computed` are the nanoseconds of the passes that count, by layer."""

    def __init__(self, caching: ExpertCaching, pace: Pace, link: VirtualLink) -> None:
        from .runtime.module.experts_ahead import Followers
        from .runtime.module.experts_recall import make_worths
        from .runtime.module.experts_stats import ExpertStats

        self.caching, self.pace, self.link = caching, pace, link
        self.stats = ExpertStats()
        self.waited = [0.0] * len(caching.layers)
        self.computed = [0.0] * len(caching.layers)
        self._followers = Followers([layer.experts for layer in caching.layers])
        every = range(len(caching.layers))
        groups = [list(every)] if caching.shared else [[number] for number in every]
        pairs = zip(groups, make_worths(caching), strict=True)
        self._layers = [layer for group, worth in pairs for layer in self._group(group, worth)]

    def _group(self, group: Sequence[int], worth: Worth) -> list[_Layer]:
        """Layers that share a cache."""
        from .runtime.module.experts_cache import ExpertCache

        members = [self.caching.layers[number] for number in group]
        pool: Any = VirtualPool(self.link, max(layer.nbytes for layer in members))
        cache = ExpertCache(
            sum(layer.experts for layer in members),
            self.caching.slots,
            lambda expert, slot: None,
            cast("ThreadPoolExecutor", pool),
            stats=self.stats,
            worth=worth,
        )
        first = np.cumsum([0, *(layer.experts for layer in members)]).tolist()
        return [_Layer(number, cache, first[k]) for k, number in enumerate(group)]

    def run(self, asked: Asked, *, counts: bool) -> None:
        """One pass."""
        for layer, chosen in zip(self._layers, asked, strict=True):
            self.link.wait(self.pace.before_ns[layer.number])
            waited = self._event(layer, chosen)
            if counts:
                self.waited[layer.number] += waited
                self.computed[layer.number] += self._loop_ns(layer.number, len(chosen))

    def _loop_ns(self, number: int, asked: int) -> float:
        return self.pace.fixed_ns[number] + asked * self.pace.each_ns[number]

    def _event(self, layer: _Layer, chosen: Sequence[int]) -> float:
        """A layer's experts; how long was waited."""
        from .runtime.module.experts_ahead import foresee

        fused = self.caching.layers[layer.number].fused
        layer.cache.begin(layer.objects(chosen) if fused else ())
        if fused:
            foresee(self._followers, self._layers, layer, chosen, self.caching.ahead)
        self.link.wait(self.pace.fixed_ns[layer.number])
        waited = 0.0
        for expert in sorted(chosen):
            began = self.link.now_ns
            layer.cache.need(layer.first + expert)
            waited += self.link.now_ns - began
            self.link.wait(self.pace.each_ns[layer.number])
        if not fused:  # what a list of experts is asked for is known when it was
            wanted = [e - layer.first for e in layer.cache.wanted]
            foresee(self._followers, self._layers, layer, wanted, self.caching.ahead)
        layer.cache.end()
        return waited
