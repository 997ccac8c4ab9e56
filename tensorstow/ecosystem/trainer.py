"""transformers' Trainer, its forward and backward by a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from .. import api
from ..ir.machine import Machine

if TYPE_CHECKING:
    from ..ir.files import PlanFile
    from ..runtime.training.executor import TrainingExecutor


class PlannedTrainer(Trainer):
    """A `Trainer` whose steps run inside the memory of `machine` (by default this box), to the bit those of Trainer.

    The plan is made from the first batch, and stands in `planned` from then on; `plan_options` go to `tensorstow.plan`.
    Loop, optimizer, schedule, logging and checkpoints are Trainer's; evaluation runs without the plan. A batch of
    other shapes, and a loss that is not a function of tensors alone, are computed as Trainer does: `unplanned` counts
    them. Raises InfeasibleError where a step does not fit.
    """

    planned: PlanFile | None = None
    unplanned: int = 0
    _step: TrainingExecutor | None = None
    _shapes: dict[str, Any] | None = None

    def __init__(
        self, *args: Any, machine: Machine | None = None, plan_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._machine, self._options = machine, plan_options or {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a training batch by the plan; what else asks for a loss has it as ever."""
        batch = dict(inputs)
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            batch["num_items_in_batch"] = num_items_in_batch
        own = return_outputs or not model.training or self.label_smoother is not None or self.compute_loss_func
        if not own and self._fits(batch):
            return self._planned_step(model, batch)(**batch)
        self.unplanned += int(model.training)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _fits(self, batch: dict[str, Any]) -> bool:
        """Whether `batch` is tensors of the shapes and types that were planned, or the first one."""
        if not all(isinstance(value, torch.Tensor) for value in batch.values()):
            return False
        return self._shapes is None or self._shapes == _shapes(batch)

    def _planned_step(self, model: Any, batch: dict[str, Any]) -> TrainingExecutor:
        """The step, planned when it is first asked for."""
        if self._step is None:
            with torch.random.fork_rng():  # planning computes steps that are none of the training
                self.planned = api.plan(model, batch, machine=self._machine, mode="training", **self._options)
                self._step = api.apply(self.planned, model)
            self._shapes = _shapes(batch)
        assert self._step is not None
        return self._step

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; the plan's memory is given back in the end."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._step is not None:
                self._step.close()
                self._step = None


def _shapes(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
