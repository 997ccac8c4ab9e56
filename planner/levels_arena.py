"""Addresses in a tier from which nothing computes: parcels may lie there in pieces, so it is given out in pages.

What never leaves lies at the bottom, densely. The rest takes pages that are free throughout its stay and, where it
comes from below, early enough before it that the link can bring it in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import numpy as np
from numpy.typing import NDArray

from ..ir.plan import Residency
from .items import round_up
from .levels_visits import Hold

Ints = NDArray[np.int64]

MOST_PAGES = 1024
"""Into how many pages a region is divided."""

FEW_PAGES = 8
"""What takes fewer pages than these wastes too much of its last one, and is placed with smaller pages."""

SPARE = (0.1, 0.25, 0.6, 1.5)
"""Room for what is small, beyond what lives at once: tried one after another."""


@dataclass(frozen=True, slots=True)
class Times:
    """Steps in nanoseconds: `instants_ns`[t] for t in 0..T; and how long the links below take for a number of bytes."""

    instants_ns: tuple[int, ...]
    load_ns_per_byte: float
    store_ns_per_byte: float

    @property
    def steps(self) -> int:
        """Number of steps of a pass."""
        return len(self.instants_ns) - 1

    def at(self, instant: int) -> int:
        """Nanoseconds of an instant of any pass."""
        turn, step = divmod(instant, self.steps)
        return turn * self.instants_ns[-1] + self.instants_ns[step]

    def before(self, ns: float) -> int:
        """The last instant that is not after `ns`."""
        turn, within = divmod(ns, max(self.instants_ns[-1], 1))
        return int(turn) * self.steps + int(np.searchsorted(self.instants_ns[:-1], within, side="right")) - 1

    def after(self, ns: float) -> int:
        """The first instant that is not before `ns`."""
        turn, within = divmod(ns, max(self.instants_ns[-1], 1))
        return int(turn) * self.steps + int(np.searchsorted(self.instants_ns, within, side="left"))

    def leads(self, holds: Sequence[Hold]) -> list[int]:
        """For each hold, how many steps before it its fill should begin, when fills run one after another."""
        found = [0] * len(holds)
        fills = sorted((h.start, i) for i, h in enumerate(holds) if h.fill_before is not None)
        took = {i: holds[i].nbytes * self.load_ns_per_byte for _, i in fills}
        pass_ns = max(float(self.instants_ns[-1]), sum(took.values()))
        following = 2 * pass_ns
        for shift in (pass_ns, 0.0):  # two rounds backwards: the second feels the fills of the pass after
            for start, i in reversed(fills):
                following = min(self.at(start) + shift, following) - took[i]
                late = self.at(start) + shift - following
                found[i] = min(start - self.before(self.at(start) - late), self.steps)
        return found

    def lags(self, holds: Sequence[Hold]) -> list[int]:
        """For each hold, how many steps after it its drain can be complete, when drains run one after another."""
        found = [0] * len(holds)
        free = 0.0
        for since, i in sorted((h.drain_after, i) for i, h in enumerate(holds) if h.drain_after is not None):
            free = max(free, float(self.at(since))) + holds[i].nbytes * self.store_ns_per_byte
            found[i] = max(0, self.after(free) - holds[i].end)
        return found


@dataclass(frozen=True, slots=True)
class Settled:
    """A hold with its addresses: the instants at which its fill may start and its drain must be complete."""

    hold: Hold
    start: int
    end: int
    residencies: tuple[Residency, ...]


class _Pages:
    """Which pages are taken when, cyclically; a row is a page with one interval."""

    def __init__(self, count: int, steps: int) -> None:
        self.count, self.steps, self.used = count, steps, 0
        self.table: Ints = np.zeros((4, 1024), dtype=np.int64)  # page, start, length, wanted lead

    def take(self, pages: Ints, start: int, length: int, wanted: int) -> None:
        """Occupy `pages` in [start, start + length)."""
        while self.used + len(pages) > self.table.shape[1]:
            self.table = np.concatenate([self.table, np.zeros_like(self.table)], axis=1)
        rows = slice(self.used, self.used + len(pages))
        self.table[0, rows], self.table[1, rows] = pages, start % self.steps
        self.table[2, rows], self.table[3, rows] = length, wanted
        self.used += len(pages)

    def around(self, start: int, length: int, skip: slice | None = None) -> tuple[Ints, Ints, Ints]:
        """For each page: steps for which it has been free before `start` (-1: not free throughout the interval), free
        after it, and how many of those the one that takes it next would like to have."""
        page, begin, took, wanted = self.table[:, : self.used]
        if skip is not None:
            keep = np.ones(self.used, dtype=np.bool_)
            keep[skip] = False
            page, begin, took, wanted = page[keep], begin[keep], took[keep], wanted[keep]
        busy = ((start - begin) % self.steps < took) | ((begin - start) % self.steps < length)
        lead: Ints = np.full(self.count, self.steps - length, dtype=np.int64)
        trail: Ints = lead.copy()
        wish: Ints = np.zeros(self.count, dtype=np.int64)
        np.minimum.at(lead, page, np.where(busy, -1, (start - begin - took) % self.steps))
        ahead = np.where(busy, self.steps, (begin - start - length) % self.steps)
        np.minimum.at(trail, page, ahead)
        following = ahead == trail[page]
        np.maximum.at(wish, page[following], wanted[following])
        return lead, trail, wish


def settle(
    holds: Sequence[Hold], tier: str, capacity_nbytes: int, alignment: int, times: Times, *, early: bool, oldest: bool
) -> list[Settled] | None:
    """Addresses for all holds within `capacity_nbytes`, or None where there are none.

    `early`: fills start as early as their pages are free, else when their hold begins. `oldest`: of pages that are free
    in time those that have been for longest are taken, else those that have been for shortest.
    """
    found: list[Settled] = []
    bottom = 0
    for hold in (h for h in holds if h.always):
        place = Residency(hold.storage, tier, hold.lo, hold.hi, bottom, 0, times.steps)
        found.append(Settled(hold, 0, times.steps, (place,)))
        bottom = round_up(bottom + hold.nbytes, alignment)
    moving = [h for h in holds if not h.always]
    region = _Region(tier, bottom, capacity_nbytes - bottom, alignment)
    placed = _place(moving, region, times, early=early, oldest=oldest)
    return None if placed is None else found + placed


@dataclass(frozen=True, slots=True)
class _Region:
    """Bytes [`bottom`, `bottom` + `room`) of a tier."""

    tier: str
    bottom: int
    room: int
    alignment: int


def _place(holds: Sequence[Hold], region: _Region, times: Times, *, early: bool, oldest: bool) -> list[Settled] | None:
    """Addresses in a region for holds that come and go. Those of a few pages get a region of their own, with smaller
    pages, as large as what lives there at once and some more."""
    if region.room < 0 or not holds:
        return None if region.room < 0 else []
    page_nbytes = max(region.alignment, region.room // MOST_PAGES // region.alignment * region.alignment)
    small = [h for h in holds if h.nbytes < FEW_PAGES * page_nbytes] if page_nbytes > region.alignment else []
    if small and len(small) < len(holds):
        large = [h for h in holds if h.nbytes >= FEW_PAGES * page_nbytes]
        peak = _live_peak(small, times.steps, region.alignment)
        for spare in SPARE:
            room = round_up(int(peak * (1 + spare)), region.alignment)
            own = _place(small, replace(region, room=room), times, early=early, oldest=oldest)
            if own is not None:
                rest = replace(region, bottom=region.bottom + room, room=region.room - room)
                others = _place_pages(large, rest, page_nbytes, times, early=early, oldest=oldest)
                return None if others is None else own + others
        return None
    return _place_pages(holds, region, page_nbytes, times, early=early, oldest=oldest)


def _live_peak(holds: Sequence[Hold], steps: int, alignment: int) -> int:
    change = [0] * (2 * steps + 2)
    for hold in holds:
        change[hold.start] += round_up(hold.nbytes, alignment)
        change[hold.end] -= round_up(hold.nbytes, alignment)
    levels = list(accumulate(change))
    return max(levels[t] + levels[t + steps] for t in range(steps))


def _place_pages(
    holds: Sequence[Hold], region: _Region, page_nbytes: int, times: Times, *, early: bool, oldest: bool
) -> list[Settled] | None:
    if region.room < 0:  # what is small took more than there was
        return None
    pages = _Pages(region.room // page_nbytes, times.steps)
    rows = _take_all(holds, pages, page_nbytes, times, early=early, oldest=oldest)
    if rows is None:
        return None
    found: list[Settled] = []
    for hold, (own, lag) in zip(holds, rows, strict=True):
        start, end = _interval(hold, pages, own, lag, early=early)
        taken = np.sort(pages.table[0, own])
        found.append(_settled(hold, region.tier, start, end, region.bottom, taken, page_nbytes, times.steps))
    return found


def _take_all(
    holds: Sequence[Hold], pages: _Pages, page_nbytes: int, times: Times, *, early: bool, oldest: bool
) -> list[tuple[slice, int]] | None:
    """Rows of the table and steps for the drain of each hold; in the order of their beginnings. None: no room."""
    leads = times.leads(holds) if early else [0] * len(holds)
    lags = [
        max(0, min(lag, h.latest - h.end, times.steps - 1 - (h.end - h.start)))
        for lag, h in zip(times.lags(holds), holds, strict=True)
    ]
    lags = _lags_that_fit(holds, lags, [-(-h.nbytes // page_nbytes) for h in holds], pages)
    free = [h.earliest + lag for h, lag in zip(holds, _drain_before(holds, lags), strict=True)]
    taken: list[tuple[slice, int]] = [(slice(0, 0), 0)] * len(holds)
    for i in sorted(range(len(holds)), key=lambda i: (holds[i].start, holds[i].fill_before or 0, i)):
        hold, need = holds[i], -(-holds[i].nbytes // page_nbytes)
        wanted = min(leads[i], hold.start - free[i])
        for lag in dict.fromkeys((lags[i], lags[i] // 2, lags[i] // 4, 0)):  # a drain may have to be waited for
            length = hold.end + lag - hold.start
            lead, trail, wish = pages.around(hold.start, length)
            short = np.maximum(wanted - lead, 0) + np.maximum(wish - trail, 0)
            rest = -lead if oldest else np.maximum(lead - wanted, 0)
            chosen = np.lexsort((np.arange(pages.count), rest, short, lead < 0))[:need]
            if len(chosen) == need and lead[chosen].min() >= 0:
                taken[i] = slice(pages.used, pages.used + need), lag
                pages.take(chosen, hold.start, length, wanted)
                break
        else:
            return None
    if early:  # from the one that lacks most of what it wants on, each begins as early as its pages allow
        for i in sorted(range(len(holds)), key=lambda i: holds[i].start):
            _grow(holds[i], free[i], pages, taken[i][0])
    return taken


def _lags_that_fit(holds: Sequence[Hold], lags: Sequence[int], needs: Sequence[int], pages: _Pages) -> list[int]:
    """`lags` shortened such that no step needs more pages than there are: what waits to be drained must not take the
    place of what has to be there."""
    steps = pages.steps
    free: Ints = np.full(steps, pages.count, dtype=np.int64)
    for hold, need in zip(holds, needs, strict=True):
        free[np.arange(hold.start, hold.end) % steps] -= need
    found = [0] * len(holds)
    for i in sorted(range(len(holds)), key=lambda i: holds[i].end):
        if lags[i]:
            after = np.arange(holds[i].end, holds[i].end + lags[i]) % steps
            full = np.flatnonzero(free[after] < needs[i])
            found[i] = int(full[0]) if len(full) else lags[i]
            free[after[: found[i]]] -= needs[i]
    return found


def _drain_before(holds: Sequence[Hold], lags: Sequence[int]) -> list[int]:
    """For each hold, how long the drain of the same bytes takes that is under way when the hold before it has ended."""
    by_bytes: dict[tuple[str, int, int], list[int]] = {}
    for i in sorted(range(len(holds)), key=lambda i: holds[i].start):
        by_bytes.setdefault((holds[i].storage, holds[i].lo, holds[i].hi), []).append(i)
    found = [0] * len(holds)
    for indices in by_bytes.values():
        for previous, i in zip([indices[-1], *indices[:-1]], indices, strict=True):
            if holds[i].homed or previous != indices[-1]:
                found[i] = lags[previous]
    return found


def _grow(hold: Hold, free: int, pages: _Pages, own: slice) -> None:
    if hold.fill_before is None:
        return
    start, length = int(pages.table[1, own][0]), int(pages.table[2, own][0])
    lead, _, _ = pages.around(start, length, own)
    # One step less than the whole cycle: a stay that never ends would not be filled.
    more = min(int(lead[pages.table[0, own]].min()), hold.start - free, pages.steps - length - 1)
    if more > 0:
        pages.table[1, own] = (start - more) % pages.steps
        pages.table[2, own] = length + more


def _interval(hold: Hold, pages: _Pages, own: slice, lag: int, *, early: bool) -> tuple[int, int]:
    end = hold.end + lag
    start = end - int(pages.table[2, own][0]) if early and hold.fill_before is not None else hold.start
    return start, max(end, start + 1)


def _settled(
    hold: Hold, tier: str, start: int, end: int, bottom: int, pages: Ints, page_nbytes: int, steps: int
) -> Settled:
    """Neighbouring pages are one residency; an interval that begins in the pass before is counted from there."""
    shift = steps if start < 0 else 0
    places: list[Residency] = []
    lo = hold.lo
    numbered: list[tuple[int, int]] = list(enumerate(int(page) for page in pages))
    for _, run in groupby(numbered, key=lambda pair: pair[1] - pair[0]):
        own = [page for _, page in run]
        hi = min(lo + len(own) * page_nbytes, hold.hi)
        places.append(Residency(hold.storage, tier, lo, hi, bottom + own[0] * page_nbytes, start + shift, end + shift))
        lo = hi
    fill_before = None if hold.fill_before is None else hold.fill_before + shift
    drain_after = None if hold.drain_after is None else hold.drain_after + shift
    moved = replace(
        hold, start=hold.start + shift, end=hold.end + shift, fill_before=fill_before, drain_after=drain_after
    )
    return Settled(moved, start + shift, end + shift, tuple(places))
