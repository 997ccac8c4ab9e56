"""What a plan computes, by an interpreter that follows bytes: addresses, waits and lanes as the runtime has them, made-
up values, and transfers that come as early or as late as they may.

A value is a number for each cell of bytes. An operator makes new numbers of all cells that it reads, so that one wrong
cell anywhere changes everything behind it. While something may be written a cell holds rubbish. A storage without bytes
lies outside the plan: it has one cell of its own, which operators find wherever the plan has their other operands.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tensorstow.ir.graph import Graph, Operator, Storage, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.ir.operators import is_random, is_turn
from tensorstow.ir.plan import Plan
from tensorstow.ir.simulate import prefilled
from tensorstow.runtime.addresses import Addresses
from tensorstow.runtime.moves import Moves, Route
from tensorstow.runtime.preflight import compute_unit
from tensorstow.runtime.tiers import host_tiers

Cells = npt.NDArray[np.int64]

CELL = 64
"""Bytes of a cell; whatever begins or ends inside one cannot be followed."""
PASSES = 3
UNDER_WAY = 2
"""Transfers of a lane that may run at once, where all are of one link (`runtime/lanes`)."""


class DeadlockError(Exception):
    """A step waits for a transfer that may never start."""


def cells(nbytes: int) -> int:
    """Of an address or a size that is a multiple of `CELL`."""
    assert nbytes % CELL == 0, f"{nbytes} bytes are no whole number of cells"
    return nbytes // CELL


def _numbers(*of: object, count: int) -> Cells:
    """`count` numbers that nothing else has but what is made of the same."""
    return (np.arange(count, dtype=np.int64) * 0x9E3779B1) ^ (hash(of) & 0x7FFFFFFFFFFF)


class _Draws:
    """Each random operator draws the next number; a `Turn` that comes again gives something else, too."""

    def __init__(self) -> None:
        self._count = 0

    def key(self, op: Operator, operands: tuple[object, ...]) -> tuple[object, ...]:
        """What the results of a call depend on."""
        if is_random(op) or is_turn(op):
            self._count += 1
            return (op.id, operands, self._count)
        return (op.id, operands)


def size(storage: Storage) -> int:
    """Cells of a storage; one for what lies outside the plan."""
    return cells(storage.nbytes or CELL)


def given(storage: Storage, number: int) -> Cells:
    """What pass `number` is given as a storage."""
    return _numbers("given", storage.id, number, count=size(storage))


def at_home(storage: Storage) -> Cells:
    """What a homed storage holds at first."""
    return _numbers("home", storage.id, count=size(storage))


def expected(graph: Graph) -> Iterator[dict[str, Cells]]:
    """The outputs of each pass with everything in memory, in the graph's order."""
    draws = _Draws()
    memory = {s.id: at_home(s) for s in graph.storages if s.homed}
    inputs, outputs = graph.storages_of(graph.inputs), graph.storages_of(graph.outputs)
    for number in range(PASSES):
        for s in graph.storages:
            if not s.homed:
                memory[s.id] = np.zeros(size(s), np.int64)
        memory.update({s: given(graph.storage[s], number) for s in inputs})
        for op in graph.operators:
            views = {name: _view(memory, graph, graph.tensor[name]) for name in (*op.inputs, *op.outputs)}
            key = draws.key(op, tuple(views[name].tobytes() for name in op.inputs))
            for k, name in enumerate(op.outputs):
                views[name][:] = _numbers(key, k, count=len(views[name]))
        yield {s: memory[s].copy() for s in outputs}


def _view(memory: Mapping[str, Cells], graph: Graph, tensor: Tensor) -> Cells:
    assert tensor.storage is not None
    if not graph.storage[tensor.storage].nbytes:
        return memory[tensor.storage]
    lo = cells(tensor.offset)
    return memory[tensor.storage][lo : lo + cells(tensor.nbytes)]


@dataclass
class _Running:
    """A transfer under way: where from, where to, what it has read already."""

    number: int
    source: Cells
    place: Cells
    read: Cells


@dataclass
class _Lane:
    """The routes of one lane, and how far it is: `taken` have begun, all below `done` are complete."""

    routes: list[Route]
    at_once: int
    taken: int = 0
    running: list[_Running] = field(default_factory=list["_Running"])

    @property
    def done(self) -> int:
        """Transfers that are complete, as are all before them."""
        return min((r.number for r in self.running), default=self.taken)


class Follower:
    """Runs a plan. `eager` is how likely whatever may go on does so, whenever there is a choice.

    Raises what the runtime raises for a plan that it refuses (PlanMismatchError), and DeadlockError.
    """

    def __init__(self, plan: Plan, graph: Graph, machine: Machine, rng: random.Random, *, eager: float) -> None:
        self.plan = plan
        self.graph = graph
        self.rng = rng
        self.eager = eager
        self.period = len(plan.steps)
        self.fast = compute_unit(plan, graph, machine).tier
        tiers = (self.fast, *host_tiers(plan, self.fast))
        self.addresses = {tier: Addresses(plan, graph, tier) for tier in tiers}
        self.moves = Moves(plan, graph, machine, self.addresses)
        self.due = self.moves.due()
        self.arena = {tier: np.full(cells(_whole(plan, tier)), -1, np.int64) for tier in tiers}
        self.home = {s.id: at_home(s) for s in graph.storages if s.homed}
        self.scratch = {s.id: np.full(size(s), -2, np.int64) for s in graph.storages if not s.homed}
        self.outside = {
            s.id: at_home(s) if s.homed else np.zeros(size(s), np.int64) for s in graph.storages if not s.nbytes
        }
        self.draws = _Draws()
        self.rubbish = -3
        by_lane: dict[str, list[Route]] = {}
        for route in self.moves.routes:
            by_lane.setdefault(route.lane, []).append(route)
        self.lanes = {
            name: _Lane(routes, UNDER_WAY if len({r.transfer.link for r in routes}) == 1 else 1)
            for name, routes in by_lane.items()
        }
        for r in prefilled(plan, graph):
            self._at(r.tier, r.offset, r.nbytes)[:] = self.home[r.storage][cells(r.lo) : cells(r.hi)]

    def passes(self) -> Iterator[dict[str, Cells]]:
        """The outputs of each pass."""
        outputs = self.graph.storages_of(self.graph.outputs)
        for number in range(PASSES):
            for step, call in enumerate(self.plan.steps):
                now = number * self.period + step
                self._wait(number, self.due[step], now)
                if step == 0:
                    self._give(number)
                self._call(self.graph.operator[call.op], step, now)
            last = (
                number + 1
            ) * self.period - 1  # what the next pass begins with must not come before this one is read
            self._wait(number, self.due[self.period], last)
            yield {s: self._storage(s, self.period - 1).copy() for s in outputs}

    def _at(self, tier: str, offset: int, nbytes: int) -> Cells:
        return self.arena[tier][cells(offset) : cells(offset) + cells(nbytes)]

    def _storage(self, storage: str, step: int) -> Cells:
        nbytes = self.graph.storage[storage].nbytes
        return self._tensor(Tensor(storage, "uint8", (nbytes,), storage, nbytes), step)

    def _tensor(self, tensor: Tensor, step: int) -> Cells:
        if tensor.storage in self.outside:
            return self.outside[tensor.storage]
        return self._at(self.fast, self.addresses[self.fast].of_tensor(tensor, step), tensor.nbytes)

    def _give(self, number: int) -> None:
        for name, view in self.outside.items():
            if not self.graph.storage[name].homed:
                view[:] = 0  # nothing of it outlasts a pass
        for s in self.graph.storages_of(self.graph.inputs):
            self._storage(s, 0)[:] = given(self.graph.storage[s], number)

    def _call(self, op: Operator, step: int, now: int) -> None:
        tensors = {name: self.graph.tensor[name] for name in (*op.inputs, *op.outputs)}
        views = {name: self._tensor(t, step) for name, t in tensors.items()}
        before = {name: views[name].copy() for name in op.inputs}
        for name in op.outputs:
            self._spoil(views[name])
        seen = {name: views[name].copy() for name in op.inputs}
        self._go_on(now)  # beside the operator
        for name in op.inputs:
            if not np.array_equal(views[name], seen[name]):
                self._spoil(before[name])
        key = self.draws.key(op, tuple(before[name].tobytes() for name in op.inputs))
        for k, name in enumerate(op.outputs):
            views[name][:] = _numbers(key, k, count=len(views[name]))

    def _spoil(self, view: Cells) -> None:
        self.rubbish -= 1
        view[:] = self.rubbish

    def _wait(self, number: int, due: list[tuple[str, int]], now: int) -> None:
        """Until of each lane of `due` as many transfers are complete."""
        self._go_on(now)
        for name, count in due:
            lane = self.lanes[name]
            while lane.done < count + number * len(lane.routes):
                if not self._progress(now, needed=name):
                    raise DeadlockError(f"{name} stands at {lane.done} at instant {now}")

    def _go_on(self, now: int) -> None:
        while self.rng.random() < self.eager and self._progress(now):
            pass

    def _progress(self, now: int, needed: str | None = None) -> bool:
        """Let something begin or end that may by instant `now`; whether there was anything."""
        begin = [name for name, lane in self.lanes.items() if self._may_begin(lane, now)]
        end = [name for name, lane in self.lanes.items() if lane.running]
        if needed in end and (needed not in begin or self.rng.random() < 0.5):
            begin, end = [], [needed]
        elif needed in begin:
            begin, end = [needed], []
        if not begin and not end:
            return False
        chosen = self.rng.randrange(len(begin) + len(end))
        if chosen < len(begin):
            self._begin(self.lanes[begin[chosen]])
        else:
            self._end(self.lanes[end[chosen - len(begin)]])
        return True

    def _may_begin(self, lane: _Lane, now: int) -> bool:
        turn, position = divmod(lane.taken, len(lane.routes))
        route = lane.routes[position]
        if len(lane.running) >= lane.at_once or now < turn * self.period + route.transfer.after:
            return False
        waits = ((self.lanes[name], before, turns) for name, before, turns in self.moves.waits[route.index])
        return all(other.done >= (turn - turns) * len(other.routes) + before + 1 for other, before, turns in waits)

    def _begin(self, lane: _Lane) -> None:
        route = lane.routes[lane.taken % len(lane.routes)]
        t = route.transfer
        below = self.home if self.graph.storage[t.storage].homed else self.scratch
        there = below[t.storage][cells(t.lo) : cells(t.hi)]
        source = there if route.source is None else self._at(t.origin, route.source, t.nbytes)
        place = there if route.place is None else self._at(t.target, route.place, t.nbytes)
        read = source.copy()
        if route.place is not None or not np.array_equal(read, place):  # a file holds the same all the while
            self._spoil(place)
        lane.running.append(_Running(lane.taken, source, place, read))
        lane.taken += 1

    def _end(self, lane: _Lane) -> None:
        done = lane.running.pop(self.rng.randrange(len(lane.running)))
        done.place[:] = np.where(done.read == done.source, done.read, self.rubbish - 1)
        self.rubbish -= 2


def _whole(plan: Plan, tier: str) -> int:
    return -(-plan.arena_nbytes.get(tier, 0) // CELL) * CELL


def same(plan: Plan, graph: Graph, machine: Machine, rng: random.Random, *, eager: float) -> bool:
    """Whether `plan` gives in every pass what the graph gives. Raises as `Follower`."""
    follower = Follower(plan, graph, machine, rng, eager=eager)
    pairs = zip(expected(graph), follower.passes(), strict=True)
    return all(np.array_equal(wanted[s], found[s]) for wanted, found in pairs for s in wanted)
