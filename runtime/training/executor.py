"""Runs training steps of a PyTorch module by a plan: forward, backward and, where the plan has them, updates."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ...ir.errors import ExecutionError, InputError, PlanMismatchError
from ...ir.files import PlanFile
from ...ir.machine import TierKind
from ...ir.program import Clip
from ..passes import PlanMemory, Stats
from ..preflight import check_store, compute_unit
from ..reading import WeightReader
from .allocator import RegionStats, open_region
from .emit import Code, emit_plain
from .joint import compile_joint
from .joint_graph import Joint, Sections
from .losses import loss_of
from .no_store import NoStore
from .optimizer import PlannedOptimizer
from .optimizer_states import homed_nbytes
from .placed_parameters import PlacedParameters
from .planned import Between, PlannedStep
from .refusals import refuse_sharded
from .state_store import StateStore


class TrainingExecutor:
    """A module whose training steps are run by a plan: `loss = step(*batch)`, and `loss.backward()` where the plan has
    no updates.

    Loss, gradients and updated parameters are to the bit those of the module without a plan. Without gradients
    (`torch.no_grad()`), and in evaluation mode where that is not what was planned, the module runs as it is. `loss` is
    called with what the module returns; without it see `loss_of`. `optimizer` is the one that was planned with.
    `threads` sets PyTorch's threads; without it they stay as they are, for other numbers may mean other bits. `scratch`
    is a folder for what the plan spills. `native` is that of `open_region`. `clip` is how gradients are clipped where
    the updates are part of the step, by default as planned.

    Raises PlanMismatchError or InputError where plan and module do not fit one another (what only a call can tell, at
    the first call), ExecutionError where memory or disk is short.
    """

    def __init__(
        self,
        file: PlanFile,
        module: nn.Module,
        *,
        loss: Callable[[Any], torch.Tensor] | None = None,
        optimizer: Any = None,
        threads: int | None = None,
        scratch: Path | None = None,
        native: bool | None = None,
        clip: Clip | None = None,
    ) -> None:
        if file.training is None:
            raise PlanMismatchError("this plan is of no training step; plan with mode='training'")
        refuse_sharded(module)
        self.file = file
        self.plan = file.plan
        self.graph = file.graph
        self.program = file.training
        self.module = module
        self.tier = self._check(optimizer)
        self._optimizer: PlannedOptimizer | None = None
        self._frozen: PlacedParameters | None = None
        self._store: StateStore | None = None
        if optimizer is not None:
            self._optimizer = PlannedOptimizer(optimizer, module, self.plan, self.graph, self.program, clip)
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self._open(scratch, native)
        self._planned: PlannedStep | None = None
        self._plain: Code | None = None
        self._joint: Joint | None = None
        self._training = self.program.training
        self._step = compile_joint(module, self.build, loss or loss_of)
        self._eager = loss or loss_of

    def _check(self, optimizer: Any) -> str:
        """The tier that steps compute from."""
        plan, machine = self.plan, self.file.machine
        unit = compute_unit(plan, self.graph, machine)
        if machine.tier[unit.tier].kind is not TierKind.DRAM:
            raise PlanMismatchError(
                f"the plan computes from '{unit.tier}'; training steps are run on the CPU: plan for a machine whose "
                "unit computes from dram"
            )
        used = {r.tier for r in plan.residencies} - {unit.tier, plan.home_tier}
        if used:
            raise PlanMismatchError(
                f"the plan keeps bytes in '{min(used)}' beside '{unit.tier}' and '{plan.home_tier}'; this executor "
                "follows plans of two tiers: plan for a machine without it"
            )
        if (self.program.optimizer is not None) != (optimizer is not None):
            has, given = ("updates", "no optimizer") if optimizer is None else ("no updates", "an optimizer")
            raise InputError(f"the plan has {has}, and {given} is given; plan with the optimizer that is applied")
        trained = [p.names[0] for p in self.program.parameters if p.names[0] in self.program.gradients]
        if trained and optimizer is None:
            raise PlanMismatchError(
                f"the plan places parameter '{trained[0]}', which is updated outside of it; plan again with `optimizer`"
            )
        return unit.tier

    def _open(self, scratch: Path | None, native: bool | None) -> None:
        """Memory, store and region; what was opened is closed where something fails."""
        with ExitStack() as opened:
            store = self._open_store(scratch, opened)
            check_store(self.graph, self.plan, store)
            self._memory = PlanMemory(self.plan, self.graph, self.file.machine, self.tier, store)
            opened.callback(self._memory.close)
            self._memory.open(scratch)
            if self._optimizer is not None:
                self._memory.restart()
                self._optimizer.bind(self._memory)
            nbytes = max(0, self.plan.workspace_nbytes.get(self.tier, 0) - self.program.kept_nbytes)
            workspace = memoryview(mmap.mmap(-1, nbytes)) if nbytes else None
            planned = self._memory.arena.view(0, self.plan.arena_nbytes.get(self.tier, 0))
            self._region = open_region(planned, workspace, native=native)
            opened.pop_all()

    def _open_store(self, scratch: Path | None, opened: ExitStack) -> WeightReader:
        """The home of what the plan places; `opened` closes it."""
        if self._optimizer is not None:
            opened.callback(self._optimizer.close)
            return self._optimizer.open_store(scratch)
        if not self.program.parameters:
            return NoStore()
        self._frozen = PlacedParameters(self.graph, self.program, self.module)
        self._store = StateStore(homed_nbytes(self.graph), scratch)
        opened.callback(self._store.close)
        opened.callback(self._frozen.release)
        self._frozen.move(self._store, lambda: None)
        return self._store

    def __enter__(self) -> TrainingExecutor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads, give memory and scratch file back, and its states to the optimizer; again is allowed.
        Calling the step is not. Raises ExecutionError where the states cannot be read back."""
        if not self.closed:
            self._planned = None
            self._region.close()
            try:
                if self._optimizer is not None:
                    self._optimizer.close()
            finally:
                self._memory.close()
                if self._frozen is not None:
                    self._frozen.release()
                if self._store is not None:
                    self._store.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._memory.closed

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch. Where the plan has updates, the whole step is done when this returns."""
        if not torch.is_grad_enabled() or (self._training and not self.module.training):
            return self._eager(self.module(*args, **kwargs))
        self._memory.check_open()
        if self._frozen is not None and (self._planned is None or self._planned.idle):
            self._frozen.begin()
            if self._frozen.written() and self._planned is not None:
                self._planned.reload()
        loss = self._step(*args, **kwargs) if self._optimizer is None else self._whole(self._optimizer, args, kwargs)
        # Who plans in evaluation mode and trains in the other, where both are one graph, evaluates in evaluation mode.
        self._training = self._training or self.module.training
        return loss

    def _whole(self, optimizer: PlannedOptimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """A step with its updates."""
        if optimizer.begin() and self._planned is not None:
            self._planned.restarted()
        try:
            loss = self._step(*args, **kwargs)
            loss.backward()
            optimizer.end()
        except BaseException:
            optimizer.failed()
            raise
        return loss.detach()

    @property
    def stats(self) -> Stats:
        """Of the last planned step; its seconds are those of forward and backward, without what came between."""
        return Stats() if self._planned is None else self._planned.stats

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """Where the plan clips by it: the norm of all gradients of the last step before they were clipped, as
        clip_grad_norm_ returns it."""
        clipping = None if self._optimizer is None else self._optimizer.clipping
        return None if clipping is None else clipping.total

    @property
    def region_stats(self) -> RegionStats:
        """What the allocator counted: results that took their places, and the workspace."""
        return self._region.stats()

    @property
    def copies(self) -> int:
        """Results that were copied to their places, because the allocator could not put them there."""
        return 0 if self._planned is None else self._planned.copies

    @property
    def hooks(self) -> dict[str, Any]:
        """All that the code calls, by the names that it has there; none before the first call."""
        return {} if self._planned is None else self._planned.code.hooks

    def source(self) -> str:
        """The code that runs the plan; there is none before the first call."""
        return "" if self._planned is None else self._planned.code.source

    def build(self, joint: Joint) -> Sections:
        """Forward and backward of the plan. Refuses a graph that is not the one that was planned."""
        if joint.key != self.program.key:
            raise PlanMismatchError(
                "this call is not the one that was planned: the module, its mode, the shapes or types of the inputs, "
                "the loss, autocast, or the version of PyTorch differ; plan again with this module and such a batch"
            )
        if self._planned is None:
            self._planned = PlannedStep(self._memory, self._region, self.program, joint, self._optimizer)
            self._joint = joint
        # What another graph with this key computes differs in these alone; the rest of it is not held.
        planned, constants = self._planned, joint.constants

        def forward(primals: list[Any]) -> tuple[list[Any], Between]:
            if not planned.idle:
                return self._forward_unplanned(constants, primals)
            planned.code.bind(constants)
            return planned.forward(primals)

        def backward(between: object, tangents: list[Any]) -> list[torch.Tensor | None]:
            assert isinstance(between, Between)
            if between.saved is None:
                raise ExecutionError(
                    "backward came a second time for one step: the plan gives activations up as it goes, so nothing "
                    "is left for it; call the step again instead of retaining the graph"
                )
            saved, between.saved = between.saved, None
            if between.planned:
                return planned.backward(saved, tangents)
            return self._plain_code(constants).backward(saved, tangents)

        return Sections(forward, backward, planned.code.read)

    def _forward_unplanned(self, constants: Mapping[str, Any], primals: list[Any]) -> tuple[list[Any], Between]:
        if self._optimizer is not None:
            raise ExecutionError("a step was called inside a step; each one needs all of the plan's memory")
        warnings.warn(
            "a second forward was called before the backward of the first one: it runs without the plan, and holds all "
            "of its activations beside the plan's memory",
            stacklevel=2,
        )
        outputs, saved = self._plain_code(constants).forward(primals)
        return outputs, Between(saved, planned=False)

    def _plain_code(self, constants: Mapping[str, Any]) -> Code:
        """The step without a plan, with these constants until somebody asks for it again."""
        if self._plain is None:
            assert self._joint is not None
            self._plain = emit_plain(self._joint)
        self._plain.bind(constants)
        return self._plain
