"""Room for prefetching: loads go to addresses that are free early enough, and intervals grow into what is free.

Loads are taken in the order of their use. Each lands where it can be complete in time (`solvers.landing`): it may come
in parts, those first whose addresses are free first, and never takes the place that something at the same steps still
has to use. Where no place lets it be in time, it goes where it is complete first. At last every load starts as early as
its address allows, and every store may end as late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..solvers.landing import LOWEST, RING, land, segments
from ..solvers.residency import rounding
from .calendar import Calendar
from .instance import Instance
from .round import worth_moving
from .stays import Decisions, Landing, Placed
from .timetable import Clock, Ints, free_of_itself, is_reserved, pauses_before, store_job

FIRST_LOOK = 256
"""The part of a pass in which what is near is looked for first."""

_RULES = {Landing.LOWEST: LOWEST, Landing.RING: RING}


def spread(instance: Instance, pieces: list[Placed], bottom: int, decisions: Decisions) -> bool:
    """Move and lengthen the loads and stores among `pieces`, in place; loads that come in parts add to the list.

    What never leaves ends at address `bottom`. Loads of whole items may come without an address (-1): they are given
    one, in turn; parts of items stay where they are. False where one finds no room; that cannot happen when all come
    with addresses.
    """
    if not any(p.stay.loads or p.stay.stores for p in pieces):
        return True
    yard = Yard(instance, pieces, bottom, Clock(instance, decisions.stall_ns), decisions.landing)
    loads, stores = _by_time(pieces)
    yard.finish_stores(stores)
    wanted = yard.clock.latest_starts([(i, pieces[i].stay.first, pieces[i].nbytes) for i in loads])
    for i in loads:
        whole = pieces[i].nbytes == instance.items[pieces[i].stay.item].nbytes
        if whole and not is_reserved(pieces[i], decisions):
            if not yard.move(i, wanted[i]):
                return False
        else:
            yard.start_at(i, max(yard.clock.instant_at(wanted[i]), yard.free_since(i)))
    loads, stores = _by_time(pieces)
    yard.finish_stores(stores)
    yard.stretch(loads, stores)
    return True


def stretch(instance: Instance, pieces: list[Placed], bottom: int) -> None:
    """Let every load start as early as its address allows, and every store end as late, in place."""
    yard = Yard(instance, pieces, bottom, Clock(instance, ()), Landing.LOWEST)
    yard.stretch(*_by_time(pieces))


def finish(instance: Instance, pieces: list[Placed], bottom: int, decisions: Decisions) -> None:
    """As `stretch`, but first every store keeps its place until it can be done, as far as nothing else has it."""
    yard = Yard(instance, pieces, bottom, Clock(instance, decisions.stall_ns), decisions.landing)
    loads, stores = _by_time(pieces)
    yard.finish_stores(stores)
    yard.stretch(loads, stores)


def load_searches() -> None:
    """Load or compile what large graphs call here, in packing and in rounding, so that no time limit pays for that."""
    from ..solvers import neighbours
    from ..solvers.sweeps import ages_before, hold

    one = np.ones(1, dtype=np.int64)
    rounding.repair(rounding.Pauses(-one, one, one, one), (0.0,), np.zeros(1, dtype=np.bool_), 1)
    calendar = Calendar(4)
    calendar.add(0, 0, 1)
    columns = np.zeros((4, 1), dtype=np.int64)
    neighbours.free_since(calendar.lists, columns, 0, 1, 2, 0, 1, calendar.out)
    neighbours.not_yet_free(calendar.lists, columns, 0, 0, 1, 2, 0, calendar.out, calendar.out)
    segments(one - 1, one, np.ones(1), 0, 1, 0.0)
    ages_before(one - 1, one, one, one - 1, one, 2)
    hold(one, one - 1, one, one)


def _by_time(pieces: Sequence[Placed]) -> tuple[list[int], list[int]]:
    """Indices of the loads by use, and of the stores by the step after which they may begin."""
    loads = sorted((i for i, p in enumerate(pieces) if p.stay.loads), key=lambda i: pieces[i].stay.first)
    stores = sorted((i for i, p in enumerate(pieces) if p.stay.stores), key=lambda i: pieces[i].stay.last)
    return loads, stores


class Yard:
    """Who occupies which addresses when, cyclically; rows are pieces."""

    def __init__(self, instance: Instance, pieces: list[Placed], bottom: int, clock: Clock, landing: Landing) -> None:
        from ..solvers import neighbours  # it imports numba

        self.pieces = pieces
        self.clock = clock
        self.steps = instance.steps
        self.bottom, self.top = bottom, instance.capacity_nbytes
        self.alignment = instance.block_nbytes
        self.bytes_per_ns = instance.machine.link[instance.home.name, instance.fast.name].bytes_per_s / 1e9
        self.rule = _RULES[landing]
        self.least_nbytes = worth_moving(instance)
        self.latest_end = bottom  # of the address range that was given last
        self.calendar = Calendar(instance.steps)
        self.search: Any = neighbours
        self.look = max(1, instance.steps // FIRST_LOOK)
        self._ages: Ints = np.zeros(0, dtype=np.int64)
        room = 2 * len(pieces) + 64
        self.columns: Ints = np.zeros((4, room), dtype=np.int64)
        for i, p in enumerate(pieces):
            self._write(i, p)
        before = {i: previous for i, (previous, _) in pauses_before(pieces, instance.steps).items()}
        self.before: dict[int, list[int]] = {i: [p] for i, p in before.items()}
        self.after: dict[int, list[int]] = {p: [i] for i, p in before.items()}

    def ages(self) -> Ints:
        """Room for one number of each row."""
        if len(self._ages) < len(self.calendar.out):
            self._ages = np.zeros(len(self.calendar.out), dtype=np.int64)
        return self._ages

    def _write(self, i: int, p: Placed) -> None:
        if i == self.columns.shape[1]:
            self.columns = np.concatenate([self.columns, np.zeros_like(self.columns)], axis=1)
        self.columns[:, i] = p.offset, p.offset + p.nbytes if p.offset >= 0 else -1, p.start, p.end
        self.calendar.add(i, p.start, p.end)

    def move(self, i: int, wanted_ns: int) -> bool:
        """Put load `i` where it can start at `wanted_ns`, or else where it is complete first; False if nowhere."""
        piece, clock = self.pieces[i], self.clock
        first = piece.stay.first
        start_ns = max(wanted_ns, clock.time_of(free_of_itself(self.pieces, i, self.before[i], self.steps)))
        begin = clock.instant_at(start_ns)
        near, ages = self._not_yet_free(i, begin)
        free_ns = np.where(ages < 0, np.inf, clock.times_of(first - ages))
        low, high = np.ascontiguousarray(self.columns[:2, near])  # as what was compiled beforehand
        base, _ = land(
            low,
            high,
            free_ns,
            bottom=self.bottom,
            top=self.top,
            nbytes=piece.nbytes,
            alignment=self.alignment,
            start_ns=float(start_ns),
            due_ns=float(clock.due(first)),
            bytes_per_ns=self.bytes_per_ns,
            rule=self.rule,
            pointer=self.latest_end,
        )
        if base < 0:
            return False
        self.latest_end = base + piece.nbytes
        parts = segments(low, high, free_ns, base, piece.nbytes, float(start_ns))
        self._come_in_parts(i, base, joined(parts, self.alignment, self.least_nbytes), start_ns)
        return True

    def _come_in_parts(self, i: int, base: int, parts: list[tuple[int, int, float]], start_ns: float) -> None:
        """Row `i` becomes one row for each part, each of which starts as late as it may, or as soon as it can."""
        whole = self.pieces[i]
        rows = [i, *range(len(self.pieces), len(self.pieces) + len(parts) - 1)]
        now = start_ns
        for row, (lo, hi, free) in zip(rows, sorted(parts, key=lambda p: (p[2], p[0])), strict=True):
            now = max(now, free)
            stay = replace(whole.stay, lo=lo, hi=hi)
            part = Placed(stay, base + lo, min(self.clock.instant_at(now), stay.first), whole.end)
            now += (hi - lo) / self.bytes_per_ns
            if row == i:
                self.pieces[i] = part
            else:
                self.pieces.append(part)
            self._write(row, part)
        if len(rows) > 1:
            self._split_links(i, rows)

    def _split_links(self, i: int, rows: list[int]) -> None:
        """The rows stand where row `i` stood among the stays of its item."""
        for links, back in ((self.before, self.after), (self.after, self.before)):
            others = links.get(i, [])
            for other in {*others} - {i}:
                back[other] = [r for r in back[other] if r != i] + rows
            others = [r for r in others if r != i] + (rows if i in others else [])
            for row in rows:
                if others:
                    links[row] = others

    def _not_yet_free(self, i: int, begin: int) -> tuple[Ints, Ints]:
        """The rows whose addresses are not free from instant `begin` until load `i` ends, and for how many steps before
        its use each has been; -1: occupied at some step until it ends. A row without an address counts as free."""
        piece, calendar = self.pieces[i], self.calendar
        count = self.search.not_yet_free(
            calendar.lists, self.columns, i, begin, piece.stay.first, piece.end, self.bottom, calendar.out, self.ages()
        )
        return calendar.out[:count], self.ages()[:count]

    def free_since(self, i: int) -> int:
        """The earliest instant from which the addresses of load `i` are free until its use."""
        piece, calendar = self.pieces[i], self.calendar
        since = free_of_itself(self.pieces, i, self.before[i], self.steps)
        first, end = piece.stay.first, piece.end
        return int(self.search.free_since(calendar.lists, self.columns, i, first, end, since, self.look, calendar.out))

    def free_sinces(self, loads: Sequence[int]) -> list[int]:
        """`free_since` of each: nothing else in the way moves when one begins earlier."""
        rows = np.array(loads, dtype=np.int64)
        first = np.array([self.pieces[i].stay.first for i in loads], dtype=np.int64)
        low, high, _, end = self.columns[:, : len(self.pieces)]
        free = (first - self._ages_before(low, high, end, rows, first)).tolist()
        own = (free_of_itself(self.pieces, i, self.before[i], self.steps) for i in loads)
        return [max(both) for both in zip(free, own, strict=True)]

    def free_untils(self, stores: Sequence[int]) -> list[int]:
        """The latest instant until which the addresses of each store stay free; not past its item's next stay."""
        rows = np.array(stores, dtype=np.int64)
        low, high, start, end = self.columns[:, : len(self.pieces)]
        free = (end[rows] + self._ages_before(low, high, -start, rows, -end[rows])).tolist()
        return [min(both) for both in zip(free, map(self._next_stay, stores), strict=True)]

    def _next_stay(self, i: int) -> int:
        """When the item of store `i` comes back, or a pass after it began."""
        piece = self.pieces[i]
        latest = piece.start + self.steps
        for q in self.after.get(i, []):
            following = self.pieces[q]
            pause = (following.stay.first - piece.stay.last - 1) % self.steps
            latest = min(latest, piece.stay.last + 1 + pause - (following.stay.first - following.start))
        return latest

    def _ages_before(self, low: Ints, high: Ints, at: Ints, rows: Ints, when: Ints) -> Ints:
        from ..solvers.sweeps import ages_before  # it imports numba

        return ages_before(low, high, at, rows, when, self.steps)

    def finish_stores(self, stores: Sequence[int]) -> None:
        """Let what is stored keep its place until that can be done, as far as others leave it the place."""
        pieces = self.pieces
        placed = [i for i in stores if pieces[i].offset >= 0]
        done = self.clock.earliest_ends([store_job(i, pieces[i]) for i in placed])
        for i, until in zip(placed, self.free_untils(placed), strict=True):
            self.end_at(i, max(pieces[i].end, min(done.get(i, 0), until)))

    def stretch(self, loads: Sequence[int], stores: Sequence[int]) -> None:
        """All that is free before each load, then all that is left after each store."""
        for i, since in zip(loads, self.free_sinces(loads), strict=True):
            self.start_at(i, since)
        for i, until in zip(stores, self.free_untils(stores), strict=True):
            self.end_at(i, max(self.pieces[i].end, until))

    def start_at(self, i: int, instant: int) -> None:
        """Let row `i` begin at `instant`."""
        self.pieces[i].start = instant
        self.columns[2, i] = instant
        self.calendar.add(i, instant, self.pieces[i].end)

    def end_at(self, i: int, instant: int) -> None:
        """Let row `i` end at `instant`."""
        self.pieces[i].end = instant
        self.columns[3, i] = instant
        self.calendar.add(i, self.pieces[i].start, instant)


def joined(parts: list[tuple[int, int, float]], alignment: int, least_nbytes: int) -> list[tuple[int, int, float]]:
    """Parts of whole blocks, none below `least_nbytes` but where there is only one: small ones go with a neighbour.

    A block across the edge of parts belongs to one of them, and is free when the last of them is.
    """
    found: list[tuple[int, int, float]] = []
    for k, (begin, hi, free) in enumerate(parts):
        lo = found[-1][1] if found else 0
        if begin < lo:
            found[-1] = (found[-1][0], lo, max(found[-1][2], free))
        if k + 1 < len(parts):
            hi = hi // alignment * alignment if free < parts[k + 1][2] else -(-hi // alignment) * alignment
            hi = min(hi, parts[-1][1])
        if hi <= lo:
            continue
        if not found or min(hi - lo, found[-1][1] - found[-1][0]) >= least_nbytes:
            found.append((lo, hi, free))
        else:
            found[-1] = (found[-1][0], hi, max(found[-1][2], free))
    return found
