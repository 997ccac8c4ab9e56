"""Signatures: what a call of a torch operator takes, apart from the values in its tensors.

Text, so that planner, runtime and files hand it on without torch, and so that 1, 1.0 and True differ: the canonical
JSON of [operator, positional arguments, [[keyword, argument], ...]]. The operator is the overload's name, as in
'aten.linear.default'. An argument is a number, a string, true, false, null, a list of arguments, or an object:
{"tensor": [dtype, shape, strides, weight]}, {"float": "-inf"} for a number that JSON has not, or
{"torch": "float32"} for a name of the torch module (a dtype, layout or memory format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from .errors import InputError

Signature: TypeAlias = str


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A dense or strided tensor: torch's name of the dtype, shape and strides in elements.

    `weight` says that its bytes come from memory: it was not touched since the last pass. What operators hand on to one
    another was.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    weight: bool = False

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both included; 0 for an empty tensor."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class TorchName:
    """An attribute of the torch module, as 'float32' or 'contiguous_format'."""

    name: str


Argument: TypeAlias = "bool | int | float | str | TensorForm | TorchName | tuple[Argument, ...] | None"


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """A signature taken apart."""

    op: str
    args: tuple[Argument, ...]
    kwargs: tuple[tuple[str, Argument], ...]

    @property
    def tensors(self) -> tuple[TensorForm, ...]:
        """All tensors among the arguments, in order."""
        found: list[TensorForm] = []

        def visit(argument: Argument) -> None:
            if isinstance(argument, TensorForm):
                found.append(argument)
            elif isinstance(argument, tuple):
                for part in argument:
                    visit(part)

        visit((*self.args, *(value for _, value in self.kwargs)))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Request:
    """A call to measure: what the formulas expect of it, how often a pass makes it, and the bytes of its operands,
    results and workspace."""

    signature: Signature
    formula_ns: int
    calls: int
    nbytes: int


def write_signature(op: str, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Signature:
    """The signature of a call. Equal calls give equal text; the order of keywords does not matter."""
    content = [op, [_encode(a) for a in args], [[k, _encode(kwargs[k])] for k in sorted(kwargs)]]
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def read_signature(signature: Signature) -> OperatorCall:
    """The call that a signature describes. Raises InputError for text that is none."""
    try:
        op, args, kwargs = json.loads(signature)
        return OperatorCall(str(op), tuple(map(_decode, args)), tuple((str(k), _decode(v)) for k, v in kwargs))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"not an operator's signature ({error}): {signature[:80]!r}") from error


def _encode(argument: Argument) -> Any:
    if isinstance(argument, TensorForm):
        return {"tensor": [argument.dtype, list(argument.shape), list(argument.strides), argument.weight]}
    if isinstance(argument, TorchName):
        return {"torch": argument.name}
    if isinstance(argument, tuple):
        return [_encode(a) for a in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": repr(argument)}
    return argument


def _decode(data: Any) -> Argument:
    if isinstance(data, list):
        return tuple(map(_decode, cast("list[Any]", data)))
    if not isinstance(data, dict):
        return data
    ((kind, value),) = cast("dict[str, Any]", data).items()
    if kind == "tensor":
        dtype, shape, strides, weight = value
        if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in (*shape, *strides)):
            raise ValueError(f"a tensor of shape {shape} and strides {strides}")
        return TensorForm(str(dtype), tuple(shape), tuple(strides), bool(weight))
    if kind == "float":
        return float(value)
    if kind == "torch":
        return TorchName(str(value))
    raise ValueError(f"an argument of kind {kind!r}")
