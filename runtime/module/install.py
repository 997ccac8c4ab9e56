"""Puts lazy parameters and forwards into a module, and refusals where nothing right could be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ...ir.errors import InputError
from . import forwards
from .bind import Placed
from .exchange import make_lazy, make_plain
from .lazy import LazyTensor, whole
from .row_ranges import by_ranges
from .weights import Source, Weights

CHANGED = ("forward", "__getstate__", "__deepcopy__", "load_state_dict", "_apply")
"""Attributes that modules get, in place of those of their classes."""


def install(
    weights: Weights, module: nn.Module, placed: Sequence[Placed], called: frozenset[str], undo: ExitStack
) -> None:
    """From here on `module` finds its weights where the plan has them. `called` are modules that read weights.

    Every parameter and buffer of `placed` becomes a lazy tensor, and stays the object that it was: so it is one
    wherever the module, or anybody else, holds it. Closing `undo` makes everything what it was, with what `install` had
    done when it was interrupted.
    """
    for part in module.modules():
        undo.callback(_put_back, part, {k: part.__dict__[k] for k in CHANGED if k in part.__dict__})
    for one in placed:
        parameter = any(p.parameter for p in one.places)
        for value in {id(p.value): p.value for p in one.places}.values():
            lazy = whole(weights, one.source, parameter=parameter)
            undo.callback(make_plain, value, lazy)
            make_lazy(value, lazy)
    owners = {id(p.owner) for one in placed for p in one.places}
    divided = {one.divided: one.ranges for one in placed if one.divided is not None}
    for name, part in [*module.named_modules()][::-1]:
        if _holds_placed(part):
            _refuse_changes(part)
        if part is not module and (id(part) in owners or name in called):
            _wrap(weights, part, divided.get(name, ()))
    if id(module) in owners:
        _wrap(weights, module, divided.get("", ()))
    module.__dict__["forward"] = forwards.whole_pass(weights, module, module.forward)


def _put_back(part: nn.Module, before: Mapping[str, Any]) -> None:
    for name in CHANGED:
        part.__dict__.pop(name, None)
    part.__dict__.update(before)


def _wrap(weights: Weights, part: nn.Module, ranges: Sequence[Source]) -> None:
    original = part.forward
    by_range = by_ranges(weights, part, original, ranges) if ranges else None
    if by_range is not None:
        part.__dict__["forward"] = by_range
        return
    for kind in (forwards.layer, forwards.borrowed, forwards.together):
        known = kind(weights, part, original)
        if known is not None:
            part.__dict__["forward"] = known
            return
    part.__dict__["forward"] = forwards.part(weights, part, original)


def _placed(part: nn.Module, *, recurse: bool) -> list[LazyTensor]:
    values = [*part.parameters(recurse=recurse), *part.buffers(recurse=recurse)]
    return [v for v in values if isinstance(v, LazyTensor)]


def _holds_placed(part: nn.Module) -> bool:
    return bool(_placed(part, recurse=True))


def _refuse_changes(part: nn.Module) -> None:
    """Copies, pickles, conversions and loads of what holds placed weights."""
    name = type(part).__name__

    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError(
            f"this {name} is run by a plan, with its weights in the plan's store and memory, so it can be neither "
            "copied nor pickled; copy the module before it is planned, or save its `state_dict()`"
        )

    def refuse_load(*_: Any, **__: Any) -> Any:
        raise InputError(
            f"this {name} is run by a plan, which reads its weights from a store: nothing can be loaded into it; load "
            "before planning, and plan again"
        )

    part.__dict__["__getstate__"] = part.__dict__["__deepcopy__"] = refuse
    part.__dict__["load_state_dict"] = refuse_load
    part.__dict__["_apply"] = _conversion(part)


def _conversion(part: nn.Module) -> Callable[..., nn.Module]:
    """`Module._apply`, on which `.to()`, `.half()`, `.cuda()` stand: allowed where it changes no placed weight."""
    original = part._apply  # pyright: ignore[reportPrivateUsage]

    def apply(fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        for lazy in _placed(part, recurse=recurse):
            _check_kept(lazy, fn)
        own: dict[str, Any] = {}
        held: list[dict[str, Any]] = [part._parameters, part._buffers]  # pyright: ignore
        for values in held:
            for name, value in values.items():
                if isinstance(value, LazyTensor):
                    own[name], values[name] = value, None
        try:
            original(fn, recurse)
        finally:
            for values in held:
                values.update((name, own[name]) for name in values if name in own)
            if isinstance(part, nn.RNNBase):
                part._init_flat_weights()  # pyright: ignore[reportPrivateUsage]
        return part

    return apply


def _check_kept(lazy: LazyTensor, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """InputError where `fn` makes something else of such a tensor; tried on a small one."""
    small = torch.ones([min(n, 2) for n in lazy.shape]).to(lazy.device, lazy.dtype)
    now = fn(small)
    for what, was, is_now in (
        ("dtype", small.dtype, now.dtype),
        ("device", small.device, now.device),
        ("layout", (small.layout, small.stride()), (now.layout, now.stride())),
    ):
        if was != is_now:
            raise InputError(
                f"'{lazy.source.name}' is placed by a plan with {what} {was}, it cannot become {is_now}; convert the "
                "module first, and plan it then"
            )
    if now.is_shared() or not torch.equal(now, torch.ones_like(now)):
        raise InputError(
            f"'{lazy.source.name}' is placed by a plan, its values cannot be changed or shared; plan again"
        )
