"""Which experts the next layer will probably ask for: those that mostly followed what this one has asked for.

Counts of pairs, learned while the module runs. A read that turns out vain holds up the link for as long as a right one
saves, so an expert is only taken where it followed at least every second time. And nothing is read unless that held of
late: what would be read is noted at every event, whether it is read or not, and compared with what is asked for next.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .experts_cache import ExpertCache

LEAST_CHANCE = 0.5
PRIOR = 8
"""Uses for which an expert's own share of all events stands in, until pairs have been seen: one that followed once,
after one use, is no certainty."""
MEMORY = 256
"""Uses of an expert after which its counts are halved: routing changes with the text."""

LEAST_JUDGED = 8
"""Reads of which it must be known whether they were right, before any is begun."""
JUDGED = 16
"""Reads after which those judged before count half."""


class Followers:
    """Pairs of experts of consecutive layers, of `experts[l]` experts each; after the last layer comes the first."""

    def __init__(self, experts: Sequence[int]) -> None:
        after = [*experts[1:], experts[0]]
        self._pairs = [np.zeros((e, f), np.float32) for e, f in zip(experts, after, strict=True)]
        self._uses = [np.zeros(e, np.float32) for e in experts]
        self._before: tuple[int, NDArray[np.int64]] | None = None
        self._guess: tuple[int, list[tuple[int, int | None]]] | None = None
        self._right, self._judged = 0.0, 0.0

    @property
    def nbytes(self) -> int:
        """Memory that the counts take."""
        return sum(p.nbytes for p in self._pairs) + sum(u.nbytes for u in self._uses)

    def learn(self, layer: int, chosen: Sequence[int]) -> None:
        """`layer` has asked for `chosen`, after whatever was told before."""
        now = np.asarray(chosen, np.int64)
        before = self._before
        if before is not None and (before[0] + 1) % len(self._uses) == layer:
            self._pairs[before[0]][np.ix_(before[1], now)] += 1
            uses = self._uses[before[0]]
            uses[before[1]] += 1
            old = np.flatnonzero(uses > MEMORY)
            uses[old] /= 2
            self._pairs[before[0]][old] /= 2
        self._before = layer, now

    def forget(self) -> None:
        """What comes next does not follow what was told last."""
        self._before = self._guess = None

    def guess(self, layer: int, exchanges: list[tuple[int, int | None]]) -> None:
        """Before `layer` asks, these experts are read, or would be, each in place of another one."""
        self._guess = layer, exchanges

    def judge(self, layer: int, chosen: Sequence[int]) -> None:
        """`layer` asks for `chosen`: a read was right that brought one of these and did not take another one away."""
        guess, self._guess = self._guess, None
        if guess is None or guess[0] != layer:
            return
        asked = frozenset(chosen)
        for expert, victim in guess[1]:
            self._right += (expert in asked) - (victim in asked)
            self._judged += 1
        if self._judged > 2 * JUDGED:
            self._right, self._judged = self._right / 2, self._judged / 2

    @property
    def trusted(self) -> bool:
        """Whether at least every second read of late was right, or would have been."""
        return self._judged >= LEAST_JUDGED and self._right >= LEAST_CHANCE * self._judged

    def likely(self, layer: int, chosen: Sequence[int], most: int) -> list[int]:
        """Up to `most` experts of the next layer, the likeliest first."""
        now = np.asarray(chosen, np.int64)
        uses = self._uses[layer][now]
        if not len(now) or not uses.any():
            return []
        pairs = self._pairs[layer]
        share = pairs.sum(axis=0) / self._uses[layer].sum()
        chance = ((pairs[now] + PRIOR * share) / (uses + PRIOR)[:, None]).mean(axis=0)
        best = np.argsort(-chance, kind="stable")[:most]
        return [int(e) for e in best if chance[e] >= LEAST_CHANCE]


class Cached(Protocol):
    """A layer whose experts are objects of a cache."""

    @property
    def number(self) -> int:
        """Its place in a pass."""
        ...

    @property
    def cache(self) -> ExpertCache:
        """That holds its experts."""
        ...

    def objects(self, experts: Sequence[int]) -> list[int]:
        """As the cache calls them."""
        ...


def foresee(followers: Followers, layers: Sequence[Cached], layer: Cached, asked: Sequence[int], most: int) -> None:
    """`layer` of `layers` was asked for `asked`: begin to read up to `most` experts that the next one will want.

    What it takes to foresee them counts in the cache's `decided_ns`, as ranking what is there does.
    """
    if not most or not asked or len(asked) > layer.cache.slots:
        followers.forget()  # of so many, nothing is learned
        return
    began = perf_counter_ns()
    followers.judge(layer.number, asked)
    followers.learn(layer.number, asked)
    after = layers[(layer.number + 1) % len(layers)]
    likely = after.objects(followers.likely(layer.number, asked, most))
    first = after.objects([0])[0]
    exchanges = after.cache.exchanges(likely, LEAST_CHANCE)
    followers.guess(after.number, [(e - first, None if v is None else v - first) for e, v in exchanges])
    trusted = followers.trusted
    layer.cache.stats.decided_ns += perf_counter_ns() - began
    if trusted:
        after.cache.exchange(exchanges, layer.cache.under_way)
