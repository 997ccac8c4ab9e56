"""Which transfers a transfer must wait for: those that bring its bytes to where it takes them from, and those that
take others away from where it puts them.

Of two transfers that may begin at the same instant, the one that stands first in the plan counts as the earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Graph
from .plan import Plan, Residency, Transfer


@dataclass(frozen=True, slots=True)
class Wait:
    """Transfer `index` of the plan, as run `passes` passes earlier."""

    index: int
    passes: int


def occurrence(r: Residency, instant: int, total: int, *, homed: bool) -> int | None:
    """The start of the turn of `r` that lasts at `instant`, counted on over passes of `total` steps; None if none does.

    Both ends count: a transfer may begin at the instant a residency starts, and must be complete when it ends. Of two
    turns that meet at the instant the later one is meant. What is not homed has one turn, in its own pass.
    """
    start = r.start + (instant - r.start) // total * total if homed else r.start
    return start if start <= instant <= start + r.end - r.start else None


def permanent(r: Residency, total: int) -> bool:
    """Whether it never ends: its turns follow one another without a pause."""
    return r.end - r.start == total


def covers(r: Residency, step: int, total: int) -> bool:
    """Whether `r` lasts throughout `step`, of this pass or as step of the next one."""
    return r.start <= step < r.end or r.start <= step + total < r.end


def holds(r: Residency, t: Transfer, total: int, *, homed: bool) -> bool:
    """Whether `r` covers the bytes of `t` from instant `t.after` through `t.before`."""
    if not (r.lo <= t.lo and t.hi <= r.hi):
        return False
    if homed and permanent(r, total):
        return True
    start = occurrence(r, t.after, total, homed=homed)
    return start is not None and t.before <= start + r.end - r.start


def source_of(plan: Plan, graph: Graph, t: Transfer) -> Residency | None:
    """The residency that holds what `t` moves, from instant `t.after` through `t.before`; None where there is none."""
    homed = graph.storage[t.storage].homed
    stays = plan.residencies_of.get(t.storage, ())
    return next((r for r in stays if r.tier == t.origin and holds(r, t, len(plan.steps), homed=homed)), None)


def transfer_waits(plan: Plan, graph: Graph) -> tuple[tuple[Wait, ...], ...]:
    """For each transfer of the plan, those it must wait for beyond the order of its lane and the instants.

    That are the last ones before it into its source, one for each range of bytes, and those that must have left its
    place by the very instant at which it may start: later, a step has waited for them.
    """
    if not plan.transfers:
        return ()
    chains = _Chains(plan, graph)
    return tuple(chains.waits(own, t) for own, t in enumerate(plan.transfers))


class _Chains:
    """What `transfer_waits` looks up for each transfer: a large plan has hundreds of thousands."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        self.transfers = plan.transfers
        self.stays = plan.residencies_of
        self.total = len(plan.steps)
        self.homed = {name: graph.storage[name].homed for name in {t.storage for t in plan.transfers}}
        at_home = (self.homed[t.storage] and t.origin == plan.home_tier for t in plan.transfers)
        self.sources = [
            None if home else source_of(plan, graph, t) for t, home in zip(plan.transfers, at_home, strict=True)
        ]
        # Transfers by storage and target; and those out of a residency that ends when they must be complete, by tier
        # and that instant of the pass.
        self.into: dict[tuple[str, str], list[int]] = {}
        self.leaving: dict[tuple[str, int], list[tuple[int, Residency]]] = {}
        for index, (t, source) in enumerate(zip(plan.transfers, self.sources, strict=True)):
            self.into.setdefault((t.storage, t.target), []).append(index)
            if source is not None and source.end % self.total == t.before % self.total:
                self.leaving.setdefault((t.origin, t.before % self.total), []).append((index, source))

    def waits(self, own: int, t: Transfer) -> tuple[Wait, ...]:
        """What transfer `own`, which is `t`, waits for."""
        into = self.into.get((t.storage, t.origin))
        leaving = self.leaving.get((t.target, t.after))
        content = self._for_content(own, t, into) if into else []
        return (*content, *self._for_room(t, leaving)) if leaving else tuple(content)

    def _for_content(self, own: int, t: Transfer, into: list[int]) -> list[Wait]:
        total, since = self.total, self._content_since(own, t)
        latest: dict[tuple[int, int], tuple[int, int]] = {}
        for index in into:
            f = self.transfers[index]
            after = f.after + (t.after - f.after) // total * total
            if f.lo < t.hi and t.lo < f.hi and since <= after and (after < t.after or index < own):
                latest[f.lo, f.hi] = max(latest.get((f.lo, f.hi), (after, index)), (after, index))
        return [Wait(i, (self.transfers[i].after - after) // total) for after, i in sorted(latest.values())]

    def _for_room(self, t: Transfer, leaving: list[tuple[int, Residency]]) -> list[Wait]:
        total, homed = self.total, self.homed[t.storage]
        places = [
            r
            for r in self.stays.get(t.storage, ())
            if r.start == t.after and r.tier == t.target and holds(r, t, total, homed=homed)
        ]
        return [
            Wait(index, (self.transfers[index].before - t.after) // total)
            for index, source in leaving
            if any(r.offset < source.offset + source.nbytes and source.offset < r.offset + r.nbytes for r in places)
        ]

    def _content_since(self, own: int, t: Transfer) -> int:
        """The instant before which nothing moved into the source of `t` concerns it: an earlier content lay there."""
        total, homed, source = self.total, self.homed[t.storage], self.sources[own]
        for_ever = t.after - total if homed else 0
        if source is None or (homed and permanent(source, total)):
            return for_ever
        start = occurrence(source, t.after, total, homed=homed)
        return for_ever if start is None else max(start, for_ever)
