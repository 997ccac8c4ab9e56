"""Runs a plan with ONNX Runtime's kernels on memory of ours: nothing is decided here that the plan has not decided."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType

from ..ir.errors import ExecutionError, InputError
from ..ir.graph import Graph, Storage
from ..ir.machine import Machine
from ..ir.paths import cache_dir
from ..ir.plan import Plan
from ..ir.program import Program
from ..ir.simulate import prefilled
from .addresses import Addresses
from .arena import Arena
from .directio import DirectFile, never
from .endpoints import Checked, Endpoints
from .kernels import ENGINE_ERRORS, load_kernels, run_error, use_threads, use_workspace
from .lookup import LookupCall
from .memory import settle_allocator, trim_heap
from .moves import Moves, chunk_nbytes, load_homed
from .preflight import check_store, compute_unit, opaque_elements
from .profile import Profile, summarise
from .steps import Values, bind_steps
from .store import WeightStore
from .trace import Event
from .transfer import Engine
from .values import Array


@dataclass(slots=True)
class Stats:
    """Of the last pass: time, bytes that transfers moved since the pass before, time waited for each lane.

    `events` is empty unless `OnnxExecutor.tracing` is on.
    """

    seconds: float = 0.0
    read_nbytes: int = 0
    written_nbytes: int = 0
    wait_ns: dict[str, int] = field(default_factory=dict[str, int])
    events: tuple[Event, ...] = ()


class OnnxExecutor:
    """A plan made ready: arena, kernels, bindings and transfer threads stand before the first pass.

    `store` stays the caller's. `threads` compute (by default what the machine says, else one per physical core; fixed
    for the process by the first executor). Spilled activations go to a nameless file in the folder `scratch` (by
    default the cache). Raises PlanMismatchError or InputError where plan, graph and program do not fit one another,
    ExecutionError where memory or disk is short. The caller has checked the digests.
    """

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        program: Program,
        store: WeightStore,
        machine: Machine,
        *,
        threads: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.plan = plan
        self.graph = graph
        self.program = program
        self.store = store
        self.machine = machine
        self.stats = Stats()
        self.tracing = False
        self._period = len(plan.steps)
        unit = compute_unit(plan, graph, machine)
        self.tier = unit.tier
        check_store(graph, plan, store)
        addresses = Addresses(plan, graph, self.tier)
        moves = Moves(plan, graph, machine, self.tier, addresses)
        self._endpoints = Endpoints(graph, program, addresses, self._period)
        self.threads = use_threads(threads or unit.threads or None)
        use_workspace(plan.workspace_nbytes.get(self.tier, 0))
        settle_allocator()
        kernels = load_kernels(
            program, {s.op: graph.operator[s.op].op_type for s in plan.steps if s.op not in program.lookups}
        )
        resources = _Resources()
        self._finalizer = weakref.finalize(self, resources.close)
        try:
            self._arena = resources.arena = Arena(plan.arena_nbytes.get(self.tier, 0), tier=self.tier)
            if moves.scratch_nbytes:
                resources.scratch = DirectFile.scratch(scratch or cache_dir(), moves.scratch_nbytes)
            self._steps = bind_steps(plan, graph, kernels, program.lookups, store, addresses, self._arena)
            jobs = moves.jobs(self._arena, store, resources.scratch)
            self._exact, self._exact_moves = moves.exact(jobs)
            self._engine = resources.engine = Engine(jobs, self._period)
        except BaseException:
            self.close()
            raise
        lanes = self._engine.lanes
        self._waits = [[(lanes[name], n, len(lanes[name].jobs)) for name, n in due] for due in moves.due()]
        self._calls = [
            (s.call, s.binding, s.opaque, waits) for s, waits in zip(self._steps, self._waits[:-1], strict=True)
        ]
        self._elements = opaque_elements(plan, graph, kernels)
        self._values: Values = {}
        self._last_inputs: Checked | None = None
        self._ready = False
        self._turn = 0
        self._totals = (0, 0)

    def __enter__(self) -> OnnxExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads, remove the scratch file, give the memory back. Again is allowed; running is not."""
        for name in ("_calls", "_steps", "_exact_moves", "_values", "_last_inputs", "_engine", "_waits"):
            self.__dict__.pop(name, None)  # they hold views of the arena and bindings to it
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    def load(self) -> int:
        """Bring everything into the state before the first pass; the bytes read for what is resident at instant 0."""
        self._check_open()
        self._ready = False
        self._engine.reset()
        self._turn = 0
        self._values.clear()
        trim_heap()
        nbytes = self._fill(lambda _: True)
        self._totals = self._moved()
        self._ready = True
        return nbytes

    def _fill(self, wanted: Callable[[Storage], bool]) -> int:
        nbytes = 0
        for r in prefilled(self.plan, self.graph):
            storage = self.graph.storage[r.storage]
            if wanted(storage):
                chunk = chunk_nbytes(self.machine.link.get((self.plan.home_tier, r.tier)))
                load_homed(self.store, storage, r.lo, self._arena.view(r.offset, r.nbytes), chunk, never)
                nbytes += r.nbytes
        return nbytes

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """One pass: outputs by name, new arrays. Loads first where that was not done or the last pass failed.

        Raises InputError for inputs that do not fit, ExecutionError where a kernel or a transfer fails; after one the
        next pass starts afresh.
        """
        return self._run(inputs, self._observed_steps if self.tracing else self._plain_steps)

    def profile(self, passes: int, inputs: Mapping[str, object] | None = None) -> Profile:
        """Medians over `passes` real passes, as the plan runs them: kernels beside transfers, operands from memory.

        One pass before them is not counted: it checks checksums. `inputs` default to the last ones, else zeros.
        """
        if passes < 1:
            raise InputError(f"a profile takes at least 1 pass, got {passes}")
        self._check_open()
        before, self.tracing = self.tracing, True
        taken: list[tuple[Event, ...]] = []
        try:
            for _ in range(passes + 1):
                self.run(self._some_inputs(inputs))
                taken.append(self.stats.events)
        finally:
            self.tracing = before
        return summarise(taken[1:], {s.unit for s in self._steps})

    def compute_only(self, inputs: Mapping[str, object] | None = None) -> float:
        """Seconds of one pass in which nothing moves and so nothing waits; weights and spilled values are stale.

        Only what is not of floating point (indices, sizes, masks) is moved in time, with the clock stopped: a kernel
        would fail on wrong ones. `inputs` default to the last ones. The next `run` loads again.
        """
        self._check_open()
        checked = self._endpoints.check(self._some_inputs(inputs))
        self._ready = False
        self._engine.reset()
        self._fill(lambda storage: storage.id in self._exact)
        self._values.clear()
        self._endpoints.put(checked, self._arena, self._values, self._elements)
        stopped = 0
        begin = perf_counter_ns()
        step = 0
        try:
            for step, (call, binding, opaque, _) in enumerate(self._calls):
                moves = self._exact_moves.get(step)
                if moves:
                    pause = perf_counter_ns()
                    for move in moves:
                        move(never)
                    stopped += perf_counter_ns() - pause
                if opaque is None:
                    call(binding, None)
                else:
                    opaque.run(self._values)
        except ENGINE_ERRORS as error:
            raise self._kernel_error(step, error) from error
        return (perf_counter_ns() - begin - stopped) * 1e-9

    def io_only(self) -> float:
        """Seconds in which the transfers of one pass run with nothing computed. The next `run` loads again."""
        self._check_open()
        self._ready = False
        self._engine.reset()
        begin = perf_counter_ns()
        if self._period:
            self._engine.arrive(self._period - 1)
        for lane in self._engine.lanes.values():
            self._engine.wait(lane, len(lane.jobs))
        return (perf_counter_ns() - begin) * 1e-9

    def _run(self, inputs: Mapping[str, object], steps: Callable[[int], None]) -> dict[str, Array]:
        self._check_open()
        checked = self._endpoints.check(inputs)
        if not self._ready:
            self.load()
        self._last_inputs = checked
        engine = self._engine
        engine.events = (engine.events or []) if self.tracing else None
        waited = {lane.name: lane.wait_ns for lane in engine.lanes.values()}
        begin = perf_counter_ns()
        self._ready = False  # unless we come to the end
        first = self._turn * self._period
        engine.arrive(first)
        self._endpoints.put(checked, self._arena, self._values, self._elements)
        steps(first)
        for lane, count, jobs in self._waits[-1] if self._period else ():
            engine.wait(lane, count + self._turn * jobs)
        outputs = self._endpoints.take(checked, self._arena, self._values, self.store)
        self._values.clear()
        engine.arrive(first + self._period)
        self._turn += 1
        self._ready = True
        read, written = self._moved()
        self.stats = Stats(
            seconds=(perf_counter_ns() - begin) * 1e-9,
            read_nbytes=read - self._totals[0],
            written_nbytes=written - self._totals[1],
            wait_ns={n: lane.wait_ns - waited[n] for n, lane in engine.lanes.items() if lane.wait_ns > waited[n]},
            events=tuple(engine.events or ()),
        )
        if engine.events is not None:
            engine.events = []
        self._totals = (read, written)
        return outputs

    def _plain_steps(self, first: int) -> None:
        """The steps of a pass, with as little as can be between two kernels."""
        engine, values, turn = self._engine, self._values, self._turn
        instant = first
        try:
            for call, binding, opaque, waits in self._calls:
                for lane, count, jobs in waits:
                    if lane.done < count + turn * jobs:
                        engine.wait(lane, count + turn * jobs)
                if opaque is None:
                    call(binding, None)
                else:
                    opaque.run(values)
                instant += 1
                if instant < first + self._period:
                    engine.arrive(instant)
        except ENGINE_ERRORS as error:
            raise self._kernel_error(instant - first, error) from error

    def _observed_steps(self, first: int) -> None:
        """The same with a look at the clock around each kernel."""
        engine = self._engine
        events: list[Event] = [] if engine.events is None else engine.events
        for number, step in enumerate(self._steps):
            for lane, count, jobs in self._waits[number]:
                engine.wait(lane, count + self._turn * jobs)
            begin = perf_counter_ns()
            try:
                if step.opaque is None:
                    step.call(step.binding, None)
                else:
                    step.opaque.run(self._values)
            except ENGINE_ERRORS as error:
                raise self._kernel_error(number, error) from error
            events.append(Event(step.unit, step.op.id, begin, perf_counter_ns()))
            if number + 1 < self._period:
                engine.arrive(first + number + 1)

    def _kernel_error(self, step: int, error: Exception) -> ExecutionError:
        op = self.graph.operator[self.plan.steps[step].op]
        return run_error(op.id, op.op_type, error)

    def _check_open(self) -> None:
        if self.closed:
            raise ExecutionError("this executor is closed; open a new one")

    def _some_inputs(self, inputs: Mapping[str, object] | None) -> Mapping[str, object]:
        """The given inputs, else those of the last pass, else zeros."""
        if inputs is not None:
            return inputs
        return self._endpoints.zeros() if self._last_inputs is None else self._endpoints.named(self._last_inputs)

    def _moved(self) -> tuple[int, int]:
        """Bytes read and written by transfers so far."""
        lanes = self._engine.lanes.values()
        looked_up = sum(s.call.read_nbytes for s in self._steps if isinstance(s.call, LookupCall))
        return looked_up + sum(lane.read_nbytes for lane in lanes), sum(lane.written_nbytes for lane in lanes)


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
