"""What one tier is used for by the tier above it: parcels of bytes, their visits, and the stays that follow.

A transfer between a tier and the one above it is a visit: a load reads the parcel, which must be there from the instant
at which the load may start until it must be complete; a store writes it, which makes it there. Between two visits a
parcel stays, or it leaves and is fetched again from below in time for the next. What a store overwrites anyway need
not be kept until then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..ir.graph import Graph
from ..ir.plan import Transfer

SHORT_PAUSE = 32
"""What is overwritten after less than this part of a pass keeps its place meanwhile: it then never has to move."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A transfer to or from the tier above, from instant `after` until instant `before`; `writes`: it comes down."""

    after: int
    before: int
    writes: bool


@dataclass(frozen=True)
class Parcel:
    """Bytes [`lo`, `hi`) of a storage, which come and go as one above; `visits` in the order in which they begin."""

    storage: str
    lo: int
    hi: int
    homed: bool
    visits: tuple[Visit, ...]
    steps: int

    @property
    def nbytes(self) -> int:
        """Length of the range."""
        return self.hi - self.lo

    @property
    def made(self) -> bool:
        """Whether the tier below does not have it: what is made or changed above must go down before it leaves."""
        return not self.homed or any(v.writes for v in self.visits)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """For each visit, the instant until which it and those that began before it need the parcel."""
        ends = [max(v.before, v.after + 1) for v in self.visits]
        for _ in range(2 if self.homed else 1):
            for i in range(len(ends)):
                if i or self.homed:
                    ends[i] = max(ends[i], ends[i - 1] - (0 if i else self.steps))
        return tuple(ends)

    @cached_property
    def pauses(self) -> tuple[Pause, ...]:
        """After each visit that another one follows: the pause between the two, where the parcel could be away."""
        count = len(self.visits)
        found: list[Pause] = []
        for i in range(count if self.homed else count - 1):
            following = self.visits[(i + 1) % count]
            again = following.after + (self.steps if i + 1 == count else 0)
            if again > self.ends[i]:
                dirty = not self.homed or self.visits[i].writes
                found.append(Pause(i, self.ends[i], again, dead=following.writes, clean=not dirty))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Pause:
    """After visit number `visit` nothing needs the parcel in steps [`start`, `end`); `end` may lie in the next pass.

    `dead`: the next visit overwrites it. `clean`: the tier below has what it holds.
    """

    visit: int
    start: int
    end: int
    dead: bool
    clean: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """Bytes [`lo`, `hi`) of a storage must be in the tier from instant `start` until instant `end`.

    `start` lies in [0, T); `end` may lie in the next pass. `fill_before`: they come from below by a transfer that must
    be complete at this instant, None where a store from above makes them. `drain_after`: they must be stored below
    before they leave, from this instant on; None: they need not be. `always`: they never leave. `earliest` and
    `latest`: when the stays before and after this one end and begin.
    """

    storage: str
    lo: int
    hi: int
    homed: bool
    start: int
    end: int
    fill_before: int | None
    drain_after: int | None
    always: bool
    earliest: int
    latest: int

    @property
    def nbytes(self) -> int:
        """Length of the range."""
        return self.hi - self.lo


def parcels_of(graph: Graph, transfers: Sequence[Transfer], tier: str, steps: int) -> list[Parcel]:
    """The parcels that `transfers`, all between `tier` and the one above, move."""
    by_storage: dict[str, list[Transfer]] = {}
    for t in transfers:
        by_storage.setdefault(t.storage, []).append(t)
    found: list[Parcel] = []
    for storage, moves in by_storage.items():
        cuts = sorted({x for t in moves for x in (t.lo, t.hi)})
        for lo, hi in pairwise(cuts):
            visits = [Visit(t.after, t.before, t.target == tier) for t in moves if t.lo <= lo and hi <= t.hi]
            if visits:
                visits.sort(key=lambda v: (v.after, not v.writes, v.before))
                found.append(Parcel(storage, lo, hi, graph.storage[storage].homed, tuple(visits), steps))
    return found


def holds_of(parcel: Parcel, away_nbytes: Sequence[int]) -> Iterator[Hold]:
    """The stays of a parcel of which the first `away_nbytes`[i] are away in its pause number i."""
    cuts = sorted({0, parcel.nbytes, *away_nbytes})
    for lo, hi in pairwise(cuts):
        away = [p for p, nbytes in zip(parcel.pauses, away_nbytes, strict=True) if lo < nbytes and not p.dead]
        dead = [p for p in parcel.pauses if p.dead]
        if parcel.homed and not away and sum(p.end - p.start for p in dead) <= parcel.steps // SHORT_PAUSE:
            own = (parcel.storage, parcel.lo + lo, parcel.lo + hi, True)
            yield Hold(*own, 0, parcel.steps, None, None, always=True, earliest=0, latest=parcel.steps)
            continue
        yield from _stays(parcel, parcel.lo + lo, parcel.lo + hi, sorted(away + dead, key=lambda p: p.visit))


def _stays(parcel: Parcel, lo: int, hi: int, away: list[Pause]) -> Iterator[Hold]:
    count, steps = len(parcel.visits), parcel.steps
    if parcel.homed:
        rounds = list(zip([away[-1], *away[:-1]], away, strict=True))
    else:
        rounds = list(zip([None, *away], [*away, None], strict=True))
    stored = False
    for previous, cut in rounds:
        first = 0 if previous is None else (previous.visit + 1) % count
        last = count - 1 if cut is None else cut.visit
        members = range(first, last + 1) if first <= last else (*range(first, count), *range(last + 1))
        visit = parcel.visits[first]
        end = parcel.ends[last] + (0 if first <= last else steps)
        written = [_complete(parcel, i, first) for i in members if parcel.visits[i].writes]
        dirty = bool(written) or (not parcel.homed and not stored)
        drains = dirty and cut is not None and not cut.dead
        stored = (stored and not written) or drains
        pause = 0 if previous is None else previous.end - previous.start
        yield Hold(
            parcel.storage,
            lo,
            hi,
            parcel.homed,
            visit.after,
            end,
            fill_before=None if visit.writes else visit.before,
            drain_after=max(written, default=visit.after) if drains else None,
            always=False,
            earliest=visit.after - pause if parcel.homed or previous is not None else 0,
            latest=end + (cut.end - cut.start) if cut is not None else steps,
        )


def _complete(parcel: Parcel, visit: int, first: int) -> int:
    """When a visit is complete, counted from the pass in which visit number `first` begins."""
    return parcel.visits[visit].before + (parcel.steps if visit < first else 0)
