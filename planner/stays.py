"""From decisions about gaps to stays: the intervals in which an item must be in the fast tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate

from .instance import Instance, Item


@dataclass(frozen=True, slots=True)
class Stay:
    """Item `item` must be in the fast tier from step `first` through step `last` (which may lie in the next pass).

    `loads`: it comes by a transfer that must be complete at instant `first`, else it is made there.
    `stores`: it is dirty, and must be stored from instant `last` + 1 on. `always`: it never leaves.
    """

    item: int
    first: int
    last: int
    loads: bool = False
    stores: bool = False
    always: bool = False


@dataclass(slots=True)
class Placed:
    """A stay at address `offset` (of byte `lo` of its item, `nbytes` long), occupied in steps [start, end).

    `start` lies in [0, T) or, for a load that begins in the pass before, below 0; `end` is at most `start` + T.
    """

    stay: Stay
    lo: int
    nbytes: int
    offset: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a strategy decides. `evicted`: gaps (item, use number) in which the item leaves the fast tier.

    `kept_nbytes`: for items that leave, how many of their first bytes stay all the same, for the whole cycle.
    `prefetch`: whether transfers may start as early as addresses allow, or only when the step before is complete.
    `stall_ns`: the wait before each step that the strategy expects, where it knows; it tells when loads should start.
    `lowest`: streams take the lowest address that is free in time, instead of the next one round the room they have.
    """

    evicted: frozenset[tuple[int, int]]
    kept_nbytes: Mapping[int, int]
    prefetch: bool
    stall_ns: tuple[int, ...] = ()
    lowest: bool = False


def make_stays(instance: Instance, evicted: Set[tuple[int, int]]) -> list[Stay]:
    """The stays of every item, under the gaps in which it is evicted."""
    found: list[Stay] = []
    for i, item in enumerate(instance.items):
        cuts = [n for n in range(len(item.touches)) if (i, n) in evicted]
        if item.homed:
            found += _homed_stays(i, item, cuts, instance.steps)
        else:
            found += _made_stays(i, item, cuts)
    return found


def _homed_stays(i: int, item: Item, cuts: list[int], steps: int) -> list[Stay]:
    if not cuts:
        return [Stay(i, 0, steps - 1, always=True)]
    stays: list[Stay] = []
    for previous, cut in zip([cuts[-1], *cuts[:-1]], cuts, strict=True):
        first = item.touches[(previous + 1) % len(item.touches)]
        last = item.touches[cut]
        last += steps if last < first else 0
        written = any(first <= w <= last or first <= w + steps <= last for w in item.writes)
        stays.append(Stay(i, first, last, loads=True, stores=written))
    return stays


def _made_stays(i: int, item: Item, cuts: list[int]) -> list[Stay]:
    stays: list[Stay] = []
    begin, stored_at = 0, -1
    for cut in [*cuts, len(item.touches) - 1]:
        first, last = item.touches[begin], item.touches[cut]
        leaves = cut != len(item.touches) - 1
        dirty = stored_at < 0 or any(stored_at < w <= last for w in item.writes)
        stays.append(Stay(i, first, last, loads=begin > 0, stores=leaves and dirty))
        stored_at = last if leaves and dirty else stored_at
        begin = cut + 1
    return stays


def live_peak(instance: Instance, stays: Sequence[Stay]) -> int:
    """Bytes that the stays need at once at the least, whatever the addresses."""
    steps = instance.steps
    change = [0] * (steps + 1)
    for stay in stays:
        nbytes = instance.items[stay.item].nbytes
        for first, end in ((stay.first, min(stay.last + 1, steps)), (0, stay.last + 1 - steps)):
            if end > first:
                change[first] += nbytes
                change[end] -= nbytes
    return max(accumulate(change), default=0)
