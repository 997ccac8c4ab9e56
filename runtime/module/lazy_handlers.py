"""Which functions of PyTorch do what with a lazy tensor."""

from __future__ import annotations

from typing import Any

import torch

from . import functions
from .functions import Kind
from .lazy import Args, Handler, Kwargs, LazyTensor
from .lazy_values import compute, compute_new, compute_whole, embed, first_name, lazies_in
from .lazy_views import convert, iterate, view


def _told(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What needs no values."""
    with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
        return func(*args, **kwargs)


def _write(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Functions that write to their first argument, or to `out`."""
    if functions.harmless_write(func, args):
        return args[0]
    wanted = functions.wanted_grad(func, args, kwargs)
    if wanted is not None and isinstance(args[0], LazyTensor) and args[0].is_whole:
        args[0].source.require_grad(wanted)
        return _told(func, args, kwargs)
    first = lazies_in(args[:1], {}) or ([] if args else lazies_in((), kwargs)) or lazies_in((kwargs.get("out"),), {})
    if first:
        raise functions.refuse_write(first[0].source.name)
    return compute(func, args, kwargs)


def _address(func: Any, args: Args, kwargs: Kwargs) -> Any:
    raise functions.refuse_address(first_name(args, kwargs), func)


def _answer(func: Any, args: Args, kwargs: Kwargs) -> Any:
    return False


_RUN: dict[Kind, Handler] = {
    Kind.COMPUTE: compute,
    Kind.TOLD: _told,
    Kind.VIEW: view,
    Kind.ITERATE: iterate,
    Kind.CONVERT: convert,
    Kind.WHOLE: compute_whole,
    Kind.EMBED: embed,
    Kind.WRITE: _write,
    Kind.ADDRESS: _address,
    Kind.NEVER: _answer,
}


def handler(func: Any) -> Handler:
    """What runs in place of `func` when a lazy tensor is among its arguments."""
    if func in functions.MAKE_NEW:
        return compute_new
    if func is torch.einsum:
        return _einsum
    if func in functions.GEOMETRY:
        return _geometry
    if func == torch.Tensor.device.__get__:  # pyright: ignore[reportFunctionMemberAccess, reportUnknownMemberType, reportAttributeAccessIssue]
        return _device
    return _RUN[functions.kind_of(func)]


def _einsum(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """Of two operands and more it is something new, of one it may be a view."""
    return compute_new(func, args, kwargs) if len(args) > 2 else compute(func, args, kwargs)


def _geometry(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """What 'meta' tells as well; asked of that, nothing has to be switched off first."""
    lazy = args[0]
    return func(lazy.like, *args[1:], **kwargs) if isinstance(lazy, LazyTensor) else _told(func, args, kwargs)


def _device(func: Any, args: Args, kwargs: Kwargs) -> Any:
    return args[0].weights.where
