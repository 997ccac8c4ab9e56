"""What is done without us, taken in by the search behind `stow`, so that its plan is no worse.

That is Belady's cache with prefetching, as `belady-prefetch` plans it: with the least room given up that packs. And
loads that wait for nothing but their use: all weights, or all that can leave, out whenever they can be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from .fit import CUTS
from .one_way import removable_gaps
from .place import MANY_BODIES
from .published.common import load_link, payload_nbytes
from .replay import farthest, replay_cache
from .search import PACKING_S, Search
from .stays import Decisions

BEGINNING_SHARE = 0.2
"""The part of the search that may go to what is usual before the rest of our own candidates. Where it takes longer, the
room is short, and it is not what will be best."""


@dataclass
class Usual:
    """`search` scores; `waiting` are the decisions that have not been looked at, the most promising first. Of those of
    one cache only the first that packs counts: `packed`."""

    search: Search
    waiting: Iterator[Decisions] = field(init=False)
    packed: bool = False
    patience_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = self._caches()
        self.patience_s = max(PACKING_S, self.search.most_s / 4)  # as baselines have

    def begin(self) -> None:
        """Score what there is time for in the share of the search that is its own."""
        until = time.monotonic() + self.search.time_s * BEGINNING_SHARE
        while not self.packed and not self.search.finished and time.monotonic() <= until:
            decisions = next(self.waiting, None)
            if decisions is None:
                return
            self._try(decisions, PACKING_S)

    def settle(self) -> None:
        """Score the rest, whatever the time, but for what cannot be better than the best. The first has as long for its
        addresses as a baseline, or half of the time that is left; each other half of the time that the one before it
        had. On graphs of many thousands of values each takes seconds, and nothing is done."""
        search = self.search
        if len(search.instance.items) > MANY_BODIES or search.near:
            return
        self.patience_s = max(PACKING_S, min(self.patience_s, search.left_s / 2))
        while not self.packed:
            decisions = next(self.waiting, None)
            if decisions is None or not self._try(decisions, self.patience_s):
                break  # a cache of less room loads no less
        gaps = removable_gaps(search.instance)
        for left_out in ([g for g in gaps if g.clean], gaps):
            self._try(Decisions(frozenset((g.item, g.before) for g in left_out)), self.patience_s)

    def _caches(self) -> Iterator[Decisions]:
        """Of Belady's cache in less and less room, each once."""
        instance, known = self.search.instance, set[frozenset[tuple[int, int]]]()
        least = max(instance.base_nbytes, default=0)
        for share in CUTS:
            capacity = instance.capacity_nbytes - int(share * (instance.capacity_nbytes - least))
            cached = replay_cache(instance, capacity, farthest, prefetch=True)
            if cached is None:  # what is in use does not fit, and will not in less room
                return
            if cached.evicted not in known:
                known.add(cached.evicted)
                yield cached

    def _try(self, decisions: Decisions, packing_time_s: float) -> bool:
        """Whether it could be better than the best, and was scored."""
        best = self.search.best
        if best is not None and self._least_s(decisions) >= best.certificate.simulated_s:
            return False
        self.packed |= self.search.score(decisions, packing_time_s) < float("inf")
        self.patience_s /= 2
        return True

    def _least_s(self, decisions: Decisions) -> float:
        """Seconds that a pass takes at the least when all this is loaded, wherever it lies."""
        instance = self.search.instance
        link = load_link(instance)
        loads_ns = sum(link.busy_ns(payload_nbytes(instance, item)) for item, _ in decisions.evicted)
        return max(loads_ns, sum(instance.durations_ns)) / 1e9
