"""Which transfers a transfer must wait for: those that bring its bytes to where it takes them from, and those that
take others away from where it puts them.

Of two transfers that may begin at the same instant, the one that stands first in the plan counts as the earlier.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def source_among(stays: Iterable[Residency], t: Transfer, total: int, *, homed: bool) -> Residency | None:
    """The one of `stays` that `t` takes its bytes from: of two that meet at its instant the one that was there before.
    None where none holds them from instant `t.after` through `t.before`."""
    found = _holding(stays, t, t.origin, total, homed=homed)
    return min(found, key=lambda turn: turn[0])[1] if found else None


def place_among(stays: Iterable[Residency], t: Transfer, total: int, *, homed: bool) -> Residency | None:
    """The one of `stays` that `t` puts its bytes into: of two that meet at its instant the new one. None where none
    holds them from instant `t.after` through `t.before`."""
    found = _holding(stays, t, t.target, total, homed=homed)
    return max(found, key=lambda turn: turn[0])[1] if found else None


def _holding(
    stays: Iterable[Residency], t: Transfer, tier: str, total: int, *, homed: bool
) -> list[tuple[int, Residency]]:
    """Those of `stays` in `tier` that hold what `t` moves, each with the start of its turn."""
    return [
        (occurrence(r, t.after, total, homed=homed) or 0, r)
        for r in stays
        if r.tier == tier and holds(r, t, total, homed=homed)
    ]


def source_of(plan: Plan, graph: Graph, t: Transfer) -> Residency | None:
    """The residency of `plan` that `t` takes its bytes from; None where there is none."""
    homed = graph.storage[t.storage].homed
    return source_among(plan.residencies_of.get(t.storage, ()), t, len(plan.steps), homed=homed)


def transfer_waits(plan: Plan, graph: Graph) -> tuple[tuple[Wait, ...], ...]:
    """For each transfer of the plan, those it must wait for beyond the order of its lane and the instants.

    That are the last ones before it into its source, one for each range of bytes, and those that must be complete by
    the very instant at which it may start, out of or into what ends there in its place: later, a step has waited.
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
        # Transfers by storage and target; and those out of or into a residency that ends when they must be complete, by
        # tier and that instant of the pass.
        self.into: dict[tuple[str, str], list[int]] = {}
        self.leaving: dict[tuple[str, int], list[tuple[int, Residency]]] = {}
        for index, (t, source) in enumerate(zip(plan.transfers, self.sources, strict=True)):
            self.into.setdefault((t.storage, t.target), []).append(index)
            ends = t.before % self.total
            for tier, r in ((t.origin, source), (t.target, self._ending_place(t))):
                if r is not None and r.end % self.total == ends:
                    self.leaving.setdefault((tier, ends), []).append((index, r))

    def _ending_place(self, t: Transfer) -> Residency | None:
        """Where `t` puts its bytes, if that ends when it must be complete: nobody has waited for those, then."""
        total, ends, homed = self.total, t.before % self.total, self.homed[t.storage]
        stays = self.stays.get(t.storage, ())
        if not any(r.end % total == ends and r.tier == t.target for r in stays):  # few do
            return None
        place = place_among(stays, t, total, homed=homed)
        return None if place is None or (homed and permanent(place, total)) else place

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
            if not (f.lo < t.hi and t.lo < f.hi and since <= after and (after < t.after or index < own)):
                continue
            if after < t.after or self._fills(f, self.sources[own]):
                latest[f.lo, f.hi] = max(latest.get((f.lo, f.hi), (after, index)), (after, index))
        return [Wait(i, (self.transfers[i].after - after) // total) for after, i in sorted(latest.values())]

    def _fills(self, f: Transfer, source: Residency | None) -> bool:
        """Whether `f` brings its bytes into `source`, and not into another place that begins at that instant."""
        if source is None:
            return True
        place = place_among(self.stays.get(f.storage, ()), f, self.total, homed=self.homed[f.storage])
        return place is None or place == source

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
