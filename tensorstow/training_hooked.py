"""Steps that cannot be traced: planned from a profile of a real step, and run with hooks on what autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

from .hosts import Progress, on_processor
from .ir.errors import InputError
from .ir.machine import Machine
from .models import Lowered
from .training_fixed import counted_nbytes

if TYPE_CHECKING:
    from .runtime.training.refusals import NoSingleGraphError
    from .training import TrainingModel


def lower_hooked(model: TrainingModel, machine: Machine, refused: NoSingleGraphError, progress: Progress) -> Lowered:
    """The step of `model`, whose tracing was `refused`, as a graph of stretches between what it saves and reads.

    Runs the step twice, in as much memory as that takes. Raises `refused` where it cannot be run here: for another
    machine, or a module without data.
    """
    from dataclasses import replace

    from .planner.training.hooked import lower_profile

    module = model.model.module
    if not on_processor(machine) or any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        raise InputError(
            f"{refused}. (Without a graph a step is planned from a profile of it, which takes a module with its data, "
            "and this box as the machine)"
        ) from refused
    progress(f"running a step of {model.name}, which cannot be traced", 0.0)
    if "profile" not in model.known:
        model.known["profile"] = _profile(model)
    why = f"{refused.where.strip(' ()') or model.name}: {refused.reason}"
    found = lower_profile(
        model.known["profile"],
        name=model.name,
        why=" ".join(why.split()),
        kept_nbytes=counted_nbytes(model, gradients=False) + _missing_states_nbytes(model),
        updates=model.optimizer is not None,
    )
    return Lowered(found.graph, training=replace(found.program, entry=model.model.entry, training=module.training))


def _profile(model: TrainingModel) -> Any:
    from .runtime.training.losses import loss_of
    from .runtime.training.saved_profile import profile_saved

    module, args, kwargs = model.model.module, model.model.args, model.model.kwargs
    as_loss: Callable[[Any], Any] = model.loss or loss_of
    return profile_saved(module, lambda: as_loss(module(*args, **kwargs)))


def _missing_states_nbytes(model: TrainingModel) -> int:
    """Bytes of the states that the optimizer will make at its first step."""
    if model.optimizer is None:
        return 0
    from .planner.training.optimizer import optimizer_calls

    held = model.optimizer.state
    made = {id(p) for p in held if held[p]}
    names = dict(model.model.module.named_parameters(remove_duplicate=False))
    total = 0
    for call in optimizer_calls(model.optimizer, model.model.module).calls:
        parameter = names[call.names[0]]
        if id(parameter) not in made:
            total += sum(prod(s.shape) * parameter.element_size() for s in call.states)
    return total


def notice(why: str, name: str) -> str:
    """What a user is told, in one line."""
    return (
        f"{name} cannot be traced as one graph ({why}); its saved tensors are planned instead, kept or moved by hooks"
    )
