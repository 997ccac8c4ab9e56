"""How gradients are clipped in planned steps: what a user asks for, and whether a plan can do it."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from .ir.errors import InputError
from .ir.program import Clip, TrainingProgram

NO_OPTIMIZER = (
    "max_norm= and clip_value= belong to steps with their optimizer; plan with `optimizer` too, or clip in a loop of "
    "your own (torch.nn.utils.clip_grad_norm_) between backward and optimizer.step()"
)


def asked_clip(max_norm: float | None, clip_value: float | None) -> Clip | None:
    """What is asked for. Raises InputError for two ways at once, and numbers that clip nothing or everything."""
    given = {n: float(v) for n, v in (("max_norm", max_norm), ("clip_value", clip_value)) if v is not None}
    if not given:
        return None
    if len(given) > 1:
        raise InputError("max_norm and clip_value are two ways to clip gradients; give one")
    for name, value in given.items():
        if not (isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; give a finite number above 0")
    return Clip(max_norm=given.get("max_norm"), clip_value=given.get("clip_value"))


def applied_clip(program: TrainingProgram, asked: Clip | None) -> Clip | None:
    """How steps of `program` clip where `asked` is asked for: the way is the plan's, the number may be another. Raises
    InputError where the plan has not that way."""
    planned = program.clip
    if asked is None:
        return planned
    if planned is None:
        if program.optimizer is None and not (program.hooked is not None and program.hooked.updates):
            raise InputError(NO_OPTIMIZER)
        raise InputError(
            "the plan clips no gradients: its updates do not wait for the norm of them; give max_norm= or clip_value= "
            "when planning"
        )
    if (asked.max_norm is None) != (planned.max_norm is None):
        was = "max_norm" if asked.max_norm is None else "clip_value"
        raise InputError(f"the plan clips by {was}, another way is asked for; plan again with that one")
    return replace(planned, max_norm=asked.max_norm, clip_value=asked.clip_value)
