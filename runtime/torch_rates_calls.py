"""From an operator's signature to a call on made-up tensors that takes as long as the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from ..ir.caches import cache_nbytes
from ..ir.signature import Argument, OperatorCall, Signature, TensorForm, TorchName, read_signature
from .arena import Arena

ALIGNMENT = 64
_FILL = 0x3C
"""A byte that makes small positive numbers of every floating-point type (0.0115 in float32, 1.06 in float16): nothing
overflows, and no result is denormal, which would be slow."""
_TABLE_NBYTES = 64 << 20
_TABLES = {"aten.embedding.default": 0, "aten.embedding_bag.default": 0, "aten._embedding_bag.default": 0}
"""Operators that read only the rows of an operand that an index names, and which operand that is."""
_SMALL_NBYTES = cache_nbytes(2) // 2
"""Operands up to this stay in the inner cache from their making to their use."""
_PLACES: tuple[Any, ...] = (torch, import_module("torch._C")._nn, torch.Tensor)
"""Where Python finds the functions of ATen."""
_LOOP = 500
_REPEATS = 15

_ENDS_OF_GROUPS = "offs"
"""The argument of grouped products that says where each group of rows ends: of zeros, all groups are empty, and nothing
is computed."""

_Operands = tuple[list[Any], dict[str, Any], list[torch.Tensor]]
"""Positional arguments, keyword arguments, and those tensors among them that are to be written before a call."""


class UnmeasurableError(Exception):
    """A call that cannot be made up here; the message says why."""


@dataclass(frozen=True, slots=True)
class Overheads:
    """Nanoseconds: of reading the clock; of the least that a call of an operator takes; and of a call by its overload
    beyond one as modules make it (a dispatcher call from Python parses its arguments by the schema)."""

    clock_ns: float
    least_ns: float
    overload_ns: float

    def corrected(self, ns: int, *, by_overload: bool) -> int:
        """What a module's call takes that took `ns` between two readings of the clock."""
        alone = ns - self.clock_ns
        return max(1, round(max(alone - self.overload_ns, min(alone, self.least_ns)) if by_overload else alone))


def measure_overheads() -> Overheads:
    """All three, as they are in this process now: the least of several loops each, taken in turn."""
    one = torch.ones(4)
    by_overload: Any = torch.ops.aten.add.Tensor
    by_name: Any = torch.add

    def clock() -> None:
        time.perf_counter_ns()
        time.perf_counter_ns()

    def slow() -> object:
        return by_overload(one, one)

    def fast() -> object:
        return by_name(one, one)

    taken = [[_loop_ns(call) for call in (clock, slow, fast)] for _ in range(_REPEATS)]
    clock_ns, slow_ns, fast_ns = (min(column) for column in zip(*taken, strict=True))
    # What lies between two readings is one of them, roughly: the end of the first and the begin of the second.
    return Overheads(clock_ns / 2, fast_ns, max(0.0, slow_ns - fast_ns))


def _loop_ns(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    for _ in range(_LOOP):
        call()
    return (time.perf_counter_ns() - begin) / _LOOP


class Pool:
    """Memory from which operands are cut, one after the other, from the beginning again at its end."""

    def __init__(self, nbytes: int) -> None:
        self._arena = Arena(nbytes, tier="dram")
        self.nbytes = self._arena.nbytes
        self._bytes = torch.frombuffer(self._arena.view(0, self.nbytes), dtype=torch.uint8)
        self._bytes.fill_(_FILL)
        self._next = 0

    def rewind(self) -> None:
        """Begin at the beginning again."""
        self._next = 0

    def cut(self, form: TensorForm) -> torch.Tensor:
        """A tensor of that form; its elements are what the pool holds there."""
        dtype = torch_dtype(form.dtype)
        nbytes = form.span * dtype.itemsize
        if self._next + nbytes > self.nbytes:
            self._next = 0
        piece = self._bytes[self._next : self._next + nbytes].view(dtype)
        self._next += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return piece.as_strided(form.shape, form.strides)

    def close(self) -> None:
        """Give the memory back; tensors cut from it must not be used any more."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._arena.close()


class Bench:
    """One signature, ready to be called again and again; `copies` is how many operands that come from memory there are
    to take turns."""

    def __init__(self, signature: Signature, copies: int) -> None:
        self.call = _shrunk(read_signature(signature))
        self.copies = copies
        self._overload = find_overload(self.call.op)
        if torch.Tag.inplace_view in self._overload.tags:
            raise UnmeasurableError("it changes the shape of its operand, so it cannot be called twice")
        arguments = self._overload._schema.arguments
        if any(a.name == _ENDS_OF_GROUPS for a in arguments):
            raise UnmeasurableError("where its groups end decides how much it computes, and no signature says it")
        # An operator that writes what it is given must find it fresh each time: products of products become denormal.
        self._writes = any(a.alias_info is not None and a.alias_info.is_write for a in arguments)
        self._fresh = self._writes or self.activations_nbytes > _SMALL_NBYTES
        self._sets: list[_Operands] = []
        self._turn = 0
        self._function: Any = None
        self.by_overload = True

    @property
    def weights_nbytes(self) -> int:
        """Bytes of the operands that come from memory."""
        return sum(_nbytes(f) for f in self.call.tensors if self._from_memory(f))

    @property
    def activations_nbytes(self) -> int:
        """Bytes of all other operands together."""
        return sum(_nbytes(f) for f in self.call.tensors if not self._from_memory(f))

    @property
    def shared_nbytes(self) -> int:
        """Bytes that it cuts from the pool of activations: what is small has memory of its own and stays as it is."""
        return self.activations_nbytes if self._fresh else 0

    def prepare(self, weights: Pool, activations: Pool) -> None:
        """Make the operands. Raises UnmeasurableError where the operator refuses them."""
        activations.rewind()
        small = [None if self._fresh else _own(f) for f in self.call.tensors if not self._from_memory(f)]
        for _ in range(self.copies):
            activations.rewind()
            self._sets.append(self._operands(weights, activations, iter(small)))
        self._choose()

    def run(self) -> int:
        """Nanoseconds of one call, its result's release included: memory that it takes, it takes anew in every pass.

        What other operators would have handed on is written just before, where it would not all be in the inner caches
        anyway. Raises UnmeasurableError where the operator refuses.
        """
        args, kwargs, made = self._sets[self._turn]
        self._turn = (self._turn + 1) % self.copies
        if self._fresh:
            for piece in made:
                _fill(piece)
        function = self._function
        try:
            begin = time.perf_counter_ns()
            function(*args, **kwargs)
            end = time.perf_counter_ns()
        except Exception as error:  # what a kernel raises for data that it does not like is its own business
            raise UnmeasurableError(_first_line(error)) from error
        return end - begin

    def _from_memory(self, form: TensorForm) -> bool:
        # Integers are indices, perhaps: they must be valid, so they are written anew like all that is not a weight.
        return form.weight and not self._writes and torch_dtype(form.dtype).is_floating_point

    def _operands(self, weights: Pool, activations: Pool, small: Iterator[torch.Tensor | None]) -> _Operands:
        made: list[torch.Tensor] = []

        def make(argument: Argument) -> Any:
            if isinstance(argument, TensorForm):
                if self._from_memory(argument):
                    return weights.cut(argument)
                own = next(small)
                if own is not None:
                    return own
                made.append(activations.cut(argument))
                return made[-1]
            if isinstance(argument, TorchName):
                return getattr(torch, argument.name)
            if isinstance(argument, tuple):
                return [make(a) for a in argument]
            return argument

        return [make(a) for a in self.call.args], {k: make(v) for k, v in self.call.kwargs}, made

    def _choose(self) -> None:
        """The Python function that modules call for this operator, where there is one that does the same; else the
        overload itself."""
        try:
            expected = self._result_of(self._overload)
        except Exception as error:
            raise UnmeasurableError(_first_line(error)) from error
        self._function = self._overload
        namespace, name, _ = self.call.op.split(".")
        for place in _PLACES if namespace == "aten" else ():
            candidate = getattr(place, name, None)
            if candidate is None:
                continue
            try:
                same = self._result_of(candidate) == expected
            except (TypeError, RuntimeError, ValueError):
                continue
            if same:
                self._function, self.by_overload = candidate, False
                return

    def _result_of(self, function: Any) -> list[tuple[Any, ...]]:
        args, kwargs, made = self._sets[0]
        for piece in made:
            _fill(piece)
        return _described(function(*args, **kwargs))


def find_overload(op: str) -> Any:
    """The operator of a signature. Raises UnmeasurableError where this process has none of that name."""
    try:
        namespace, name, overload = op.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (ValueError, AttributeError) as error:
        raise UnmeasurableError(f"torch {torch.__version__} has no operator '{op}'") from error


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of that name. Raises UnmeasurableError where torch has none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise UnmeasurableError(f"torch {torch.__version__} has no dtype '{name}'")
    return found


def _own(form: TensorForm) -> torch.Tensor:
    """A tensor of that form with valid values, in memory of its own."""
    made = torch.empty(form.span, dtype=torch_dtype(form.dtype)).as_strided(form.shape, form.strides)
    _fill(made)
    return made


def _fill(piece: torch.Tensor) -> None:
    """Valid values: zeros are valid indices, and a mask that is true everywhere hides nothing."""
    if piece.numel() == 0:
        return
    base = piece.as_strided((1 + sum((n - 1) * s for n, s in zip(piece.shape, piece.stride(), strict=True)),), (1,))
    if piece.dtype.is_floating_point or piece.dtype.is_complex:
        base.view(torch.uint8).fill_(_FILL)
    elif piece.dtype == torch.bool:
        base.fill_(True)
    else:
        base.zero_()


def _shrunk(call: OperatorCall) -> OperatorCall:
    """`call` with a shorter table where the operator reads only the rows that an index names: the rest costs nothing,
    and may be larger than memory."""
    at = _TABLES.get(call.op)
    table = call.args[at] if at is not None and at < len(call.args) else None
    if at is None or not isinstance(table, TensorForm) or not table.shape or _nbytes(table) <= _TABLE_NBYTES:
        return call
    rows = max(1, table.shape[0] * _TABLE_NBYTES // _nbytes(table))
    short = TensorForm(table.dtype, (rows, *table.shape[1:]), table.strides, table.weight)
    return OperatorCall(call.op, (*call.args[:at], short, *call.args[at + 1 :]), call.kwargs)


def _nbytes(form: TensorForm) -> int:
    return -(-form.span * torch_dtype(form.dtype).itemsize // ALIGNMENT) * ALIGNMENT


def _described(result: Any) -> list[tuple[Any, ...]]:
    """Dtypes, shapes and strides of all that an operator returned."""
    parts: Iterable[Any] = result if isinstance(result, (tuple, list)) else (result,)
    return [(p.dtype, p.shape, p.stride()) if isinstance(p, torch.Tensor) else (type(p),) for p in parts]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
