"""Views of lazy tensors, which are lazy tensors again, and conversions that change nothing.

What a layer makes in every call (`weight.transpose(-2, -1)`, `weight[3]`, `weight.float()`) is made once and kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from . import functions
from .lazy import VIEWS, Args, Kwargs, LazyTensor
from .lazy_values import compute, lazies_in, put


def view(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """A view of a lazy tensor is one, too. What turns out not to be a view is computed."""
    lazy = args[0] if args else None
    if kwargs or not isinstance(lazy, LazyTensor):
        return _view_anew(func, lazy, args, kwargs)
    key = _key(func, args)
    if key is None:
        return _view_anew(func, lazy, args, kwargs)
    known = lazy.views.get(key)
    if known is not None:
        return known
    made = _view_anew(func, lazy, args, kwargs)
    if type(made) is LazyTensor and made is not lazy and len(lazy.views) < VIEWS:
        lazy.views[key] = made
        made.at = made.weights.kept()
    return made


_SIMPLE = frozenset((int, torch.dtype, torch.device, type(None)))


def _key(func: Any, args: Args) -> Hashable | None:
    """By what to know the result of `func` again; None where the arguments are not simple."""
    for value in args[1:]:
        if type(value) not in _SIMPLE:
            return None
    return (func, args[1:], torch.is_inference_mode_enabled())


def _view_anew(func: Any, lazy: Any, args: Args, kwargs: Kwargs) -> Any:
    if isinstance(lazy, LazyTensor) and len(lazies_in(args[1:], kwargs)) == 0:
        try:
            result = func(lazy.like, *args[1:], **kwargs)
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
            return compute(func, args, kwargs)  # which tells what is wrong with it
        if result is lazy.like:
            return lazy
        if _all_views(result, lazy.like):
            return _lazy_views(result, lazy)
    elif func in functions.SHAPE_ONLY and not isinstance(lazy, LazyTensor):
        # Only the shape or the type of the lazy ones is asked for.
        real = {id(z): torch.empty(1, dtype=z.dtype, device=z.device).expand(z.shape) for z in lazies_in(args, kwargs)}
        return func(*(put(a, real) for a in args), **{k: put(v, real) for k, v in kwargs.items()})
    return compute(func, args, kwargs)


def _all_views(result: Any, of: torch.Tensor) -> bool:
    if isinstance(result, torch.Tensor):
        same = result.untyped_storage()._cdata == of.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
        return same and not result.is_conj() and not result.is_neg()
    return isinstance(result, (list, tuple)) and all(_all_views(r, of) for r in result)


def _lazy_views(result: Any, of: LazyTensor) -> Any:
    if isinstance(result, torch.Tensor):
        return LazyTensor(of.weights, of.source, result)
    parts = [_lazy_views(r, of) for r in result]
    return parts if isinstance(result, list) else tuple(parts)


def iterate(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`iter(tensor)`."""
    return iter(view(torch.Tensor.unbind, args, kwargs))


def convert(func: Any, args: Args, kwargs: Kwargs) -> Any:
    """`Tensor.to` and its relatives: nothing to do where it is so already."""
    lazy = args[0]
    if not isinstance(lazy, LazyTensor):
        return view(func, args, kwargs)
    key = None if kwargs else _key(func, args)
    if key is not None and key in lazy.same:
        return lazy
    if lazies_in(args[1:], kwargs) or not functions.is_so(func, lazy, args[1:], kwargs):
        return compute(func, args, kwargs)
    if key is not None and len(lazy.same) < VIEWS:
        lazy.same.add(key)
    return lazy
