"""Room for prefetching: loads move to addresses that are free early enough, and intervals grow into what is free.

Loads are taken in the order of their use. Each goes to an address that becomes free early enough for the load to be
complete in time: the next such one round the room, as in a ring, or the lowest; it never takes the place that a load
at the same steps still has to use. Where no address is free early enough, the one free earliest is taken. At last
every load starts as early as its address allows, and every store may end as late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .instance import Instance
from .stays import Decisions, Placed

Ints = NDArray[np.int64]


def spread(instance: Instance, pieces: list[Placed], bottom: int, decisions: Decisions) -> bool:
    """Move and lengthen the loads and stores among `pieces`, in place. What never leaves ends at address `bottom`.

    Loads may come without an address (-1): they are given one, in turn. False where one finds no room; that cannot
    happen when all come with addresses.
    """
    if not any(p.stay.loads or p.stay.stores for p in pieces):
        return True
    clock = _Clock(instance, decisions.stall_ns)
    yard = _Yard(instance, pieces, bottom, lowest=decisions.lowest)
    loads = sorted((i for i, p in enumerate(pieces) if p.stay.loads), key=lambda i: pieces[i].stay.first)
    stores = sorted((i for i, p in enumerate(pieces) if p.stay.stores), key=lambda i: pieces[i].stay.last)
    wanted = clock.latest_starts([(i, pieces[i].stay.first, pieces[i].nbytes) for i in loads])
    for i in loads:
        start = max(wanted[i], yard.earliest[i])
        if pieces[i].lo == 0:
            if not yard.move(i, start):
                return False
        else:
            yard.start_at(i, max(start, yard.free_since(i)))
    done = clock.earliest_ends([(i, pieces[i].stay.last + 1, pieces[i].nbytes) for i in stores])
    for i in stores:
        yard.end_at(i, min(done[i], yard.free_until(i)))
    for i in loads:
        yard.start_at(i, yard.free_since(i))
    for i in stores:
        yard.end_at(i, yard.free_until(i))
    return True


class _Clock:
    """Steps in nanoseconds, with the stalls that are expected anyway."""

    def __init__(self, instance: Instance, stall_ns: Sequence[int]) -> None:
        self.instance = instance
        durations = np.asarray(instance.durations_ns, dtype=np.int64)
        self.stalls: Ints = np.asarray(stall_ns or [0] * instance.steps, dtype=np.int64)
        self.ends: Ints = np.cumsum(durations + self.stalls)
        self.begins: Ints = self.ends - durations  # of the operator itself
        self.instants: Ints = self.begins - self.stalls

    def latest_starts(self, loads: Sequence[tuple[int, int, int]]) -> dict[int, int]:
        """For (id, step of use, bytes) in the order of use: the instant (below 0: in the pass before) at which each
        load must start at the latest so that none is late, when they run one after another at the link's rate."""
        instance = self.instance
        link = instance.machine.link[instance.home.name, instance.fast.name]
        took = {i: link.busy_ns(nbytes) for i, _, nbytes in loads}
        pass_ns = max(int(self.ends[-1]), sum(took.values()))
        following = 2 * pass_ns
        wanted: dict[int, int] = {}
        for shift in (pass_ns, 0):  # two rounds backwards: the second one feels the loads of the pass after
            for i, step, _ in reversed(loads):
                following = min(int(self.begins[step]) + shift, following) - took[i]
                back, within = divmod(following - shift, pass_ns)
                wanted[i] = int(np.searchsorted(self.instants, within, side="right")) - 1 + back * instance.steps
        return wanted

    def earliest_ends(self, stores: Sequence[tuple[int, int, int]]) -> dict[int, int]:
        """For (id, instant, bytes) in order: the instant at which each store can be complete at the earliest."""
        instance = self.instance
        link = instance.machine.link.get((instance.fast.name, instance.home.name))
        pass_ns, steps = int(self.ends[-1]), instance.steps
        free = 0
        done: dict[int, int] = {}
        for i, instant, nbytes in stores if link else ():
            turn, step = divmod(instant - 1, steps)
            free = max(free, turn * pass_ns + int(self.ends[step])) + (link.busy_ns(nbytes) if link else 0)
            turn, within = divmod(free, max(pass_ns, 1))
            done[i] = turn * steps + int(np.searchsorted(self.instants, within, side="left"))
        return done


class _Yard:
    """Who occupies which addresses when, cyclically; rows are pieces."""

    def __init__(self, instance: Instance, pieces: list[Placed], bottom: int, *, lowest: bool) -> None:
        self.pieces = pieces
        self.steps = instance.steps
        self.bottom = bottom
        self.top = instance.capacity_nbytes
        self.alignment = instance.home.alignment
        self.lowest = lowest
        self.latest_end = bottom  # of the address range that was given last
        self.low: Ints = np.array([p.offset for p in pieces], dtype=np.int64)
        self.high: Ints = np.array([p.offset + p.nbytes for p in pieces], dtype=np.int64)
        self.start: Ints = np.array([p.start for p in pieces], dtype=np.int64)
        self.end: Ints = np.array([p.end for p in pieces], dtype=np.int64)
        self.earliest = _earliest_starts(pieces, instance.steps)
        self.homed = [item.homed for item in instance.items]
        self.stored = [not item.homed or bool(item.writes) for item in instance.items]
        self.by_item: dict[int, list[Placed]] = {}
        for piece in pieces:
            self.by_item.setdefault(piece.stay.item, []).append(piece)

    def move(self, i: int, wanted: int) -> bool:
        """Put load `i` where it can start at instant `wanted`, or else as early as can be; False if nowhere."""
        piece = self.pieces[i]
        ages = self._ages(piece)
        ages[i] = self.steps
        limit = self.steps - (piece.stay.last + 1 - piece.stay.first)
        need = min(max(piece.stay.first - wanted, 0), limit)
        place = self._place(ages, need, piece.nbytes)
        if place is None:  # the longest that some place is free for, by bisection over the ages that occur
            known = np.unique(np.concatenate([[0], ages[(ages >= 0) & (ages < need)]]))
            low, high = -1, len(known)
            while high - low > 1:
                middle = (low + high) // 2
                found = self._place(ages, int(known[middle]), piece.nbytes)
                if found is None:
                    high = middle
                else:
                    low, place, need = middle, found, int(known[middle])
            if place is None:
                return False
        piece.offset = place
        self.low[i], self.high[i] = place, place + piece.nbytes
        self.latest_end = int(self.high[i])
        self.start_at(i, max(piece.stay.first - need, self.earliest[i]))
        return True

    def _place(self, ages: Ints, need: int, nbytes: int) -> int | None:
        """An address range that has been free for at least `need` steps: the lowest, or the next round the room."""
        taken = (ages < need) & (self.high > self.bottom)
        order = np.argsort(self.low[taken])
        highs = np.maximum.accumulate(np.concatenate([[self.bottom], self.high[taken][order]]))
        starts = -(-highs // self.alignment) * self.alignment
        ends = np.concatenate([self.low[taken][order], [self.top]])
        fits = np.flatnonzero(ends - starts >= nbytes)
        if not len(fits):
            return None
        if self.lowest:
            return int(starts[fits[0]])
        pointer = -(-self.latest_end // self.alignment) * self.alignment
        inside = np.maximum(starts[fits], pointer)
        further = np.flatnonzero(ends[fits] - inside >= nbytes)
        return int(inside[further[0]] if len(further) else starts[fits[0]])

    def _ages(self, piece: Placed) -> Ints:
        """For every piece: for how many steps before the load's use its addresses have been free; -1: occupied at some
        step of the stay itself. A piece without an address counts as free."""
        a, length = piece.stay.first, piece.stay.last + 1 - piece.stay.first
        busy_at_first = (a - self.start) % self.steps < self.end - self.start
        begins_within = (self.start - a) % self.steps < length
        ages = np.where(busy_at_first | begins_within, -1, (a - self.end) % self.steps)
        return np.where(self.low < 0, self.steps, ages)

    def _neighbours(self, i: int) -> NDArray[np.bool_]:
        """Pieces that share an address with piece `i`."""
        shares = (self.low < self.high[i]) & (self.high > self.low[i])
        shares[i] = False
        return shares

    def _stays_of(self, piece: Placed) -> list[Placed]:
        """All stays of a piece's item, where they matter: an item that is stored before it is loaded."""
        return self.by_item[piece.stay.item] if self.stored[piece.stay.item] else []

    def free_since(self, i: int) -> int:
        """The earliest instant from which the addresses of load `i` are free until its use."""
        piece = self.pieces[i]
        ages = self._ages(piece)[self._neighbours(i)]
        leaves = [p.end for p in self._stays_of(piece) if p.stay.last < piece.stay.first]
        if self.homed[piece.stay.item]:
            leaves += [p.end - self.steps for p in self._stays_of(piece) if p.stay.last >= piece.stay.first]
        return max(piece.stay.first - int(ages.min(initial=self.steps)), self.earliest[i], *leaves)

    def free_until(self, i: int) -> int:
        """The latest instant until which the addresses of store `i` stay free; not past its item's next stay."""
        shares = self._neighbours(i)
        until = (self.start[shares] - int(self.end[i])) % self.steps
        piece = self.pieces[i]
        latest = int(self.end[i]) + int(until.min(initial=self.steps))
        if self.homed[piece.stay.item]:
            ahead = ((p.start - piece.stay.last - 1) % self.steps for p in self._stays_of(piece))
            return min(latest, piece.stay.last + 1 + min(ahead), piece.start + self.steps)
        again = (p.start for p in self._stays_of(piece) if p.stay.first > piece.stay.last)
        return min(latest, *again, self.steps)

    def start_at(self, i: int, instant: int) -> None:
        """Let piece `i` begin at `instant`."""
        self.pieces[i].start = instant
        self.start[i] = instant

    def end_at(self, i: int, instant: int) -> None:
        """Let piece `i` end at `instant`."""
        self.pieces[i].end = instant
        self.end[i] = instant


def _earliest_starts(pieces: Sequence[Placed], steps: int) -> dict[int, int]:
    """By index of each load: the instant after its item's previous stay, below 0 when that was in the pass before."""
    of_item: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        of_item.setdefault(piece.stay.item, []).append(i)
    earliest: dict[int, int] = {}
    for indices in of_item.values():
        indices.sort(key=lambda i: pieces[i].stay.first)
        for previous, i in zip([indices[-1], *indices[:-1]], indices, strict=True):
            after = pieces[previous].stay.last + 1
            earliest[i] = after if after <= pieces[i].stay.first else after - steps
    return {i: e for i, e in earliest.items() if pieces[i].stay.loads}
