"""Plans of the two topmost tiers of a machine with more, chosen for what the tiers below make of them.

What a plan of two tiers loads, and cannot rest in the tier below, comes from further down, over slower links: there a
plan that loads less is better than one that waits less. So the candidates of the search behind `stow` are ranked by the
longer of the two times: their own, and that of the bytes that the tier below has no room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..ir.plan import Plan
from ..ir.simulate import simulate
from .instance import Instance
from .round import diffuse, fill, repair, spare_small, spread_evictions, threshold, to_decisions
from .search import PACKING_S, Search, warm_up
from .stays import Decisions, Landing
from .strategies import Effort

CUTS = (1.0, 1.4, 2.0, 0.5, 3.0, 0.0, 4.5, 7.0)
"""Room left to addresses, in sizes of the largest weight that moves: tried one after another."""

PHASES = (0.5, 1.0)
"""Shares of a gap that the bytes owed must exceed for it to be evicted (`round.diffuse`)."""


@dataclass
class Lean(Search):
    """A search over plans of the two topmost tiers of `whole`; `ranked` are the candidates by their estimated time."""

    whole: Instance | None = None
    ranked: list[tuple[float, int, Plan]] = field(default_factory=list[tuple[float, int, Plan]])

    def score(self, decisions: Decisions, packing_time_s: float = PACKING_S) -> float:
        """As `Search.score`; the candidate is ranked."""
        seconds = super().score(decisions, packing_time_s)
        if self.last is not None and self.whole is not None:
            plan = replace(self.last, machine=self.whole.digests[1])
            self.ranked.append((estimate_s(self.whole, plan), len(self.ranked), plan))
        return seconds


def lean_plans(
    instance: Instance, top: Instance, strategy: str, effort: Effort, *, time_share: float, number: int
) -> list[Plan]:
    """The `number` best by estimate of the plans of `top`, which are the two topmost tiers of `instance`, its link
    perhaps slowed; none where nothing was found in `time_share` of the time limit."""
    warm_up()
    candidates = _candidates(top, effort.time_limit_s)
    time_s = time_share * effort.time_limit_s
    # A negative difference is never good enough: the search goes on until its time is over.
    search = Lean(top, strategy, effort.seed, time_s, time_s, -1.0, whole=instance)
    for decisions in candidates:
        if search.finished:
            break
        search.score(decisions)
        search.score(replace(decisions, landing=Landing.LOWEST))
    return [plan for _, _, plan in sorted(search.ranked, key=lambda entry: entry[:2])[:number]]


def _candidates(top: Instance, time_limit_s: float) -> Iterator[Decisions]:
    """The fluid optimum under some cuts, whole tensors evicted such that the loads stay spread as it has them; what is
    made in the pass follows it by halves, as each of its evictions costs a store."""
    gaps = top.gaps
    whole = top.relax(top.capacity_nbytes, time_limit_s=time_limit_s).solution
    if whole is None:
        return
    moving = [(top.items[g.item].nbytes, g.clean) for g, e in zip(gaps, whole.absent, strict=False) if e > 0]
    largest = max((nbytes for nbytes, _ in moving), default=0)
    weights_only = all(clean for _, clean in moving)
    room = top.capacity_nbytes - max(top.base_nbytes, default=0)
    for cut in dict.fromkeys(min(room, int(share * largest)) for share in CUTS):
        absent: Sequence[float] = whole.absent[: len(gaps)]
        if weights_only:
            absent = spread_evictions(top, absent, cut)
        elif cut:
            less = top.relax(top.capacity_nbytes - cut, time_limit_s=time_limit_s).solution
            absent = less.absent[: len(gaps)] if less is not None else absent
        dirty = {g for g in threshold(top, absent) if not gaps[g].clean}
        for phase in PHASES:
            evicted = dirty | {g for g in diffuse(top, absent, phase) if gaps[g].clean}
            evicted = spare_small(top, evicted)
            if repair(top, absent, evicted, top.capacity_nbytes - cut):
                kept = fill(top, absent, evicted, top.capacity_nbytes - cut)
                yield to_decisions(top, evicted, kept, whole.stall_ns)


def estimate_s(instance: Instance, upper: Plan) -> float:
    """Seconds that a pass takes at the least: those of `upper` alone, and of the bytes that it loads and the tiers in
    the middle have no room for. No plan on all tiers with these loads is faster."""
    homed = {s.id for s in instance.graph.storages if s.homed}
    loads = (t for t in upper.transfers if t.target == instance.fast.name and t.storage in homed)
    loaded = {(t.storage, t.lo, t.hi) for t in loads}
    own = simulate(upper, instance.graph, instance.machine).pass_ns / 1e9
    return max(own, _excess_s(instance, sum(hi - lo for _, lo, hi in loaded)))


def _excess_s(instance: Instance, nbytes: float) -> float:
    """Seconds to fetch what of `nbytes` exceeds the tiers in the middle."""
    below = (*instance.middle[1:], instance.home)
    seconds = room = 0.0
    for tier, under in zip(instance.middle, below, strict=True):
        room += tier.usable_nbytes
        rate = instance.machine.link[under.name, tier.name].bytes_per_s
        seconds = max(seconds, (nbytes - room) / rate)
    return seconds
