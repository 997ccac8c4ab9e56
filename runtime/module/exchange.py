"""Two tensors exchange what they are, so that whoever holds one of them finds the other there.

A module's own containers can be searched for a weight, but not the modules, helper objects, closures and variables that
hold it elsewhere: a head that is tied to the table of the body that is planned. So the object stays, and becomes lazy.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from ...ir.errors import InputError
from .lazy import LazyTensor


def exchange(a: torch.Tensor, b: torch.Tensor) -> None:
    """Let `a` be what `b` is (its type, its attributes, its memory), and `b` what `a` is.

    This is `torch.utils.swap_tensors` without what that refuses: weak references (an LSTM has some to its own weights)
    find the same object afterwards, and what a graph of autograd holds stays with the graph.
    Raises InputError, with both as they were, where the types do not allow it.
    """
    try:
        a.__class__, b.__class__ = b.__class__, a.__class__
    except TypeError as error:
        raise InputError(
            f"a weight is a {type(a).__name__}, which cannot be replaced ({error}); plan the module with plain "
            "parameters"
        ) from error
    one: Any = a
    other: Any = b
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(a, b)  # pyright: ignore


def make_lazy(value: torch.Tensor, lazy: LazyTensor) -> None:
    """Let `value` be `lazy`. A graph that has kept `value` for its backward pass will say that it was changed."""
    exchange(value, lazy)
    with suppress(RuntimeError):  # made in inference mode, it has no version, and no graph has kept it
        torch.autograd.graph.increment_version(lazy)  # what `value` was


def make_plain(value: torch.Tensor, lazy: LazyTensor) -> None:
    """Undo `make_lazy`, if it was done."""
    if isinstance(value, LazyTensor):
        exchange(value, lazy)
