"""How long a pass waits for its experts, and what it reads: the runtime's own caches, replayed in virtual time.

What is asked for comes from a trace, or is drawn: without one, each token chooses evenly and independently. The caches,
what they evict and what they read ahead are the code that runs (`runtime/module/experts_cache.py`, `experts_ahead.py`);
only time is not: reads share a `VirtualLink`, and computing takes what the plan says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .ir.machine import Link
from .ir.program import ExpertCaching
from .moe_link import VirtualLink, VirtualPool

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from .planner.experts.trace import Trace
    from .planner.pytorch.experts_time import Pace
    from .runtime.module.experts_cache import ExpertCache

USES = 6_000
"""Uses of experts that a replay follows, about: a second of Python, and one in a hundred of chance."""
LEAST_PASSES = 6
"""Fewer are never drawn, however many experts a pass uses."""

Asked = tuple[tuple[int, ...], ...]
"""By layer, the experts of one pass, in the order in which its tokens name them."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The mean of `passes` passes that followed `warm` others: seconds of a pass in all, what is waited for in each
    layer, hits among uses, bytes read, and bytes that whoever caches must read."""

    pass_ns: float
    wait_ns: tuple[float, ...]
    hit_rate: float
    read_nbytes: float
    least_nbytes: float
    passes: int
    warm: int


def drawn_passes(caching: ExpertCaching, tokens: int, seed: int = 0) -> list[Asked]:
    """Passes of `tokens` tokens that choose evenly and independently: enough that caches are full, and to count."""
    uses = sum(min(x.experts, x.top_k * tokens) for x in caching.layers)
    passes = max(LEAST_PASSES, USES // uses)
    generator = np.random.default_rng(seed)
    return [tuple(_drawn(x.experts, x.top_k, tokens, generator) for x in caching.layers) for _ in range(passes)]


def _drawn(experts: int, top_k: int, tokens: int, generator: np.random.Generator) -> tuple[int, ...]:
    chosen = np.argsort(generator.random((tokens, experts)), axis=1)[:, :top_k]
    return tuple(dict.fromkeys(chosen.reshape(-1).tolist()))


def traced_passes(trace: Trace, tokens: int) -> list[Asked]:
    """The trace's last tokens in passes of `tokens` each; a shorter trace is one pass."""
    uses = trace.layers * min(trace.experts, trace.top_k * tokens)
    passes = max(1, min(trace.tokens // tokens, max(LEAST_PASSES, USES // uses)))
    kept = trace.ids[-min(passes * tokens, trace.tokens) :]
    return [_asked(kept[k * tokens : (k + 1) * tokens]) for k in range(passes)]


def _asked(ids: NDArray[np.int32]) -> Asked:
    sets = (dict.fromkeys(ids[:, layer].reshape(-1).tolist()) for layer in range(ids.shape[1]))
    return tuple(tuple(e for e in chosen if e >= 0) for chosen in sets)


def forecast(caching: ExpertCaching, pace: Pace, link: Link, passes: Sequence[Asked]) -> Forecast:
    """Replay `passes` from empty caches on; the first half of them only warms up."""
    from .runtime.module.experts import READERS

    replay = _Replay(caching, pace, VirtualLink(link.bytes_per_s, link.latency_s * 1e9, READERS))
    warm = len(passes) // 2
    for asked in passes[:warm]:
        replay.run(asked)
    began, before, counted = replay.link.now_ns, replace(replay.stats), len(passes) - warm
    replay.waited = [0.0] * len(caching.layers)
    for asked in passes[warm:]:
        replay.run(asked)
    hits, misses = replay.stats.hits - before.hits, replay.stats.misses - before.misses
    reads = misses + replay.stats.ahead - before.ahead
    return Forecast(
        pass_ns=(replay.link.now_ns - began) / counted,
        wait_ns=tuple(ns / counted for ns in replay.waited),
        hit_rate=hits / max(hits + misses, 1),
        read_nbytes=reads * _mean_nbytes(caching, passes) / counted,
        least_nbytes=_least_nbytes(caching, passes[warm:], warm=warm > 0) / counted,
        passes=counted,
        warm=warm,
    )


def _mean_nbytes(caching: ExpertCaching, passes: Sequence[Asked]) -> float:
    """Of an expert that is asked for."""
    counts = [sum(len(asked[number]) for asked in passes) for number in range(len(caching.layers))]
    nbytes = sum(n * layer.nbytes for n, layer in zip(counts, caching.layers, strict=True))
    return nbytes / max(sum(counts), 1)


def _least_nbytes(caching: ExpertCaching, passes: Sequence[Asked], *, warm: bool) -> float:
    """Bytes that these passes read at least, whoever caches them in as many slots, whatever lay there before: Belady's
    misses from empty caches on, but for one a slot. Nothing is known of sets that do not fit, and of shared slots."""
    from .solvers.caching.offline import replay_belady
    from .solvers.caching.problem import NONE, Requests

    layers = caching.layers
    width = max((len(asked) for one in passes for asked in one), default=0)
    if caching.shared or not width or width > caching.slots:
        return 0.0
    ids = np.full((len(passes), len(layers), width), NONE, np.int32)
    for k, one in enumerate(passes):
        for number, asked in enumerate(one):
            ids[k, number, : len(asked)] = asked
    found = replay_belady(
        Requests(ids, np.ones((len(layers), max(x.experts for x in layers)), np.int64)), caching.slots
    )
    misses = (found.asked - found.hits).sum(axis=0) - (caching.slots if warm else 0)
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
    """Caches of all layers, and a pass through them as `runtime.module.experts.ExpertForwards` has it."""

    def __init__(self, caching: ExpertCaching, pace: Pace, link: VirtualLink) -> None:
        from .runtime.module.experts_ahead import Followers
        from .runtime.module.experts_cache import ExpertStats

        self.caching, self.pace, self.link = caching, pace, link
        self.stats = ExpertStats()
        self.waited = [0.0] * len(caching.layers)
        self._followers = Followers([layer.experts for layer in caching.layers])
        every = range(len(caching.layers))
        groups = [list(every)] if caching.shared else [[number] for number in every]
        self._layers = [layer for group in groups for layer in self._group(group)]

    def _group(self, group: Sequence[int]) -> list[_Layer]:
        """Layers that share a cache."""
        from .runtime.module.experts_cache import ExpertCache

        members = [self.caching.layers[number] for number in group]
        pool: Any = VirtualPool(self.link, max(layer.nbytes for layer in members))
        objects = sum(layer.experts for layer in members)
        cache = ExpertCache(
            objects,
            self.caching.slots,
            lambda expert, slot: None,
            cast("ThreadPoolExecutor", pool),
            decay=self.caching.decay,
            stats=self.stats,
        )
        first = np.cumsum([0, *(layer.experts for layer in members)]).tolist()
        return [_Layer(number, cache, first[k]) for k, number in enumerate(group)]

    def run(self, asked: Asked) -> None:
        """One pass."""
        for layer, chosen in zip(self._layers, asked, strict=True):
            self.link.wait(self.pace.before_ns[layer.number])
            self._event(layer, chosen)

    def _event(self, layer: _Layer, chosen: Sequence[int]) -> None:
        from .runtime.module.experts_ahead import foresee

        fused = self.caching.layers[layer.number].fused
        layer.cache.begin(layer.objects(chosen) if fused else ())
        if fused:
            foresee(self._followers, self._layers, layer, chosen, self.caching.ahead)
        each = self.pace.experts_ns[layer.number] / max(len(chosen), 1)
        for expert in sorted(chosen):
            began = self.link.now_ns
            layer.cache.need(layer.first + expert)
            self.waited[layer.number] += self.link.now_ns - began
            self.link.wait(each)
        if not fused:  # what a list of experts is asked for is known when it was
            wanted = [e - layer.first for e in layer.cache.wanted]
            foresee(self._followers, self._layers, layer, wanted, self.caching.ahead)
        layer.cache.end()
