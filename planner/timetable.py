"""When transfers should run: each load as late as it may begin to be in time, each store as soon as it can be done.

That is the least memory that prefetching and pending stores can take under the waits that are expected: what comes
later would be late, what comes earlier lies about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from .instance import Instance
from .one_way import store_link
from .stays import Decisions, Placed

Ints = NDArray[np.int64]


def timetable(instance: Instance, pieces: Sequence[Placed], decisions: Decisions, room_nbytes: int) -> None:
    """Set the intervals of `pieces`, in place, whatever their addresses.

    An item that is stored and loaded again is loaded no earlier than its store is done.
    """
    pending_stores(instance, pieces, decisions, room_nbytes)
    begin_loads(instance, pieces, decisions)


def begin_loads(instance: Instance, pieces: Sequence[Placed], decisions: Decisions) -> None:
    """Let every load begin, in place, when it must to be in time, but not before its own bytes are stored."""
    clock = Clock(instance, decisions.stall_ns)
    loads = sorted((i for i, p in enumerate(pieces) if p.stay.loads), key=lambda i: pieces[i].stay.first)
    pauses = pauses_before(pieces, instance.steps)
    wanted = clock.latest_starts([(i, pieces[i].stay.first, pieces[i].nbytes) for i in loads])
    for i in loads:
        pieces[i].start = max(clock.instant_at(wanted[i]), free_of_itself(pieces, i, pauses[i][:1], instance.steps))


def is_reserved(piece: Placed, decisions: Decisions) -> bool:
    """Whether the load has its place and its time before others are given theirs."""
    return (piece.stay.item, piece.stay.first) in decisions.reserved


def reserve(instance: Instance, pieces: Sequence[Placed], decisions: Decisions) -> None:
    """Let the reserved loads begin, in place, as the timetable of all loads has it."""
    if not decisions.reserved:
        return
    clock = Clock(instance, decisions.stall_ns)
    loads = sorted((i for i, p in enumerate(pieces) if p.stay.loads), key=lambda i: pieces[i].stay.first)
    wanted = clock.latest_starts([(i, pieces[i].stay.first, pieces[i].nbytes) for i in loads])
    pauses = pauses_before(pieces, instance.steps)
    for i in loads:
        if is_reserved(pieces[i], decisions):
            pieces[i].start = max(clock.instant_at(wanted[i]), free_of_itself(pieces, i, pauses[i][:1], instance.steps))


def free_of_itself(pieces: Sequence[Placed], i: int, before: Iterable[int], steps: int) -> int:
    """The instant from which load `i` may run, as the stays `before` it of the same bytes have ended and are stored."""
    first = pieces[i].stay.first
    found = first - steps
    for previous in (pieces[p] for p in before):
        stored = previous.end - previous.stay.last - 1 if previous.stay.stores else 0
        found = max(found, first - (first - previous.stay.last - 1) % steps + stored)
    return found


def pending_stores(instance: Instance, pieces: Sequence[Placed], decisions: Decisions, room_nbytes: int) -> None:
    """Lengthen the pieces that are stored, in place, until their stores can be done: as far as the room for
    all pieces lasts, and not past their items' next use."""
    clock = Clock(instance, decisions.stall_ns)
    stores = sorted((i for i, p in enumerate(pieces) if p.stay.stores), key=lambda i: pieces[i].stay.last)
    if not stores:
        return
    from ..solvers.sweeps import hold  # it imports numba

    steps = instance.steps
    room = dict(pauses_before(pieces, steps).values())
    done = clock.earliest_ends([store_job(i, pieces[i]) for i in stores])
    begins = [pieces[i].stay.last + 1 for i in stores]
    latest = [min(done.get(i, begin), begin + room.get(i, 0)) for i, begin in zip(stores, begins, strict=True)]
    nbytes = [pieces[i].nbytes for i in stores]
    columns = (np.array(column, dtype=np.int64) for column in (begins, latest, nbytes))
    ends = hold(room_nbytes - _live(pieces, steps), *columns)
    for i, end in zip(stores, ends.tolist(), strict=True):
        pieces[i].end = end


def store_job(i: int, piece: Placed) -> tuple[int, int, int, int]:
    """A store for `Clock.earliest_ends`."""
    return i, piece.stay.written, piece.stay.last + 1, piece.nbytes


def _live(pieces: Sequence[Placed], steps: int) -> Ints:
    """Bytes of all pieces at each step, as long as their intervals are now."""
    change = np.zeros(2 * steps + 1, dtype=np.int64)
    for p in pieces:
        start = p.start % steps
        change[start] += p.nbytes
        change[start + p.end - p.start] -= p.nbytes
    level = np.cumsum(change)
    return level[:steps] + level[steps : 2 * steps]


def pauses_before(pieces: Sequence[Placed], steps: int) -> dict[int, tuple[int, int]]:
    """By index of each load: the piece of the same bytes that stays before it, and the steps between the two."""
    of_range: dict[tuple[int, int], list[int]] = {}
    for i, piece in enumerate(pieces):
        of_range.setdefault((piece.stay.item, piece.lo), []).append(i)
    found: dict[int, tuple[int, int]] = {}
    for indices in of_range.values():
        indices.sort(key=lambda i: pieces[i].stay.first)
        for previous, i in zip([indices[-1], *indices[:-1]], indices, strict=True):
            if pieces[i].stay.loads:
                found[i] = previous, (pieces[i].stay.first - pieces[previous].stay.last - 1) % steps
    return found


class Clock:
    """Steps in nanoseconds, with the stalls that are expected anyway."""

    def __init__(self, instance: Instance, stall_ns: Sequence[int]) -> None:
        self.instance = instance
        durations = np.asarray(instance.durations_ns, dtype=np.int64)
        self.stalls: Ints = np.asarray(stall_ns or [0] * instance.steps, dtype=np.int64)
        self.ends: Ints = np.cumsum(durations + self.stalls)
        self.begins: Ints = self.ends - durations  # of the operator itself
        self.instants: Ints = self.begins - self.stalls
        self.pass_ns = int(self.ends[-1]) if len(self.ends) else 0

    def time_of(self, instant: int) -> int:
        """When an instant is; below 0 and from T on, in other passes."""
        turn, step = divmod(instant, self.instance.steps)
        return turn * self.pass_ns + int(self.instants[step])

    def times_of(self, instants: Ints) -> Ints:
        """`time_of` of each."""
        turns, steps = np.divmod(instants, self.instance.steps)
        return turns * self.pass_ns + self.instants[steps]

    def due(self, step: int) -> int:
        """When an operator begins; below 0 and from T on, in other passes."""
        turn, step = divmod(step, self.instance.steps)
        return turn * self.pass_ns + int(self.begins[step])

    def instant_at(self, ns: float) -> int:
        """The last instant at or before a time."""
        turn, within = divmod(int(ns), max(self.pass_ns, 1))
        return turn * self.instance.steps + int(np.searchsorted(self.instants, within, side="right")) - 1

    def first_from(self, ns: int) -> int:
        """The first step that begins at or after a time, counted over the passes."""
        turn, within = divmod(ns, max(self.pass_ns, 1))
        return turn * self.instance.steps + int(np.searchsorted(self.begins, within, side="left"))

    def latest_starts(self, loads: Sequence[tuple[int, int, int]]) -> dict[int, int]:
        """For (id, step of use, bytes) in the order of use: when (below 0: in the pass before) each load must start at
        the latest so that none is late, when they run one after another at the link's rate. Nanoseconds."""
        instance = self.instance
        link = instance.machine.link[instance.home.name, instance.fast.name]
        took = {i: link.busy_ns(nbytes) for i, _, nbytes in loads}
        # More than a pass can carry will be late whatever is done; it must not push the others back for ever.
        fitting = min(1.0, self.pass_ns / max(1, sum(took.values())))
        following = 2 * self.pass_ns
        wanted: dict[int, int] = {}
        for shift in (self.pass_ns, 0):  # two rounds backwards: the second one feels the loads of the pass after
            for i, step, _ in reversed(loads):
                following = min(int(self.begins[step]) + shift, following) - int(fitting * took[i])
                wanted[i] = following - shift
        return wanted

    def earliest_ends(self, stores: Sequence[tuple[int, int, int, int]]) -> dict[int, int]:
        """For (id, instant from which it may run, instant at which it should be done, bytes): the instant at which each
        store can be complete, when they run one after another at the link's rate, the most urgent first; what is under
        way at the end of a pass delays the next one's. That instant is the one of the first step to begin then: a wait
        before the step is time to store in."""
        instance = self.instance
        link = store_link(instance)
        if link is None:
            return {}
        jobs = sorted(
            (
                turn * self.pass_ns + self.time_of(since),
                turn * self.pass_ns + self.time_of(due),
                link.busy_ns(n),
                i,
                turn,
            )
            for turn in (-1, 0)
            for i, since, due, n in stores
        )
        done: dict[int, int] = {}
        ready: list[tuple[int, int, int, int]] = []
        now, at = jobs[0][0] if jobs else 0, 0  # the pass before this one began in time, too
        while at < len(jobs) or ready:
            now = jobs[at][0] if not ready and now < jobs[at][0] else now
            while at < len(jobs) and jobs[at][0] <= now:
                _, due, took, i, turn = jobs[at]
                heappush(ready, (due, i, took, turn))
                at += 1
            _, i, took, turn = heappop(ready)
            now += took
            if turn == 0:
                done[i] = self.first_from(now)
        return done
