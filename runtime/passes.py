"""What every executor has: the arena of a plan, what moves between it and the store, and how a pass is counted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns

from ..ir.errors import ExecutionError
from ..ir.graph import Graph, Storage
from ..ir.machine import Machine
from ..ir.paths import cache_dir
from ..ir.plan import Plan
from ..ir.simulate import prefilled
from .addresses import Addresses
from .arena import Arena
from .directio import DirectFile, never
from .memory import trim_heap
from .moves import Move, Moves, chunk_nbytes, load_homed
from .reading import WeightReader
from .trace import Event
from .transfer import Engine, Lane

Wait = tuple[Lane, int, int]
"""In pass p, `count + p * jobs` jobs of `lane` must be complete: (lane, count, jobs)."""


@dataclass(slots=True)
class Stats:
    """Of the last pass: time, bytes that transfers moved since the pass before, time waited for each lane.

    `events` is empty unless the executor's `tracing` is on.
    """

    seconds: float = 0.0
    read_nbytes: int = 0
    written_nbytes: int = 0
    wait_ns: dict[str, int] = field(default_factory=dict[str, int])
    events: tuple[Event, ...] = ()


class PlanMemory:
    """The tier in which a plan computes: where every byte is, and what brings it there.

    Made in two steps: the constructor refuses what cannot be followed (PlanMismatchError) and touches nothing; `open`
    takes the memory, the scratch file and the threads (ExecutionError where they are short), which `close` gives back,
    also when this object is forgotten. `store` stays the caller's.
    """

    def __init__(self, plan: Plan, graph: Graph, machine: Machine, tier: str, store: WeightReader) -> None:
        self.plan = plan
        self.graph = graph
        self.machine = machine
        self.tier = tier
        self.store = store
        self.addresses = Addresses(plan, graph, tier)
        self._moves = Moves(plan, graph, machine, tier, self.addresses)
        self._resources = _Resources()
        self._finalizer = weakref.finalize(self, self._resources.close)
        self.exact: frozenset[str] = frozenset()
        self.exact_moves: dict[int, list[Move]] = {}

    def open(self, scratch: Path | None) -> None:
        """Spilled activations go to a nameless file in the folder `scratch`, by default the cache."""
        resources = self._resources
        try:
            self.arena = resources.arena = Arena(self.plan.arena_nbytes.get(self.tier, 0), tier=self.tier)
            if self._moves.scratch_nbytes:
                resources.scratch = DirectFile.scratch(scratch or cache_dir(), self._moves.scratch_nbytes)
            jobs = self._moves.jobs(self.arena, self.store, resources.scratch)
            self.exact, self.exact_moves = self._moves.exact(jobs)
            self.engine = resources.engine = Engine(jobs, len(self.plan.steps))
        except BaseException:
            self.close()
            raise
        lanes = self.engine.lanes
        self.waits: list[list[Wait]] = [
            [(lanes[name], n, len(lanes[name].jobs)) for name, n in due] for due in self._moves.due()
        ]

    def close(self) -> None:
        """End the threads, remove the scratch file, give the memory back; again is allowed."""
        for name in ("exact_moves", "engine", "waits"):
            self.__dict__.pop(name, None)  # they hold views of the arena
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    def check_open(self) -> None:
        """ExecutionError after `close`."""
        if self.closed:
            raise ExecutionError("this executor is closed; open a new one")

    def restart(self, wanted: Callable[[Storage], bool] | None = None) -> int:
        """Bring everything into the state before the first pass, or of homed storages only those that are `wanted`.

        Returns the bytes read for what is resident at instant 0.
        """
        self.check_open()
        self.engine.reset()
        if wanted is None:
            trim_heap()
        nbytes = 0
        for r in prefilled(self.plan, self.graph):
            storage = self.graph.storage[r.storage]
            if wanted is None or wanted(storage):
                chunk = chunk_nbytes(self.machine.link.get((self.plan.home_tier, r.tier)))
                load_homed(self.store, storage, r.lo, self.arena.view(r.offset, r.nbytes), chunk, never)
                nbytes += r.nbytes
        return nbytes

    def transfers_alone(self) -> float:
        """Seconds in which the transfers of one pass run with nothing computed. `restart` must follow."""
        self.check_open()
        self.engine.reset()
        begin = perf_counter_ns()
        if self.plan.steps:
            self.engine.arrive(len(self.plan.steps) - 1)
        for lane in self.engine.lanes.values():
            self.engine.wait(lane, len(lane.jobs))
        return (perf_counter_ns() - begin) * 1e-9

    def moved(self) -> tuple[int, int]:
        """Bytes read and written by transfers so far."""
        lanes = self.engine.lanes.values()
        return sum(lane.read_nbytes for lane in lanes), sum(lane.written_nbytes for lane in lanes)


class Stopwatch:
    """Measures one pass: from its making to `stop`. `before` are the bytes moved until the end of the pass before."""

    def __init__(self, engine: Engine, before: tuple[int, int], *, tracing: bool) -> None:
        self._engine = engine
        self._before = before
        engine.events = (engine.events or []) if tracing else None
        self._waited = {lane.name: lane.wait_ns for lane in engine.lanes.values()}
        self._begin = perf_counter_ns()

    def stop(self, moved: tuple[int, int]) -> Stats:
        """What the pass took; `moved` as it is now."""
        engine, waited = self._engine, self._waited
        stats = Stats(
            seconds=(perf_counter_ns() - self._begin) * 1e-9,
            read_nbytes=moved[0] - self._before[0],
            written_nbytes=moved[1] - self._before[1],
            wait_ns={n: lane.wait_ns - waited[n] for n, lane in engine.lanes.items() if lane.wait_ns > waited[n]},
            events=tuple(engine.events or ()),
        )
        if engine.events is not None:
            engine.events = []
        return stats


@dataclass(slots=True)
class _Resources:
    """What must be given back, in the order in which it must be; also when an executor is forgotten."""

    engine: Engine | None = None
    scratch: DirectFile | None = None
    arena: Arena | None = None

    def close(self) -> None:
        """Threads first, for they use the others."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        if self.scratch is not None:
            self.scratch.close()
        if self.arena is not None:
            self.arena.close()
