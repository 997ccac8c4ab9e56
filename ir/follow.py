"""The bytes of one storage, followed through a plan: which version of them every place holds, and when.

The writes of a storage are counted; what a step reads is the content after the last write before it. A transfer carries
the content of its source, a residency holds what was last written or moved into it, and the home tier holds the first
content of a homed storage without any residency saying so. Homed storages go on from pass to pass, the others begin
anew in each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .chains import covers, occurrence, permanent, place_among, source_among
from .graph import Storage
from .plan import Plan, Residency, Transfer
from .uses import Uses

Event = tuple[tuple[int, int, int, int], int, int | None]
"""When content came, in an order in which the last one counts; and its version, or the pass of the transfer that
brought it and the number of its route."""


@dataclass(frozen=True, slots=True)
class Route:
    """A transfer of a storage with the residency that it takes its bytes from, and the one that it puts them into; None
    for the home of a homed storage, and where it has none."""

    transfer: Transfer
    source: Residency | None
    place: Residency | None


def routes_of(plan: Plan, storage: Storage, stays: Sequence[Residency], moves: Sequence[Transfer]) -> list[Route]:
    """The transfers `moves` of a storage, with what they take and fill among its residencies `stays`."""
    total, homed, home = len(plan.steps), storage.homed, plan.home_tier
    return [
        Route(
            t,
            None if homed and t.origin == home else source_among(stays, t, total, homed=homed),
            None if homed and t.target == home else place_among(stays, t, total, homed=homed),
        )
        for t in moves
    ]


@dataclass(slots=True)
class Bytes:
    """Bytes [lo, hi) of a storage, which every residency and transfer listed covers wholly.

    `made_anew`: each write makes all of the content. Instants are counted on from pass 0; those below 0 lie before it.
    """

    plan: Plan
    storage: Storage
    uses: Uses
    lo: int
    hi: int
    stays: list[Residency]
    routes: list[Route]
    unit_tier: dict[str, str]
    is_input: bool
    made_anew: bool
    total: int = field(init=False)
    turns: tuple[int, ...] = field(init=False)
    _into: dict[str, list[tuple[int, Route]]] = field(init=False)
    _visiting: set[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        """`total` steps; the passes, relative to pass 0, whose events may count in it; routes by target."""
        self.total = len(self.plan.steps)
        self.turns = (-1, 0, 1) if self.storage.homed else (0,)
        self._visiting = set()
        self._into = {}
        for number, route in enumerate(self.routes):
            self._into.setdefault(route.transfer.target, []).append((number, route))

    def unit_tier_of(self, step: int) -> str:
        """The tier that `step` computes in."""
        return self.unit_tier[self.plan.steps[step].unit]

    def wanted(self, step: int) -> int | None:
        """The version that `step` finds, counted from pass 0: None where nothing has been written yet."""
        before = bisect_left(self.uses.writes, step)
        if self.storage.homed:
            return before
        return before or (0 if self.is_input else None)

    def found(self, step: int, tier: str, *, at_end: bool) -> int | None:
        """The version that `step` finds in `tier`, or leaves there; None where it holds nothing.

        It counts on the transfers that must be complete, and looks where the storage is while it runs: what has its
        place until then, or from then on, is not there.
        """
        instant = step + 1 if at_end else step
        return self._latest(tier, instant, [r for r in self.stays if r.tier == tier and covers(r, step, self.total)])

    def carried(self, number: int, turn: int) -> int | None:
        """The version that route `number` moves in the pass `turn` after pass 0; None where it has none to move.

        It may count on transfers that begin before it, as it waits for them (`chains`).
        """
        key = (number, turn)
        if key in self._visiting:  # transfers that fill one another's sources
            return None
        self._visiting.add(key)
        try:
            t, source = self.routes[number].transfer, self.routes[number].source
            after = t.after + turn * self.total
            # Of what is homed: as in the pass before, with the writes of a pass more.
            shift = max(0, -(after // self.total)) if self.storage.homed else 0
            stays = [] if source is None else [source]
            version = self._latest(t.origin, after + shift * self.total, stays, number)
            return None if version is None else version - shift * len(self.uses.writes)
        finally:
            self._visiting.discard(key)

    def _latest(self, tier: str, instant: int, stays: list[Residency], by: int | None = None) -> int | None:
        """The version in `tier` at `instant`, in one of `stays` or at home there; for a step, or for route `by`."""
        latest: Event | None = None
        for r, since in self._turns(tier, instant, stays):
            for event in self._events(tier, r, since, instant, by):
                if latest is None or event[0] > latest[0]:
                    latest = event
            if latest is None and since <= -self.total:  # it has been there for ever
                return 0 if self.storage.homed and not self.uses.writes else None
        if latest is None:
            return None
        _, number, mover = latest
        return number if mover is None else self.carried(mover, number)

    def _turns(self, tier: str, instant: int, stays: list[Residency]) -> Iterator[tuple[Residency | None, int]]:
        """Each place in `tier`, None for home, and from when what it holds at `instant` has been there."""
        if self.storage.homed and tier == self.plan.home_tier:
            yield None, instant - max(self.total, instant + self.total)
        for r in stays:
            start = occurrence(r, instant, self.total, homed=self.storage.homed)
            if start is not None:
                yield r, -self.total if permanent(r, self.total) and self.storage.homed else start

    def _events(self, tier: str, place: Residency | None, since: int, upto: int, by: int | None) -> Iterator[Event]:
        """What was written into `place` from instant `since` until `upto`, and what was moved there.

        Of events at one instant a transfer in follows a write: it could not carry less. What is given to a pass is put
        there as its first step begins, which no transfer waits for.
        """
        total, writes = self.total, self.uses.writes
        if self.is_input and since <= 0 <= upto - (by is not None) and tier == self.unit_tier_of(0):
            yield (0, 0, 0, 0), 0, None
        into = self._into.get(tier, ())
        for turn in self.turns:
            for number, w in enumerate(writes):
                when = w + 1 + turn * total
                if since <= when - 1 and when <= upto and self.unit_tier_of(w) == tier:
                    yield (when, 0, 0, 0), number + 1 + turn * len(writes), None
            for number, route in into:
                t = route.transfer
                after = t.after + turn * total
                when = after if by is not None else t.before + turn * total
                early = when < upto or (when == upto and (by is None or number < by))
                if early and since <= after and route.place == place:
                    yield (when, 1, after, number), turn, number
