"""Runs a PyTorch module by a plan: the module computes, the plan says where its weights are and when they come."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn

from ...ir.errors import ExecutionError, InputError
from ...ir.graph import Graph
from ...ir.machine import Machine
from ...ir.plan import Plan
from ...ir.program import ModuleProgram
from ..memory import settle_allocator
from ..passes import PlanMemory, Stats, Stopwatch
from ..preflight import check_store
from ..profile import Profile, summarise
from ..reading import Lender, WeightReader
from ..trace import Event
from .bind import bind, check_machine, move_rest
from .devices import TorchDevice, device_for
from .experts import ExpertForwards
from .install import install
from .sparse import SparseForwards
from .weights import Weights


class Closable(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Give it back; again is allowed."""
        ...


class ModuleExecutor:
    """A module made ready to run by a plan. Call the module itself, its parts, or its `generate()`, as before.

    Its results are to the bit those it has without a plan, under `torch.no_grad()`. `store` holds the weights and stays
    the caller's; the module's own may be gone (on 'meta', say). What the plan does not place is left untouched.
    `threads` sets PyTorch's threads; without it they stay as they are, for other numbers may mean other bits. `scratch`
    is a folder for what the plan writes. Raises PlanMismatchError or InputError, with the module untouched, where plan,
    graph, program, store and module do not fit one another; ExecutionError where memory is short. The caller has
    checked the digests. A module has one executor in its life.

    Where the plan computes from 'hbm', the module runs on the CUDA device that is current now, or on `device` if one is
    given; what the plan does not place is moved there, inputs are the caller's to move. `experts` are those that are
    read as tokens choose them, with what they hit and missed; None where the plan caches none. `rows` are the layers
    of which rows are read; None where there are none.
    """

    def __init__(
        self,
        plan: Plan,
        graph: Graph,
        program: ModuleProgram,
        store: WeightReader,
        machine: Machine,
        module: nn.Module,
        *,
        threads: int | None = None,
        scratch: Path | None = None,
        device: TorchDevice | None = None,
    ) -> None:
        if isinstance(module.__dict__.get(_MARK), ModuleExecutor):
            raise InputError("this module is run by a plan already; make it anew to plan it again")
        self.plan = plan
        self.graph = graph
        self.program = program
        self.store = store
        self.machine = machine
        self.module = module
        self.stats = Stats()
        self.tracing = False
        self.experts: ExpertForwards | None = None
        self.rows: SparseForwards | None = None
        unit = check_machine(plan, graph, machine)
        self.tier = unit.tier
        device = device or device_for(unit, machine)
        where = torch.device("cpu") if device is None else device.torch_device
        check_store(graph, plan, store)
        placed = bind(plan, graph, program, store, module, where)
        self._memory = PlanMemory(plan, graph, machine, self.tier, store, device=device)
        self._sources = [s for p in placed for s in (p.source, *p.ranges)]
        self._attached: list[Closable] = []
        self._owned: Closable | None = None
        settle_allocator()
        self.device = where
        self._memory.open(scratch)
        self._weights = Weights(self._memory, device)
        self._undo = ExitStack()
        try:
            if isinstance(store, Lender):
                self._undo.callback(store.hand_over())
            if threads is not None:
                self._undo.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(threads)
            self.threads = torch.get_num_threads()
            self._weights.bind(self._sources)
            move_rest(module, placed, where, self._undo)
            install(self._weights, module, placed, frozenset(program.calls.values()), self._undo)
            module.__dict__[_MARK] = self
            self._undo.callback(module.__dict__.pop, _MARK, None)
        except BaseException:
            self.close()
            self._undo.close()
            raise
        if not isinstance(store, Lender):
            self._undo.pop_all()  # lets the originals go

    def __enter__(self) -> ModuleExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def attach(self, other: Closable) -> None:
        """Close `other` with this, before anything of it."""
        self._attached.append(other)

    def own_store(self) -> None:
        """Close the store with this, when nobody reads from it any more."""
        self._owned = self.store

    def close(self) -> None:
        """Stop the threads and give the memory back; again is allowed. The module cannot be used afterwards."""
        try:
            self._stop()
        finally:
            if self._owned is not None:
                self._owned.close()

    def _stop(self) -> None:
        while self._attached:
            self._attached.pop().close()
        self._weights.close(self._sources)

    def give_back(self) -> None:
        """Close, and leave the module as it was before it was taken, with its weights in memory of their own.

        It must not run meanwhile. Only a store that took them from the module in memory has them to give
        (`reading.Lender`); with any other this is `close`. Raises ExecutionError where they cannot be read, as after
        `close`.
        """
        try:
            if isinstance(self.store, Lender):
                self._memory.check_open()
                self._stop()
                self._undo.close()
        finally:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._memory.closed

    def load(self) -> int:
        """Bring everything into the state before the first pass; the bytes read for what is resident at instant 0."""
        with self._weights.passing, self._weights.using:
            self._memory.check_open()
            self._outside("load")
            nbytes = self._weights.clock.load()
            self._weights.totals = self._weights.moved()
            return nbytes

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """`module(*args, **kwargs)` as one pass, measured in `stats`. Loads first where that was not done.

        Raises what the module raises, and ExecutionError where a transfer fails; the next call is right again.
        """
        weights = self._weights
        with weights.passing:
            self._memory.check_open()
            self._outside("run")
            with weights.using:
                if not weights.clock.ready:
                    self.load()
                if self.tracing:
                    weights.clock.rouse()
                weights.clock.finish()  # of what was called in part
                watch = Stopwatch(self._memory.engine, weights.totals, tracing=self.tracing)
            result = self.module(*args, **kwargs)
            weights.settle()
            self.stats = watch.stop(weights.totals)
            return result

    def profile(self, passes: int, *args: Any, **kwargs: Any) -> Profile:
        """Medians over `passes` real passes, as the plan runs them. One pass before them is not counted."""
        if passes < 1:
            raise InputError(f"a profile takes at least 1 pass, got {passes}")
        before, self.tracing = self.tracing, True
        taken: list[tuple[Event, ...]] = []
        try:
            for _ in range(passes + 1):
                self.run(*args, **kwargs)
                taken.append(self.stats.events)
        finally:
            self.tracing = before
            if not self.closed:
                self._memory.engine.events = None
        return summarise(taken[1:], {s.unit for s in self.plan.steps})

    def compute_only(self, *args: Any, **kwargs: Any) -> float:
        """Seconds of one call of the module in which nothing moves and so nothing waits; weights are stale.

        Only what is not of floating point (indices, masks) is moved in time, with the clock stopped. The next use of
        the module loads again.
        """
        weights = self._weights
        with weights.passing, weights.using:  # nobody else may find stale weights
            self._memory.check_open()
            self._outside("compute_only")
            weights.clock.freeze()
            try:
                begin = perf_counter_ns()
                self.module(*args, **kwargs)
                weights.settle()
                return (perf_counter_ns() - begin - weights.clock.stopped_ns) * 1e-9
            finally:
                weights.clock.thaw()

    def io_only(self) -> float:
        """Seconds in which the transfers of one pass run with nothing computed. The next use loads again."""
        with self._weights.passing, self._weights.using:
            self._memory.check_open()
            self._outside("io_only")
            self._weights.clock.thaw()
            return self._memory.transfers_alone()

    def _outside(self, what: str) -> None:
        if self._weights.inside.calls:
            raise ExecutionError(f"`{what}` was called from inside the module that it would run; call it from outside")


_MARK = "tensorstow"
