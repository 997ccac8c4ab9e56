"""One step after another by a plan: the passes of forward and backward, and what moves beside them."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import Any

import torch

from ...ir.errors import ExecutionError
from ...ir.program import TrainingProgram
from ..passes import PlanMemory, Stats, Stopwatch
from .allocator import Region
from .emit import emit
from .joint_graph import Joint
from .optimizer import PlannedOptimizer
from .placement import Placement
from .steering import Steering


class Between:
    """What autograd holds between forward and backward: the values that are saved outside the plan's memory.

    `saved` is None once the backward has begun.
    """

    def __init__(self, saved: list[Any], *, planned: bool) -> None:
        self.saved: list[Any] | None = saved
        self.planned = planned


class PlannedStep:
    """The code of a plan and its passes. A pass begins with a forward and ends with its backward.

    A pass whose result was dropped, or in which something was raised, is brought to its end before the next one, with
    its transfers and without its operators: so what the plan keeps from pass to pass is where the plan has it.
    """

    def __init__(
        self,
        memory: PlanMemory,
        region: Region,
        program: TrainingProgram,
        joint: Joint,
        optimizer: PlannedOptimizer | None,
    ) -> None:
        self.stats = Stats()
        self.tracing = False
        self._memory = memory
        self._engine = memory.engine
        self._waits = memory.waits
        self._period = len(memory.plan.steps)
        placement = Placement(memory.plan, memory.graph, program, joint, memory.addresses, memory.arena)
        view = placement.viewer()
        self._steering = Steering(placement, region, view)
        advances = self._advances()
        self._instants = [t for t, due in enumerate(advances) if due]
        hooks: dict[str, Any] = {"advance": self._advance, **self._steering.hooks}
        calls = placement.calls(advances)
        for t, call in enumerate(calls):
            if call.update is not None:
                assert optimizer is not None
                hooks[f"update_{t}"] = partial(optimizer.update, call.op)
            if call.norm is not None:
                assert optimizer is not None
                hooks[f"norm_{t}"] = partial(optimizer.take_norm, call.op)
            if call.factor:
                assert optimizer is not None
                hooks[f"factor_{t}"] = optimizer.take_factor
        self.code = emit(joint, calls, placement.turn, view, hooks, address=memory.arena.address)
        self._between: weakref.ref[Between] | None = None
        self._ready = False
        self._open = False
        self._reached = -1
        self._turn = 0
        self._totals = (0, 0)
        self._watch: Stopwatch | None = None
        self._paused_ns = 0

    def _advances(self) -> list[bool]:
        """For each instant of a pass whether anything may start or must be complete there."""
        found = [bool(waits) for waits in self._waits[: self._period]]
        for transfer in self._memory.plan.transfers:
            found[transfer.after] = True
        return found

    @property
    def copies(self) -> int:
        """Results that were copied to their places."""
        return self._steering.copies

    @property
    def idle(self) -> bool:
        """Whether no forward waits for its backward."""
        between = self._between() if self._between is not None else None
        return between is None or between.saved is None

    def restarted(self) -> None:
        """Somebody has brought the memory into the state before the first pass."""
        self._turn, self._open, self._ready = 0, False, True
        self._totals = self._memory.moved()

    def reload(self) -> None:
        """Begin the next pass from what is at home."""
        self._ready = self._open = False

    def forward(self, primals: list[Any]) -> tuple[list[Any], Between]:
        """The outputs of the forward, and what its backward needs."""
        if self._open:
            self._abandon()
        if not self._ready:
            self._load()
        self._watch = Stopwatch(self._engine, self._totals, tracing=self.tracing)
        self._open, self._reached = True, -1
        self._engine.arrive(self._turn * self._period)
        with self._steered():
            outputs, saved = self.code.forward(primals)
        between = Between(saved, planned=True)
        self._between = weakref.ref(between)
        self._paused_ns = perf_counter_ns()
        return outputs, between

    def backward(self, saved: list[Any], tangents: list[Any]) -> list[torch.Tensor | None]:
        """The gradients of the primals. The pass is complete then. ExecutionError where the memory was closed since."""
        self._memory.check_open()
        paused_s = (perf_counter_ns() - self._paused_ns) * 1e-9
        with self._steered():
            gradients = self.code.backward(saved, tangents)
        self._finish()
        self._steering.finish()
        self.code.hooks.update(self._steering.hooks)
        assert self._watch is not None
        stats = self._watch.stop(self._totals)
        self.stats = replace(stats, seconds=stats.seconds - paused_s)
        return gradients

    @contextmanager
    def _steered(self) -> Generator[None]:
        self._steering.enter()
        try:
            yield
        finally:
            self._steering.leave()

    def _advance(self, t: int) -> None:
        """Instant `t` of the pass has come: what may start starts, what is due is waited for."""
        self._reached = t
        engine, turn = self._engine, self._turn
        engine.arrive(turn * self._period + t)
        for lane, count, jobs in self._waits[t]:
            if lane.done < count + turn * jobs:
                engine.wait(lane, count + turn * jobs)

    def _finish(self) -> None:
        """The last instant of the pass."""
        for lane, count, jobs in self._waits[self._period]:
            self._engine.wait(lane, count + self._turn * jobs)
        self._turn += 1
        self._engine.arrive(self._turn * self._period)
        self._open = False
        self._totals = self._memory.moved()

    def _abandon(self) -> None:
        """Bring a pass to its end without its operators; start afresh where a transfer has failed."""
        try:
            for t in self._instants:
                if t > self._reached:
                    self._advance(t)
            self._finish()
        except ExecutionError:
            self._ready = False

    def _load(self) -> None:
        self._memory.restart()
        self.restarted()
