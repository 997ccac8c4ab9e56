"""Runs a plan with ONNX Runtime's kernels on memory of ours: nothing is decided here that the plan has not decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType

from ..ir.errors import ExecutionError, InputError
from ..ir.graph import Graph
from ..ir.machine import Machine
from ..ir.plan import Plan
from ..ir.program import Program
from .alone import Alone, Result
from .directio import never
from .endpoints import Checked, Endpoints
from .kernels import ENGINE_ERRORS, load_kernels, run_error, use_threads, use_workspace
from .lookup import LookupCall
from .memory import settle_allocator
from .passes import PlanMemory, Stats, Stopwatch
from .preflight import check_store, compute_unit, opaque_elements
from .profile import Profile, summarise
from .reading import WeightReader
from .steps import Values, bind_steps
from .trace import Event
from .values import Array

__all__ = ["OnnxExecutor", "Stats"]


class OnnxExecutor:
    """A plan made ready: arena, kernels, bindings and transfer threads stand before the first pass.

    Threads may share one: what they ask for is done one after another, and `close` waits for what is under way.
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
        store: WeightReader,
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
        self._alone = Alone()
        self._period = len(plan.steps)
        unit = compute_unit(plan, graph, machine)
        self.tier = unit.tier
        check_store(graph, plan, store)
        memory = PlanMemory(plan, graph, machine, self.tier, store)
        self._endpoints = Endpoints(graph, program, memory.addresses, self._period)
        self.threads = use_threads(threads or unit.threads or None)
        use_workspace(plan.workspace_nbytes.get(self.tier, 0))
        settle_allocator()
        kernels = load_kernels(
            program, {s.op: graph.operator[s.op].op_type for s in plan.steps if s.op not in program.lookups}
        )
        self._memory = memory
        memory.open(scratch)
        try:
            self._arena = memory.arena
            if memory.engine.lanes:  # without any, a child may go on computing
                self._arena.keep_from_children()
            self._steps = bind_steps(plan, graph, kernels, program.lookups, store, memory.addresses, memory.arena)
        except BaseException:
            self.close()
            raise
        self._engine = memory.engine
        self._waits = memory.waits
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
        """Stop the threads, remove the scratch file, give the memory back, once no pass is under way.

        Again is allowed; running is not.
        """
        self._alone.finish(self._release)

    def _release(self) -> None:
        for name in ("_calls", "_steps", "_values", "_last_inputs", "_engine", "_waits"):
            self.__dict__.pop(name, None)  # they hold views of the arena and bindings to it
        self._memory.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._memory.closed

    def load(self) -> int:
        """Bring everything into the state before the first pass; the bytes read for what is resident at instant 0."""
        return self._do(self._load)

    def _do(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, which no other thread disturbs."""
        return self._alone.do(work, self._release)

    def _load(self) -> int:
        self._memory.check_open()
        self._ready = False
        self._turn = 0
        self._values.clear()
        nbytes = self._memory.restart()
        self._totals = self._moved()
        self._ready = True
        return nbytes

    def run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        """One pass: outputs by name, new arrays. Loads first where that was not done or the last pass failed.

        Raises InputError for inputs that do not fit, ExecutionError where a kernel or a transfer fails; after one the
        next pass starts afresh.
        """
        return self._do(partial(self._run, inputs))

    def profile(self, passes: int, inputs: Mapping[str, object] | None = None) -> Profile:
        """Medians over `passes` real passes, as the plan runs them: kernels beside transfers, operands from memory.

        One pass before them is not counted: it checks checksums. `inputs` default to the last ones, else zeros.
        """
        if passes < 1:
            raise InputError(f"a profile takes at least 1 pass, got {passes}")
        return self._do(partial(self._profile, passes, inputs))

    def _profile(self, passes: int, inputs: Mapping[str, object] | None) -> Profile:
        self._memory.check_open()
        before, self.tracing = self.tracing, True
        taken: list[tuple[Event, ...]] = []
        try:
            for _ in range(passes + 1):
                self._run(self._some_inputs(inputs))
                taken.append(self.stats.events)
        finally:
            self.tracing = before
        return summarise(taken[1:], {s.unit for s in self._steps})

    def compute_only(self, inputs: Mapping[str, object] | None = None) -> float:
        """Seconds of one pass in which nothing moves and so nothing waits; weights and spilled values are stale.

        Only what is not of floating point (indices, sizes, masks) is moved in time, with the clock stopped: a kernel
        would fail on wrong ones. `inputs` default to the last ones. The next `run` loads again.
        """
        return self._do(partial(self._compute_only, inputs))

    def _compute_only(self, inputs: Mapping[str, object] | None) -> float:
        self._memory.check_open()
        checked = self._endpoints.check(self._some_inputs(inputs))
        self._ready = False
        self._memory.restart(lambda storage: storage.id in self._memory.exact)
        self._values.clear()
        self._endpoints.put(checked, self._arena, self._values, self._elements)
        stopped = 0
        begin = perf_counter_ns()
        step = 0
        try:
            for step, (call, binding, opaque, _) in enumerate(self._calls):
                moves = self._memory.exact_moves.get(step)
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
        return self._do(self._io_only)

    def _io_only(self) -> float:
        self._memory.check_open()
        self._ready = False
        return self._memory.transfers_alone()

    def _run(self, inputs: Mapping[str, object]) -> dict[str, Array]:
        self._memory.check_open()
        steps = self._observed_steps if self.tracing else self._plain_steps
        checked = self._endpoints.check(inputs)
        if not self._ready:
            self._load()
        self._last_inputs = checked
        engine = self._engine
        watch = Stopwatch(engine, self._totals, tracing=self.tracing)
        self._ready = False  # unless we come to the end
        first = self._turn * self._period
        engine.arrive(first)
        for lane, count, jobs in self._waits[0]:  # what must be complete by then may leave the very place of an input
            engine.wait(lane, count + self._turn * jobs)
        self._endpoints.put(checked, self._arena, self._values, self._elements)  # nothing stores one before instant 1
        steps(first)
        for lane, count, jobs in self._waits[-1] if self._period else ():
            engine.wait(lane, count + self._turn * jobs)
        outputs = self._endpoints.take(checked, self._arena, self._values, self.store)
        self._values.clear()
        engine.arrive(first + self._period)
        self._turn += 1
        self._ready = True
        self._totals = self._moved()
        self.stats = watch.stop(self._totals)
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

    def _some_inputs(self, inputs: Mapping[str, object] | None) -> Mapping[str, object]:
        """The given inputs, else those of the last pass, else zeros."""
        if inputs is not None:
            return inputs
        return self._endpoints.zeros() if self._last_inputs is None else self._endpoints.named(self._last_inputs)

    def _moved(self) -> tuple[int, int]:
        """Bytes read and written by transfers so far."""
        looked_up = sum(s.call.read_nbytes for s in self._steps if isinstance(s.call, LookupCall))
        read, written = self._memory.moved()
        return read + looked_up, written
