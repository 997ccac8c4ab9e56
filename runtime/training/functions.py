"""The fastest call that does what a node of the joint graph does.

A node names an overload of an operator. Calling that from Python takes some microseconds more than calling the function
of torch that people write, which finds the overload from its arguments. Where it finds the same one, with the same
arguments, the bits are the same; this is tried out for each form of call, on tensors without data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True)
class Bound:
    """A call: of `function`, which the text calls `name`, or of a `method` of its first argument."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    method: str | None = None


def function_of(node: fx.Node) -> Bound:
    """What to call for a node."""
    target = cast("Callable[..., Any]", node.target)
    if isinstance(target, OpOverload):
        for name, function, method in _candidates(target):
            if _same_call(function, target, node):
                return Bound(name, function, node.args, node.kwargs, name if method else None)
    name = str(getattr(target, "__name__", "call")).removesuffix(".default").replace(".", "_")
    return Bound(name, target, node.args, node.kwargs)


@cache
def _candidates(target: OpOverload) -> tuple[tuple[str, Callable[..., Any], bool], ...]:
    """Functions and methods of torch in C that have the operator's name: (name, function, whether it is a method)."""
    namespace, _, name = target.name().partition(".")[0].partition("::")
    if namespace != "aten" or name.endswith("_"):
        return ()
    found: list[tuple[str, Callable[..., Any], bool]] = []
    for home in (torch, getattr(torch._C, "_nn", None)):  # pyright: ignore[reportPrivateUsage]
        function = getattr(home, name, None)
        if isinstance(function, BuiltinFunctionType):
            found.append((name, function, False))
    method = getattr(torch.Tensor, name, None)
    if isinstance(method, MethodDescriptorType):
        found.append((name, method, True))
    return tuple(found)


class _SeenError(Exception):
    """Ends a call once it is known where it leads."""


class _Watch(TorchDispatchMode):
    """Sees which operator a call leads to, and ends it there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[object, Sequence[Any], Mapping[str, Any]] | None = None

    def __torch_dispatch__(
        self, func: object, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Remember the call."""
        self.seen = (func, args, kwargs or {})
        raise _SeenError


def schema_of(overload: OpOverload) -> Any:
    """The names and defaults of an overload's arguments."""
    return overload._schema  # pyright: ignore[reportPrivateUsage]


_aten = torch.ops.aten
_THE_SAME = {
    _aten.add.Scalar: _aten.add.Tensor,
    _aten.sub.Scalar: _aten.sub.Tensor,
    _aten.mul.Scalar: _aten.mul.Tensor,
    _aten.div.Scalar: _aten.div.Tensor,
}
"""Overloads that are defined as a call of another one, with the number wrapped in a tensor."""

_known: dict[tuple[object, ...], bool] = {}


def _same_call(function: Callable[..., Any], target: OpOverload, node: fx.Node) -> bool:
    """Whether `function` with the arguments of `node` leads to `target`, with the same arguments."""
    args, kwargs = pytree.tree_map(_value, (node.args, dict(node.kwargs)))
    leaves, form = pytree.tree_flatten((args, kwargs))
    # What decides is what the arguments are; of tensors their dtypes and dimensions, of others the values.
    what = tuple((v.dtype, v.dim()) if isinstance(v, torch.Tensor) else (type(v), v) for v in leaves)
    question = (function, target, str(form), what)
    if question not in _known:
        _known[question] = _leads_to(function, target, args, kwargs)
    return _known[question]


def _value(argument: Any) -> Any:
    return argument.meta.get("val") if isinstance(argument, fx.Node) else argument


def _leads_to(function: Callable[..., Any], target: OpOverload, args: Any, kwargs: Any) -> bool:
    watch = _Watch()
    try:
        with torch.no_grad(), watch:
            function(*args, **kwargs)
    except (_SeenError, TypeError, RuntimeError):  # the latter two: it takes no such arguments
        pass
    if watch.seen is None or watch.seen[0] not in (target, _THE_SAME.get(target)):
        return False
    found = cast("OpOverload", watch.seen[0])
    return _alike(_named(target, args, kwargs), _named(found, watch.seen[1], watch.seen[2]))


def _named(overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, the defaults included."""
    schema = schema_of(overload).arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return defaults | dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)


def _alike(given: Any, found: Any) -> bool:
    """Whether two arguments are the same; a number may have become a tensor of it."""
    if isinstance(given, dict):
        return given.keys() == found.keys() and all(
            _alike(v, found[k]) for k, v in cast("dict[str, Any]", given).items()
        )
    if isinstance(given, (list, tuple)) and isinstance(found, (list, tuple)):
        pairs = cast("Sequence[tuple[Any, Any]]", list(zip(given, found, strict=False)))
        return len(given) == len(found) and all(_alike(a, b) for a, b in pairs)
    if isinstance(given, torch.Tensor):
        return given is found
    if isinstance(found, torch.Tensor):
        with torch._C._DisableTorchDispatch():  # pyright: ignore[reportPrivateUsage]
            return found.dim() == 0 and type(found.item()) is type(given) and found.item() == given
    return bool(given == found)
