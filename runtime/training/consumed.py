"""What stands for the gradient of a parameter whose update has run inside a planned step.

After such a step there is no gradient. `None` would say that there never was one, and `clip_grad_norm_` called then
would find nothing to clip and change nothing, silently. What stands there instead has shape and type and no bytes, and
refuses to be read. `zero_grad` takes it away, as it does a gradient; so does the next planned step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...ir.errors import InputError

_aten = torch.ops.aten
_SAME = frozenset({_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten._to_copy.default})
_ZEROED = frozenset({_aten.zero_.default, _aten._foreach_zero_.default})


class ConsumedGradient(torch.Tensor):
    """Refuses to be read, with InputError. May be detached, set to zero and asked for shape and type."""

    of: str
    """The parameter's name."""
    clipped: bool
    """Whether the plan clips gradients."""

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Shape and type; there is nothing else."""
        return f"<gradient of '{self.of}', {list(self.shape)} of {self.dtype}, used up by its update>"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Refuse what would read or change it."""
        if func in _SAME:
            given: Any = args[0]
            return _made(given, (kwargs or {}).get("dtype") or given.dtype, given.of, clipped=given.clipped)
        if func in _ZEROED:
            return args[0] if func is _aten.zero_.default else None
        refuse((args, kwargs))
        raise AssertionError(f"{func} was called without a consumed gradient")


def _made(like: torch.Tensor, dtype: torch.dtype, name: str, *, clipped: bool) -> ConsumedGradient:
    """As large as `like`."""
    made: Any = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
        ConsumedGradient, like.shape, strides=like.stride(), dtype=dtype, device=like.device, requires_grad=False
    )
    made.of, made.clipped = name, clipped
    return made


def refuse(args: object) -> None:
    """InputError about the first consumed gradient in `args`."""
    for leaf in pytree.tree_leaves(args):
        if isinstance(leaf, ConsumedGradient):
            advice = (
                "this plan clips gradients itself, before the updates: leave the call out"
                if leaf.clipped
                else "to clip gradients, give max_norm= or clip_value= when planning; to use them, plan without "
                "`optimizer`"
            )
            raise InputError(
                f"the gradient of parameter '{leaf.of}' was used up inside the planned step: its update has run, and "
                f"what is done to it now would change nothing. {advice[0].upper()}{advice[1:]}. (zero_grad() drops it)"
            )


def mark(parameters: Iterable[tuple[str, torch.Tensor]], *, clipped: bool) -> None:
    """Put what refuses to be read in place of gradients that there are none of."""
    for name, parameter in parameters:
        if parameter.grad is None:
            parameter.grad = _made(parameter, parameter.dtype, name, clipped=clipped)


def unmark(parameters: Iterable[torch.Tensor]) -> None:
    """Take it away."""
    for parameter in parameters:
        if isinstance(parameter.grad, ConsumedGradient):
            parameter.grad = None


def unmark_all(module: nn.Module) -> None:
    """Take it away from all parameters of a module."""
    unmark(module.parameters())
