"""What every executor has: the arenas of a plan, what moves between them and the store, and how a pass is counted."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns

from ..ir.errors import ExecutionError
from ..ir.graph import Graph, Storage
from ..ir.machine import Machine, TierKind
from ..ir.paths import cache_dir
from ..ir.plan import Plan
from ..ir.simulate import prefilled
from .addresses import Addresses
from .arena import Arena
from .directio import DirectFile
from .filling import Move, run_together
from .memory import trim_heap
from .moves import Moves, Route, chunk_nbytes
from .reading import WeightReader
from .tiers import Device, HostHome, Tiers, host_tiers
from .trace import Event
from .transfer import Engine, Lane

Wait = tuple[Lane, int, int]
"""In pass p, `count + p * jobs` jobs of `lane` must be complete: (lane, count, jobs)."""


@dataclass(slots=True)
class Stats:
    """Of the last pass: time, bytes that transfers moved since the pass before, time waited for each lane.

    `read_nbytes` come from the home tier and `written_nbytes` go there; `copied_nbytes` are those that went from one
    memory above it to another while the pass ran. `events` is empty unless the executor's `tracing` is on.
    """

    seconds: float = 0.0
    read_nbytes: int = 0
    written_nbytes: int = 0
    copied_nbytes: int = 0
    wait_ns: dict[str, int] = field(default_factory=dict[str, int])
    events: tuple[Event, ...] = ()


class PlanMemory:
    """The tiers of a plan in memory: where every byte is, and what brings it there.

    `tier` is the one that steps compute from; its memory is that of `device`, or the host's. Only beside a device may
    the plan keep bytes in further tiers, which are the host's. Made in two steps: the constructor refuses what cannot
    be followed (PlanMismatchError) and touches nothing; `open` takes the memory, the scratch file and the threads
    (ExecutionError where they are short), which `close` gives back, also when this object is forgotten. `store` and
    what is left of `device` stay the caller's.
    """

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        machine: Machine,
        tier: str,
        store: WeightReader,
        *,
        device: Device | None = None,
    ) -> None:
        self.plan = plan
        self.graph = graph
        self.machine = machine
        self.tier = tier
        self.store = store
        self.device = device
        self.addresses = Addresses(plan, graph, tier)
        middle = host_tiers(plan, tier) if device is not None else ()
        self._moves = Moves(
            plan, graph, machine, {tier: self.addresses} | {t: Addresses(plan, graph, t) for t in middle}
        )
        self._middle = middle
        home = machine.tier.get(plan.home_tier)
        in_memory = device is not None and home is not None and home.kind is TierKind.DRAM
        self._home = HostHome(plan, graph) if in_memory else None
        self._resources = _Resources()
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, self._resources.close)
        self.exact: frozenset[str] = frozenset()
        self.exact_moves: dict[int, list[Move]] = {}
        self.marks: dict[int, Callable[[], None]] = {}

    def open(self, scratch: Path | None) -> None:
        """Spilled activations go to a nameless file in the folder `scratch`, by default the cache."""
        resources = self._resources
        try:
            self._tiers = tiers = self._open_tiers(resources)
            if self._moves.scratch_nbytes:
                resources.scratch = DirectFile.scratch(scratch or cache_dir(), self._moves.scratch_nbytes)
            jobs = self._moves.jobs(tiers, resources.scratch)
            self.exact, self.exact_moves = self._moves.exact(jobs, tiers)
            if self.device is not None:
                self.marks = dict(self.device.marks)
            self.engine = resources.engine = Engine(jobs, len(self.plan.steps))
        except BaseException:
            self.close()
            raise
        lanes = self.engine.lanes
        self.waits: list[list[Wait]] = [
            [(lanes[name], n, len(lanes[name].jobs)) for name, n in due] for due in self._moves.due()
        ]

    def _open_tiers(self, resources: _Resources) -> Tiers:
        arenas: dict[str, Arena] = {}
        device, sizes = self.device, self.plan.arena_nbytes
        if device is None:
            self.arena = arenas[self.tier] = resources.take(Arena(sizes.get(self.tier, 0), tier=self.tier))
            return Tiers(self.store, arenas)
        resources.device = device
        device.open(sizes.get(self.tier, 0), tier=self.tier)
        for tier in self._middle:
            arenas[tier] = resources.take(Arena(sizes.get(tier, 0), tier=tier), device)
        if self._home is not None:
            resources.take(self._home.open(), device)
        return Tiers(self.store, arenas, device=device, device_tier=self.tier, home=self._home)

    def close(self) -> None:
        """End the threads, remove the scratch file, give the memory back; again is allowed."""
        for name in ("exact_moves", "engine", "waits", "marks", "_tiers"):
            self.__dict__.pop(name, None)  # they hold views of the arenas
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    def check_open(self) -> None:
        """ExecutionError after `close`, and in the child of a fork if anything moves: no thread has come along."""
        if self.closed:
            raise ExecutionError("this executor is closed; open a new one")
        if self.engine.lanes and os.getpid() != self._process:
            raise ExecutionError(
                f"process {os.getpid()} is a child of process {self._process}, which opened this plan, and has none of "
                "the threads that move its bytes; open the plan in the process that runs it"
            )

    def restart(self, wanted: Callable[[Storage], bool] | None = None) -> int:
        """Bring everything into the state before the first pass, or of homed storages only those that are `wanted`.

        Returns the bytes read from the store for that: what is resident at instant 0, or once all that is homed where
        its home is the host's memory.
        """
        self.check_open()
        self._stop()
        if wanted is None:
            trim_heap()
        read = 0 if self._home is None else self._home.fill(self.store)
        fill: list[Move] = []
        for r in prefilled(self.plan, self.graph):
            storage = self.graph.storage[r.storage]
            if wanted is None or wanted(storage):
                chunk = chunk_nbytes(self.machine.link.get((self.plan.home_tier, r.tier)))
                fill += self._tiers.loads(storage, r.lo, r.hi, (r.tier, r.offset), chunk, None, None)
                read += r.nbytes if self._home is None else 0
        run_together(fill)
        self._tiers.drop_stages()
        return read

    def transfers_alone(self) -> float:
        """Seconds in which the transfers of one pass run with nothing computed. `restart` must follow."""
        self.check_open()
        self._stop()
        for mark in self.marks.values():
            mark()
        with self.store.unchecked():  # no step waits, so a place may be filled twice at once
            begin = perf_counter_ns()
            if self.plan.steps:
                self.engine.arrive(len(self.plan.steps) - 1)
            for lane in self.engine.lanes.values():
                self.engine.wait(lane, len(lane.jobs))
            return (perf_counter_ns() - begin) * 1e-9

    def _stop(self) -> None:
        """Nothing moves and nothing computes any more."""
        self.engine.reset()
        if self.device is not None:
            self.device.settle()
            self.device.restart()

    def settle(self) -> list[tuple[Route, int]]:
        """Wait until nothing moves; how often each transfer is complete since `restart`, in the order of the plan."""
        self.check_open()
        self.engine.settle()
        lanes = self.engine.lanes
        return [
            (route, (lanes[route.lane].done - route.position - 1) // len(lanes[route.lane].jobs) + 1)
            for route in self._moves.routes
        ]

    @property
    def routes(self) -> Sequence[Route]:
        """The plan's transfers, in its order, with their places in lanes."""
        return self._moves.routes

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
        self._copied = sum(lane.copied_nbytes for lane in engine.lanes.values())
        self._begin = perf_counter_ns()

    def stop(self, moved: tuple[int, int]) -> Stats:
        """What the pass took; `moved` as it is now."""
        engine, waited = self._engine, self._waited
        stats = Stats(
            seconds=(perf_counter_ns() - self._begin) * 1e-9,
            read_nbytes=moved[0] - self._before[0],
            written_nbytes=moved[1] - self._before[1],
            copied_nbytes=sum(lane.copied_nbytes for lane in engine.lanes.values()) - self._copied,
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
    device: Device | None = None
    arenas: list[Arena] = field(default_factory=list[Arena])
    pinned: ExitStack = field(default_factory=ExitStack)
    process: int = field(default_factory=os.getpid)

    def take(self, arena: Arena, device: Device | None = None) -> Arena:
        """Keep `arena`, ready for the moves of `device`."""
        self.arenas.append(arena)
        if device is not None:
            self.pinned.enter_context(device.pinned(arena))
        return arena

    def close(self) -> None:
        """Threads first, for they use the others; what is pinned before its memory goes.

        Python collects what is forgotten in whatever thread it happens to be. A lane's own, which may hold the lock of
        all lanes just then, leaves it to one that can wait for it. The child of a fork has no threads to end, and what
        a device has is its parent's; it only lets go of the memory.
        """
        if os.getpid() != self.process:
            self._forget()
            return
        if self.engine is not None and self.engine.runs_here():
            threading.Thread(target=self.close, name="tensorstow closing").start()
            return
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        if self.scratch is not None:
            self.scratch.close()
        try:
            if self.device is not None:
                self.device.settle()
            self.pinned.close()
        finally:
            if self.device is not None:
                self.device.close()
            for arena in self.arenas:
                arena.close()

    def _forget(self) -> None:
        self.engine = self.device = None
        if self.scratch is not None:
            self.scratch.close()
        for arena in self.arenas:
            arena.close()
