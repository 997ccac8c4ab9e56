"""What a pass spends in the module's own Python: its calls of modules, its arithmetic on shapes, its caches.

The module runs on tensors without data ('meta') while a mode stands before torch and answers every call at once with
what the same call returned before. So nothing is computed, and nothing but the module's Python and the mode takes time.
The same calls made in a row under the same mode take what the mode takes; the difference is the module's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_PASSES = 7
_MOST_QUESTIONS = 1000
_LOOP = 500
_REPEATS = 15

_Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class UnrecordableError(Exception):
    """A module that cannot run on tensors without data, or does not do the same twice; the message says which."""


def python_ns(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Nanoseconds of Python in a pass of `module(*args, **kwargs)`, the median of seven.

    Neither weights nor arguments are read, and the module is not changed; they may be on 'meta'. Questions about data
    (`if mask.all():`) are answered yes. Raises UnrecordableError where the module cannot run in that way:
    `module_call_ns` times the number of its calls of modules is then what can be said.
    """
    weights = {n: t.detach().to("meta") for n, t in (*module.named_parameters(), *module.named_buffers())}

    def prepare() -> Callable[[], object]:
        given = tree_map_only(torch.Tensor, _without_data, (tuple(args), dict(kwargs)))
        return lambda: functional_call(module, weights, *given, tie_weights=True, strict=False)

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            recorder = _Recorder()
            run = prepare()
            with recorder:
                run()
            recorder = _Recorder()  # the first pass also made what is made once
            run = prepare()
            with recorder:
                run()
            return _difference(prepare, recorder.calls)
    except UnrecordableError:
        raise
    except Exception as error:  # whatever the module's code meets without data
        raise UnrecordableError(f"the module does not run without data: {type(error).__name__}: {error}") from error


def module_call_ns() -> int:
    """Nanoseconds of the call of a module that does nothing, beyond those of a function that does nothing."""

    class Idle(nn.Module):
        def forward(self, x: object) -> object:
            return x

    idle = Idle().eval()

    def through(x: object) -> object:
        return x

    taken = [(_loop_ns(lambda: idle(None)), _loop_ns(lambda: through(None))) for _ in range(_REPEATS)]
    module_ns, function_ns = (min(column) for column in zip(*taken, strict=True))
    return max(1, round(module_ns - function_ns))


def _difference(prepare: Callable[[], Callable[[], object]], calls: Sequence[_Call]) -> int:
    found: list[int] = []
    for _ in range(_PASSES):
        run, player = prepare(), _Player(calls)
        with player:
            begin = time.perf_counter_ns()
            run()
            passed = time.perf_counter_ns() - begin
        player.expect_end()
        with _Player(calls):
            begin = time.perf_counter_ns()
            for function, args, kwargs, _ in calls:
                function(*args, **kwargs)
            found.append(passed - (time.perf_counter_ns() - begin))
    return max(0, round(median(found)))


def _without_data(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


_DATA = frozenset({torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__})


class _Recorder(TorchFunctionMode):
    """Notes every call of torch and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._questions = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _DATA:
            self._questions += 1
            if self._questions > _MOST_QUESTIONS:
                raise UnrecordableError(f"the module asked for data {_MOST_QUESTIONS} times and does not end without")
            result: Any = True if func is torch.Tensor.__bool__ else 1
        else:
            result = func(*args, **given)
        self.calls.append((func, args, given, result))
        return result


class _Player(TorchFunctionMode):
    """Answers call after call with what was noted. What sets a state of torch is done, not only answered."""

    def __init__(self, calls: Sequence[_Call]) -> None:
        super().__init__()
        self._calls = calls
        self._next = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        at = self._next
        # Accessors of properties are other objects at each use, but equal.
        if at == len(self._calls) or self._calls[at][0] != func:
            raise UnrecordableError("the module does not make the same calls in every pass")
        self._next = at + 1
        result = self._calls[at][3]
        return func(*args, **(kwargs or {})) if result is None else result

    def expect_end(self) -> None:
        """Raises UnrecordableError where calls are left over."""
        if self._next != len(self._calls):
            raise UnrecordableError("the module does not make the same calls in every pass")


def _loop_ns(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    for _ in range(_LOOP):
        call()
    return (time.perf_counter_ns() - begin) / _LOOP
