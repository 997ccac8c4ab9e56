"""Training steps in the workflow: captured, lowered, and placed as the machine's memory asks."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hosts import Progress, require_host, runs_here, silent
from .ir.errors import InfeasibleError, InputError
from .ir.files import PlanFile
from .ir.machine import Machine
from .ir.program import Clip, ModelSource, TrainingProgram
from .models import Lowered, Model
from .module_times import with_times
from .modules import ModuleModel, module_from_entry
from .planner.entry import HF
from .training_clip import NO_OPTIMIZER, applied_clip, asked_clip
from .training_fixed import untouched_nbytes

if TYPE_CHECKING:
    from .planner.training import Scope, StepLowered, TrainingLowered
    from .runtime.training.executor import TrainingExecutor
    from .runtime.training.hooked import HookedSteps
    from .runtime.training.joint_graph import Joint


@dataclass(frozen=True)
class TrainingModel:
    """A module as it is trained. `loss` makes a scalar of what the module returns; by default see
    `runtime.training.losses.loss_of`. With
    `optimizer` (of torch.optim, over the module's parameters) its update is part of the step, and `clip` says how its
    gradients are clipped before. Captured once."""

    model: ModuleModel
    loss: Callable[[Any], Any] | None = None
    optimizer: Any = None
    clip: Clip | None = None
    known: dict[Any, Any] = field(default_factory=dict[Any, Any], compare=False, repr=False)
    """What was found out before."""

    @property
    def name(self) -> str:
        """The module's."""
        return self.model.name

    def joint(self, progress: Progress = silent) -> Joint:
        """Forward and backward as one graph."""
        from .runtime.training.joint import capture_joint
        from .runtime.training.joint_loss import Watched, one_loss
        from .runtime.training.losses import picked

        if "joint" not in self.known:
            progress(f"tracing {self.name}", 0.0)
            model = self.model
            # Of an error in `picked` no line is told: it is not the user's.
            watched = Watched(self.loss or picked)
            joint = capture_joint(model.module, model.args, model.kwargs, watched.loss)
            self.known["joint"] = one_loss(joint, watched, self.name)
        return self.known["joint"]

    def step(self, progress: Progress = silent) -> StepLowered:
        """The operators of a step, by formulas."""
        from .planner.training import lower_joint, with_updates
        from .planner.training.in_place import results_in_place
        from .planner.training.optimizer import optimizer_calls

        if "step" not in self.known:
            joint = self.joint(progress)
            found = results_in_place(lower_joint(joint, name=self.name), joint)
            if self.optimizer is not None:
                found = with_updates(found, optimizer_calls(self.optimizer, self.model.module))
            self.known["step"] = found
        return self.known["step"]

    def timed(self, machine: Machine, progress: Progress) -> StepLowered:
        """With measured times of operators, if the machine is this box."""
        step = self.step(progress)
        if not runs_here(machine):
            return step
        if "measured" not in self.known:
            operators = with_times(step.operators, machine, progress, warm=True)
            self.known["measured"] = replace(step, operators=operators)
        return self.known["measured"]

    def lower(self, machine: Machine, mode: str, progress: Progress = silent) -> Lowered:
        """What is planned of a step: as much kept in memory as the machine's budget allows."""
        from .runtime.training.refusals import NoSingleGraphError

        assert mode == "training", "made for it"
        try:
            self.joint(progress)
        except NoSingleGraphError as refused:
            from .training_hooked import lower_hooked

            lowered = lower_hooked(self, machine, refused, progress)
            self.known["hooked"] = lowered.graph
            assert lowered.training is not None
            return replace(lowered, training=replace(lowered.training, clip=self.clip))
        found = self._chosen(self.timed(machine, progress), machine)
        return Lowered(found.graph, training=replace(found.program, entry=self.model.entry))

    def _chosen(self, step: StepLowered, machine: Machine) -> TrainingLowered:
        """What is placed beside activations on `machine`, as little as goes.

        States of the optimizer are kept in memory where the whole step fits beside them; else they are placed, and the
        plan decides. Parameters are placed where nothing else goes: what runs a step finds them in memory.
        """
        from .planner.instance import make_instance
        from .planner.training import ALL, KEPT, STATES

        for scope in (KEPT, STATES) if step.optimizer is not None else (STATES,):
            found = self._placed(step, scope, machine)
            try:
                posed = make_instance(found.graph, machine, mode="training")
            except InfeasibleError:
                continue
            if scope is STATES or posed.peak_of_all() <= posed.capacity_nbytes:
                return found
        return self._placed(step, ALL, machine)

    def _placed(self, step: StepLowered, scope: Scope, machine: Machine) -> TrainingLowered:
        """What a plan is made of; states that are placed are split, so that they pass through a small window."""
        from .planner.training import placed
        from .planner.training.clip import with_clipping
        from .planner.training.optimizer import split_updates, window_nbytes, with_update_times

        joint = self.joint()
        if scope.states:
            step = split_updates(step, window_nbytes(machine))
        if runs_here(machine):
            step = with_update_times(step, self._update_ns)
        if self.clip is not None:
            step = with_clipping(step, self.clip, self._clip_ns if runs_here(machine) else None)
        return placed(step, scope, key=joint.key, other_nbytes=untouched_nbytes(self.model.module, joint))

    def _update_ns(self, kind: str, options: dict[str, Any], dtype: str, elements: int) -> int:
        """Nanoseconds of an update here; each form is measured once."""
        from .runtime.training.update_calls import update_ns

        form = kind, json.dumps(options, sort_keys=True), dtype, elements
        if form not in self.known:
            self.known[form] = update_ns(kind, options, dtype, elements)
        return self.known[form]

    def _clip_ns(self, what: str, dtype: str, elements: int) -> int:
        """Nanoseconds of taking a norm or of scaling a gradient here; each form is measured once."""
        from .planner.training.clip import NORM
        from .runtime.training.clipping import clip_ns

        form = what, dtype, elements
        if form not in self.known:
            self.known[form] = clip_ns(what == NORM, dtype, elements)
        return self.known[form]

    def source(self) -> ModelSource | None:
        """The files that the module came from."""
        return self.model.source()

    def held_beside_nbytes(self) -> int:
        """What this process holds beside what a plan of the step counts."""
        from .training_fixed import held_beside_nbytes

        return held_beside_nbytes(self)

    def smallest_budget(self, machine: Machine) -> int:
        """What the hungriest operator needs with all placed that can be, beside what is kept, and the reserve."""
        from .planner.instance import make_instance
        from .planner.training import ALL

        tier = machine.units[0].tier
        graph = self.known["hooked"] if "hooked" in self.known else self._placed(self.step(), ALL, machine).graph
        whole = make_instance(graph, machine.with_capacity({tier: 1 << 60}), mode="training")
        return whole.smallest_budget


def training_model(model: Model, *, loss: Callable[[Any], Any] | None = None, optimizer: Any = None) -> TrainingModel:
    """A model to be trained. Raises InputError for one that is no PyTorch module."""
    if not isinstance(model, ModuleModel):
        raise InputError(
            f"mode 'training' is not available for {model.name}: an ONNX file holds inference only; give a PyTorch "
            "module"
        )
    from .runtime.training.refusals import refuse_sharded

    refuse_sharded(model.module)
    if model.entry is not None and model.entry.startswith(HF):
        from .planner.training.hf_labels import with_labels

        model.module.train()
        model = replace(model, kwargs=with_labels(model.module, model.kwargs))
    loss = loss if loss is not None else model.loss
    optimizer = optimizer if optimizer is not None else model.optimizer
    return TrainingModel(model, loss, optimizer)


def with_clip(model: Model, max_norm: float | None, clip_value: float | None) -> Model:
    """`model`, which is trained with its optimizer, with its gradients clipped, where one of the numbers is given.
    Raises InputError for other models."""
    clip = asked_clip(max_norm, clip_value)
    if clip is None:
        return model
    if not isinstance(model, TrainingModel) or model.optimizer is None:
        raise InputError(NO_OPTIMIZER)
    return replace(model, clip=clip, known={})


def remember(file: PlanFile, model: Model) -> PlanFile:
    """`file`, which from now on knows the live loss and optimizer that it was planned with, for `apply_training`: a
    plan is data, and they are none. What is written to a file and read again does not know them."""
    if isinstance(model, TrainingModel):
        vars(file)[_LIVE] = (model.loss, model.optimizer)  # beside its fields, as functools.cached_property does
    return file


_LIVE = "_planned_with"


def apply_training(
    file: PlanFile,
    model: Any,
    *,
    loss: Callable[[Any], Any] | None,
    optimizer: Any,
    threads: int | None,
    max_norm: float | None = None,
    clip_value: float | None = None,
) -> TrainingExecutor | HookedSteps:
    """What runs the training step `file`: on the module given, or on the one that its entry makes. A step that could
    not be traced is run by hooks; a warning says so, and why.

    Without `loss` and `optimizer` those that it was planned with, where this process planned it, or those of its
    entry. Raises PlanMismatchError and InputError where plan, module and optimizer do not belong together.
    """
    from .planner.pytorch.mapped import bring_kept
    from .runtime.training.executor import TrainingExecutor
    from .runtime.training.hooked import HookedSteps
    from .training_hooked import notice

    program = file.training
    assert program is not None
    require_host(file.machine)
    clip = applied_clip(program, asked_clip(max_norm, clip_value))
    known = vars(file).get(_LIVE, (None, None))
    if model is None or isinstance(model, (str, os.PathLike)):
        made = remade(program, file, None if model is None else os.fspath(model))
        model, known = made.model.module, (made.loss, made.optimizer)
    loss, optimizer = loss if loss is not None else known[0], optimizer if optimizer is not None else known[1]
    bring_kept(model, placed_names(program))
    if program.hooked is not None:
        warnings.warn(notice(program.hooked.why, file.graph.name), stacklevel=3)
        return HookedSteps(file, model, loss=loss, optimizer=optimizer, threads=threads, clip=clip)
    return TrainingExecutor(file, model, loss=loss, optimizer=optimizer, threads=threads, clip=clip)


def remade(program: TrainingProgram, file: PlanFile, moved: str | None) -> TrainingModel:
    """The model that the plan's entry makes, or that of the file or folder that has moved."""
    if program.entry is None or file.source is None:
        raise InputError("the plan is for a module in memory: give it, as ts.apply(plan, module)")
    entry = program.entry
    if moved is not None:
        entry = f"{HF}{moved}" if entry.startswith(HF) else f"{moved}:{entry.rpartition(':')[2]}"
    made = module_from_entry(entry, file.source.dims, allow_pickle=file.source.allow_pickle)
    return training_model(_with_weights(made, placed_names(program)))


def placed_names(program: TrainingProgram) -> frozenset[str]:
    """Qualified names of the parameters that a plan places."""
    return frozenset(name for p in program.parameters for name in p.names)


def _with_weights(model: ModuleModel, placed: frozenset[str]) -> ModuleModel:
    """A model of a directory with its weights in memory, where a step that leaves parameters to PyTorch needs them;
    those that are `placed` lie in the files, until the step moves them to its store."""
    if model.entry is None or not model.entry.startswith(HF) or not any(p.is_meta for p in model.module.parameters()):
        return model
    if model.matched is None:
        raise InputError(f"'{model.entry}' has no weights to train; save the model there with save_pretrained first")
    from .planner.pytorch.mapped import map_parameters

    return replace(model, module=map_parameters(model.module, model.matched, placed), _known={})


def open_module(path: str | os.PathLike[str]) -> Any:
    """The module of a Hugging Face directory, to be trained by a plan in less memory than its weights take.

    As `from_pretrained` makes it, in training mode, but with parameters that lie in the directory's files; a plan that
    places parameters moves them from there to the store, one after the other. Make the optimizer over it, plan, apply:
    `module = open_module("DIR"); step = ts.apply(ts.plan(module, batch, mode="training", optimizer=opt), module)`.
    Raises InputError for what is no such directory, or has no weights.
    """
    from .planner.pytorch.mapped import open_mapped

    return open_mapped(Path(path))
