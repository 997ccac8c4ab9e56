"""Lightning's Trainer, with the forward and backward of each step by a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from torch import nn
from torch.utils import _pytree as pytree

from .. import api
from ..ir.errors import InputError
from ..ir.machine import Machine

if TYPE_CHECKING:
    from ..ir.files import PlanFile
    from ..runtime.training.executor import TrainingExecutor


class PlannedSteps(Callback):  # pyright: ignore[reportUntypedBaseClass]
    """A callback: training steps run inside the memory of `machine` (by default this box), to the bit as without it.

    The plan is made from the first batch, and stands in `planned` from then on; `plan_options` go to `tensorstow.plan`.
    Loop, optimizer, schedule, logging and checkpoints are Lightning's; validation runs without the plan. A batch of
    other shapes, or with other than tensors in it, is computed as ever: `unplanned` counts them. Raises InputError for
    manual optimization and for a strategy that wraps the module, InfeasibleError where a step does not fit.
    """

    def __init__(self, machine: Machine | None = None, plan_options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.planned: PlanFile | None = None
        self.unplanned = 0
        self._machine, self._options = machine, plan_options or {}
        self._step: TrainingExecutor | None = None
        self._form: Any = None
        self._module: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on the module's `training_step` is the planned one."""
        if not pl_module.automatic_optimization:
            raise InputError("a plan holds one forward and one backward; use automatic optimization")
        if trainer.strategy.model is not pl_module:
            raise InputError(f"{type(trainer.strategy).__name__} wraps the module; plans are run on one device")
        self._module = pl_module
        pl_module.training_step = self._training_step

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The module's own `training_step` again; the plan's memory is given back."""
        del trainer, pl_module
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same."""
        del trainer, pl_module, exception
        self._release()

    def _release(self) -> None:
        if self._module is not None:
            del self._module.training_step  # the instance's: that of its class is what it was
            self._module = None
        if self._step is not None:
            self._step.close()
            self._step = None

    def _training_step(self, batch: Any, *more: Any) -> Any:
        """Instead of the module's."""
        values, layout = pytree.tree_flatten(batch)
        form = layout, [(tuple(v.shape), v.dtype) for v in values if isinstance(v, torch.Tensor)]
        if not all(isinstance(v, torch.Tensor) for v in values) or self._form not in (None, form):
            self.unplanned += 1
            return type(self._module).training_step(self._module, batch, *more)
        if self._step is None:
            self._form = form
            self._step = self._plan(_Step(self._module, layout), (*values, *more))
        return self._step(*values, *more)

    def _plan(self, step: _Step, inputs: tuple[Any, ...]) -> TrainingExecutor:
        """Planning computes steps that are none of the training: they draw no random numbers and log nothing."""
        # A call of what is not compiled ends a graph, as that of the module's own `log` does.
        self._module.log = torch.compiler.disable(_nothing)
        try:
            with torch.random.fork_rng():
                self.planned = api.plan(step, inputs, machine=self._machine, mode="training", **self._options)
                applied: Any = api.apply(self.planned, step)
                return applied
        finally:
            del self._module.log


def _nothing(*args: Any, **kwargs: Any) -> None:
    del args, kwargs


class _Step(nn.Module):
    """A LightningModule's step as a module of tensors."""

    def __init__(self, module: Any, layout: pytree.TreeSpec) -> None:
        super().__init__()
        self.inside, self._layout = module, layout

    def forward(self, *values: Any) -> Any:
        batch = pytree.tree_unflatten(values[: self._layout.num_leaves], self._layout)
        return type(self.inside).training_step(self.inside, batch, *values[self._layout.num_leaves :])
