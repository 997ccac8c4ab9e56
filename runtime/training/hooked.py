"""Runs training steps that cannot be traced as one graph: the module as it is, what autograd saves by a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ...ir.errors import ExecutionError, InputError, PlanMismatchError
from ...ir.files import PlanFile
from ...ir.graph import Graph
from ...ir.plan import Plan
from ...ir.program import Clip, HookedStep
from ...ir.saved import Choice, SavedPlan
from ..passes import Stats
from ..preflight import compute_unit
from .clipping import clip_plain
from .consumed import mark, unmark_all
from .hooks import SavedTensors
from .losses import loss_of


def saved_plan(plan: Plan, graph: Graph, step: HookedStep, tier: str) -> SavedPlan:
    """What of the saved tensors leaves `tier` by `plan`, whose arena bounds those that are in it."""
    moved = {t.storage for t in plan.transfers}
    held = frozenset(step.held)

    def choice(number: int) -> Choice:
        if number in held:
            return "held"
        return "offload" if f"saved:{number}" in moved else "keep"

    choices: tuple[Choice, ...] = tuple(choice(k) for k in range(len(step.nbytes)))
    return SavedPlan(
        plan.arena_nbytes.get(tier, 0),
        step.nbytes,
        choices,
        peak_nbytes=plan.certificate.peak_nbytes.get(tier, 0) - plan.workspace_nbytes.get(tier, 0),
        offloaded_nbytes=sum(n for n, c in zip(step.nbytes, choices, strict=True) if c == "offload"),
    )


class HookedSteps:
    """`loss = step(*batch)`, then `loss.backward()`; with an optimizer the call is the whole step.

    Bits are those of the plain step, since it is the plain step: only where saved tensors are meanwhile is planned.
    Gradients, clipping, accumulation and the optimizer are the user's as ever. Without gradients, and in evaluation
    mode where the step was planned in training mode, nothing is saved by hooks, and nothing is updated. Raises as
    `SavedTensors`, and InputError where the optimizer is not as planned.
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
        clip: Clip | None = None,
    ) -> None:
        if file.training is None or file.training.hooked is None:
            raise PlanMismatchError("this plan is of no step with planned saved tensors; plan with mode='training'")
        step = file.training.hooked
        if step.updates != (optimizer is not None):
            has, given = ("updates", "no optimizer") if step.updates else ("no updates", "an optimizer")
            raise InputError(f"the plan has {has}, and {given} is given; plan with the optimizer that is applied")
        if threads is not None:
            torch.set_num_threads(threads)
        self.file, self.module = file, module
        self._training = file.training.training
        self._optimizer = optimizer
        self._loss = loss or loss_of
        self._clip = clip or file.training.clip
        self.grad_norm: torch.Tensor | None = None
        """Where gradients are clipped by it: the norm of all of them in the last step, before they were clipped."""
        tier = compute_unit(file.plan, file.graph, file.machine).tier
        self.saved = SavedTensors(saved_plan(file.plan, file.graph, step, tier), module, folder=scratch)
        self._before = (0, 0)
        self._seconds = 0.0
        self.closed = False

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of a batch; with an optimizer, when its backward and the update are done."""
        if self.closed:
            raise ExecutionError("this step was closed; apply the plan again")
        evaluates = self._training and not self.module.training
        if evaluates or not torch.is_grad_enabled():
            return self._loss(self.module(*args, **kwargs))
        now = self.saved.stats
        self._before = now.read_nbytes, now.written_nbytes
        began = perf_counter()
        loss = self._step(args, kwargs)
        self._seconds = perf_counter() - began
        return loss

    def _step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        with self.saved.step():
            loss = self._loss(self.module(*args, **kwargs))
        if self._optimizer is None:
            return loss
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip is not None:
            self.grad_norm = clip_plain(self._clip, self.module)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        mark(self._trained(), clipped=self._clip is not None)
        return loss.detach()

    def _trained(self) -> list[tuple[str, torch.Tensor]]:
        """The parameters that the optimizer updates, with their names."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        return [(name, p) for name, p in self.module.named_parameters() if id(p) in held]

    @property
    def stats(self) -> Stats:
        """What moved since the last call began; the seconds are those of the call."""
        now = self.saved.stats
        return Stats(self._seconds, now.read_nbytes - self._before[0], now.written_nbytes - self._before[1])

    def close(self) -> None:
        """End the threads and give the disk back; again is allowed."""
        self.closed = True
        if self._optimizer is not None:
            unmark_all(self.module)
        self.saved.close()

    def __enter__(self) -> HookedSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
