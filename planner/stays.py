"""From decisions about gaps to stays: the intervals in which bytes of an item must be in the fast tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, pairwise

from .instance import Instance
from .items import Item


@dataclass(frozen=True, slots=True)
class Stay:
    """Bytes [`lo`, `hi`) of item `item` must be in the fast tier from step `first` through step `last`.

    `last` may lie in the next pass. `loads`: they come by a transfer that must be complete at instant `first`, else
    they are made there. `stores`: they are dirty, and must be stored; that may begin at instant `written`, after the
    last step of the stay that writes them, and must when it ends. `always`: they never leave.
    """

    item: int
    lo: int
    hi: int
    first: int
    last: int
    loads: bool = False
    stores: bool = False
    always: bool = False
    written: int = 0

    @property
    def nbytes(self) -> int:
        """Length of the range."""
        return self.hi - self.lo


@dataclass(slots=True)
class Placed:
    """A stay at address `offset` (of its byte `lo`), occupied in steps [start, end).

    `start` lies in [0, T) or, for a load that begins in the pass before, below 0; `end` is at most `start` + T.
    """

    stay: Stay
    offset: int
    start: int
    end: int

    @property
    def lo(self) -> int:
        """First byte of its item that it holds."""
        return self.stay.lo

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.stay.hi - self.stay.lo


class Landing(str, Enum):
    """Where a load goes when several places are in time: the lowest, or the next round the room."""

    LOWEST = "lowest"
    RING = "ring"


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a strategy decides. `evicted`: gaps (item, use number) in which the item leaves the fast tier.

    `kept_nbytes`: how many of the item's first bytes stay all the same in such a gap, none if it is not named.
    `prefetch`: whether transfers may start as early as addresses allow, or only when the step before is complete.
    `stall_ns`: the wait before each step that the strategy expects, where it knows; it tells when loads should start.
    `timed`: addresses are found for the intervals that a timetable of the links gives; else loads are put, one after
    another, where they can be in time, and `landing` chooses among such places.
    `reserved`: loads (item, step of use) that are given place and time before the others, beside what is made.
    """

    evicted: frozenset[tuple[int, int]]
    kept_nbytes: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    prefetch: bool = True
    stall_ns: tuple[int, ...] = ()
    landing: Landing = Landing.RING
    timed: bool = False
    reserved: frozenset[tuple[int, int]] = frozenset()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal decisions, and hashable."""
        own = self.evicted, frozenset(self.kept_nbytes.items()), self.reserved
        return *own, self.prefetch, self.stall_ns, self.landing, self.timed


def make_stays(
    instance: Instance, evicted: Set[tuple[int, int]], kept_nbytes: Mapping[tuple[int, int], int] | None = None
) -> list[Stay]:
    """The stays of every item, under the gaps in which it is evicted, but for its first `kept_nbytes` there."""
    cuts_of: dict[int, list[int]] = {}
    for i, n in sorted(evicted):
        cuts_of.setdefault(i, []).append(n)
    found: list[Stay] = []
    for i, item in enumerate(instance.items):
        cuts = cuts_of.get(i, [])
        kept = {n: (kept_nbytes or {}).get((i, n), 0) for n in cuts}
        ends = {0, item.nbytes, *kept.values()}
        for lo, hi in pairwise(sorted(ends)):
            leaves = [n for n in cuts if kept[n] <= lo]
            if item.homed:
                found += _homed_stays(Stay(i, lo, hi, 0, instance.steps - 1), item, leaves, instance.steps)
            else:
                found += _made_stays(Stay(i, lo, hi, 0, 0), item, leaves)
    return found


def stays_of(instance: Instance, decisions: Decisions) -> list[Stay]:
    """The stays under `decisions`."""
    return make_stays(instance, decisions.evicted, decisions.kept_nbytes)


def _homed_stays(whole: Stay, item: Item, cuts: list[int], steps: int) -> list[Stay]:
    i, lo, hi = whole.item, whole.lo, whole.hi
    if not cuts:
        return [Stay(i, lo, hi, 0, steps - 1, always=True)]
    stays: list[Stay] = []
    for previous, cut in zip([cuts[-1], *cuts[:-1]], cuts, strict=True):
        first = item.touches[(previous + 1) % len(item.touches)]
        last = item.touches[cut]
        last += steps if last < first else 0
        inside = [w for turn in (0, steps) for w in (v + turn for v in item.writes) if first <= w <= last]
        written = max(inside, default=-1) + 1
        stays.append(Stay(i, lo, hi, first, last, loads=True, stores=bool(inside), written=written))
    return stays


def _made_stays(whole: Stay, item: Item, cuts: list[int]) -> list[Stay]:
    stays: list[Stay] = []
    begin, stored_at = 0, -1
    for cut in [*cuts, len(item.touches) - 1]:
        first, last = item.touches[begin], item.touches[cut]
        leaves = cut != len(item.touches) - 1
        dirty = stored_at < 0 or any(stored_at < w <= last for w in item.writes)
        stays.append(
            Stay(
                whole.item,
                whole.lo,
                whole.hi,
                first,
                last,
                loads=begin > 0,
                stores=leaves and dirty,
                written=max((w for w in item.writes if w <= last), default=first) + 1,
            )
        )
        stored_at = last if leaves and dirty else stored_at
        begin = cut + 1
    return stays


def bodies_of(instance: Instance, stays: Sequence[Stay]) -> list[list[int]]:
    """Indices of the stays that must lie side by side, as some step uses them together: one list for each body."""
    parent = list(range(len(stays)))

    def root(s: int) -> int:
        while parent[s] != s:
            parent[s] = parent[parent[s]]
            s = parent[s]
        return s

    steps = instance.steps
    of_item: dict[int, list[int]] = {}
    for s, stay in enumerate(stays):
        of_item.setdefault(stay.item, []).append(s)
    for item, members in of_item.items():
        if len({(stays[s].lo, stays[s].hi) for s in members}) == 1:
            continue
        for touch in instance.items[item].touches:
            users = [s for s in members if _lasts(stays[s], touch, steps)]
            for s in users[1:]:
                parent[root(s)] = root(users[0])
    groups: dict[int, list[int]] = {}
    for s in range(len(stays)):
        groups.setdefault(root(s), []).append(s)
    return list(groups.values())


def _lasts(stay: Stay, step: int, steps: int) -> bool:
    return stay.first <= step <= stay.last or stay.first <= step + steps <= stay.last


def live_peak(instance: Instance, stays: Sequence[Stay]) -> int:
    """Bytes that the stays need at once at the least, whatever the addresses."""
    steps = instance.steps
    change = [0] * (steps + 1)
    for stay in stays:
        for first, end in ((stay.first, min(stay.last + 1, steps)), (0, stay.last + 1 - steps)):
            if end > first:
                change[first] += stay.nbytes
                change[end] -= stay.nbytes
    return max(accumulate(change), default=0)
