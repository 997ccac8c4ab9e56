"""From fractions per gap to a fluid timeline that keeps them: when bytes move, and what is waited for."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ..linear import Floats
from .coarse_groups import Gaps
from .problem import ResidencyProblem

_PASSES = 8
"""A periodic timeline is followed from an empty start until its waits repeat, at most so many times."""


@dataclass(slots=True)
class Fractions:
    """Per gap: absent, stored when it begins, stored ahead while it is kept."""

    absent: Floats
    stored: Floats
    ahead: Floats


def kept_nbytes(problem: ResidencyProblem, gaps: Gaps, absent: Floats) -> Floats:
    """Bytes at each step that are kept through it, operands and results not counted."""
    steps = len(problem.durations_ns)
    inside = np.flatnonzero(gaps.start >= 0)
    change = np.zeros(2 * steps + 1)
    kept = gaps.nbytes[inside] * (1.0 - absent[inside])
    np.add.at(change, gaps.start[inside] + 1, kept)
    np.add.at(change, gaps.end[inside], -kept)
    levels = np.cumsum(change)
    return levels[:steps] + (levels[steps : 2 * steps] if problem.periodic else 0.0)


def fit(problem: ResidencyProblem, gaps: Gaps, fractions: Fractions) -> None:
    """Raise fractions absent, in place, until what is kept fits beside every step: of the gaps around an overflow the
    one that lasts longest from there gives way first. Every step's base must be within the capacity."""
    steps, capacity = len(problem.durations_ns), problem.capacity_nbytes
    level = kept_nbytes(problem, gaps, fractions.absent)
    room = capacity - np.array(problem.base_nbytes, dtype=np.float64)
    if not np.any(level > room):
        return
    begin = [list[int]() for _ in range(steps)]
    heap: list[tuple[int, int]] = []
    for g in np.flatnonzero((gaps.start >= 0) & (gaps.nbytes > 0) & (gaps.end > gaps.start + 1)).tolist():
        first, end = int(gaps.start[g]) + 1, int(gaps.end[g])
        if first < steps:
            begin[first].append(g)
        if end > steps:
            heapq.heappush(heap, (steps - end, g))  # round the end of the pass: here already
    relief = np.zeros(2 * steps + 1)  # differences of what has been taken away
    taken, rooms, levels = 0.0, room.tolist(), level.tolist()
    for t in range(steps):
        taken += float(relief[t])
        for g in begin[t]:
            heapq.heappush(heap, (-int(gaps.end[g]), g))
        while levels[t] - taken > max(rooms[t], 0.0) and heap:
            until, g = heap[0]
            left = float(gaps.nbytes[g] * (1.0 - fractions.absent[g]))
            if -until <= t or left <= 0:
                heapq.heappop(heap)
                continue
            more = min(left, levels[t] - taken - max(rooms[t], 0.0))
            _evict(fractions, gaps, g, more)
            taken += more
            relief[-until] -= more
            if int(gaps.start[g]) + 1 > t and gaps.end[g] > steps:
                # It also begins later in this pass: what was taken of it is missing there, too.
                relief[int(gaps.start[g]) + 1] += more


def _evict(fractions: Fractions, gaps: Gaps, g: int, nbytes: float) -> None:
    """Rounded up by a little, so that what overflowed fits."""
    share = min(1.0 - fractions.absent[g], nbytes / gaps.nbytes[g] * (1 + 1e-12) + 1e-15)
    fractions.absent[g] += share
    if not gaps.clean[g]:
        fractions.stored[g] = min(fractions.absent[g], fractions.stored[g] + share)
        fractions.ahead[g] = min(fractions.ahead[g], 1.0 - fractions.absent[g])


@dataclass(slots=True)
class Timeline:
    """Per step: nanoseconds of waiting before it, bytes moved in that wait and during the step."""

    stall_ns: list[float] = field(default_factory=list[float])
    loads: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    stores: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    aheads: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def follow(problem: ResidencyProblem, gaps: Gaps, fractions: Fractions) -> Timeline:
    """The timeline of these fractions: loads as early as memory allows, stores as soon as they can.

    For clean items alone that is the least waiting, as an early load only ever takes room that is free until its use.
    """
    stream = _Stream(problem, gaps, fractions)
    state, found = stream.state, stream.run()
    for _ in range(_PASSES if problem.periodic else 0):
        slack = 1e-9 * (1.0 + problem.capacity_nbytes)
        if all(abs(a - b) <= slack for a, b in zip(state[1:], stream.state[1:], strict=True)) and (
            stream.state[0] - state[0] <= slack or sum(found.stall_ns) == 0.0
        ):
            break
        state, found = stream.state, stream.run()
    if problem.periodic:
        _trim(found, stream.state[0] - state[0])
    return found


def _trim(found: Timeline, nbytes: float) -> None:
    """Take back the last loads of a pass that ends with so many bytes more than it began with: nobody used them."""
    for t in reversed(range(len(found.stall_ns))):
        for loads in (found.loads[1], found.loads[0]):
            if nbytes <= 0:
                return
            less = min(loads[t], nbytes)
            loads[t] -= less
            nbytes -= less


class _Stream:
    """The state at an instant, pass after pass: `fetched` before their use, `pending` stores; of stores ahead all that
    is `left`, and what is `owed` by the end of the step."""

    def __init__(self, problem: ResidencyProblem, gaps: Gaps, fractions: Fractions) -> None:
        self.problem = problem
        steps = len(problem.durations_ns)
        self.load, self.store = problem.load_bytes_per_s * 1e-9, problem.store_bytes_per_s * 1e-9
        size = gaps.nbytes
        room = problem.capacity_nbytes - np.array(problem.base_nbytes, dtype=np.float64)
        self.room: list[float] = np.maximum(room - kept_nbytes(problem, gaps, fractions.absent), 0.0).tolist()
        due = np.bincount(gaps.end % steps, weights=size * fractions.absent, minlength=steps)
        inside = gaps.start >= 0
        joins = (gaps.start[inside] + 1) % steps
        self.due: list[float] = due.tolist()
        self.joins: list[float] = np.bincount(
            joins, weights=(size * fractions.stored)[inside], minlength=steps
        ).tolist()
        self.arrive, self.deadline, self.left = _windows(gaps, size * fractions.ahead, steps)
        self.owed = 0.0
        self.most = self._most_fetched()
        self.fetched = self.pending = 0.0

    @property
    def state(self) -> tuple[float, float, float, float]:
        """What a pass hands to the next one."""
        return self.fetched, self.pending, self.left, self.owed

    def _most_fetched(self) -> list[float]:
        """What may be there when a step starts, so that it also fits beside all later ones until it is used."""
        steps = len(self.room)
        most = list(self.room)
        for t in reversed(range(2 * steps if self.problem.periodic else steps - 1)):
            after = (t + 1) % steps
            most[t % steps] = min(most[t % steps], most[after] + self.due[after])
        return most

    def run(self) -> Timeline:
        """One pass from where the last one ended."""
        found = Timeline()
        steps = len(self.room)
        for t, ns in enumerate(self.problem.durations_ns):
            self.pending += self.joins[t]
            self.left += self.arrive[t]
            self.owed += self.deadline[t]
            self._wait(found, t, ns)
            self._operate(found, t, ns)
        if not self.problem.periodic and self.pending > 0:
            found.stall_ns[steps - 1] += self.pending / self.store
            found.stores[0][steps - 1] += self.pending
            self.pending = 0.0
        return found

    def _wait(self, found: Timeline, t: int, ns: int) -> None:
        due, load, store = self.due[t], self.load, self.store
        missing = max(0.0, due - self.fetched)
        must = max(0.0, max(self.fetched - due, 0.0) + self.pending - self.room[t])
        late = max(0.0, self.owed - store * ns)
        parts = (missing / load if missing else 0.0, (must + late) / store if must + late else 0.0)
        wait = sum(parts) if self.problem.shared_channel else max(parts)
        for_stores = wait - parts[0] if self.problem.shared_channel else wait
        stored = min(self.pending, max(must, store * for_stores - late))
        ahead = min(self.left, max(late, store * for_stores - stored))
        self.pending -= stored
        room = min(self.most[t], self.room[t] - self.pending) + due - self.fetched
        for_loads = wait - (stored + ahead) / store if self.problem.shared_channel and stored + ahead else wait
        loaded = max(missing, min(load * for_loads, room))
        self.fetched += loaded - due
        found.stall_ns.append(wait)
        found.loads[0].append(loaded)
        found.stores[0].append(stored)
        found.aheads[0].append(ahead)
        self.owed -= ahead
        self.left -= ahead

    def _operate(self, found: Timeline, t: int, ns: int) -> None:
        load, store, after = self.load, self.store, (t + 1) % len(self.room)
        due_ahead = min(max(self.owed, 0.0), self.left)
        last = after == 0 and not self.problem.periodic
        most = 0.0 if last else self.most[after] + self.due[after]
        room = min(self.room[t] - self.fetched - self.pending, most - self.fetched)
        spare = ns - due_ahead / store if self.problem.shared_channel and due_ahead else ns
        loaded = max(0.0, min(load * spare, room))
        spare = ns - loaded / load if self.problem.shared_channel and loaded else ns
        stored = min(self.pending, max(0.0, store * spare - due_ahead))
        ahead = min(self.left, max(due_ahead, store * spare - stored))
        self.fetched += loaded
        self.pending -= stored
        found.loads[1].append(loaded)
        found.stores[1].append(stored)
        found.aheads[1].append(ahead)
        self.owed -= ahead
        self.left -= ahead


def _windows(gaps: Gaps, nbytes: Floats, steps: int) -> tuple[list[float], list[float], float]:
    """Bytes to store ahead: by the step before which they come free, by the step at whose end they must be done, and
    those that are between the two when a pass begins."""
    arrive, deadline, around = [0.0] * steps, [0.0] * steps, 0.0
    for chain in gaps.chains:
        for g, after in pairwise(chain):
            if nbytes[g] > 0:
                arrive[(int(gaps.start[g]) + 1) % steps] += float(nbytes[g])
                deadline[int(gaps.start[after])] += float(nbytes[g])
                if gaps.start[after] < gaps.start[g] < steps - 1:
                    around += float(nbytes[g])
    return arrive, deadline, around
