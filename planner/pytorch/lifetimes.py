"""How long Python keeps tensors: watched while a module runs on tensors without data.

Eager PyTorch frees a tensor when the last name for it is gone, which is later than its last use: arguments live until
the call returns, local variables until they are rebound. So the objects themselves are watched.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode


def storage_key(value: torch.Tensor) -> int | None:
    """What tells apart the storages of tensors that exist at the same time; None for a layout without one."""
    if value.layout is not torch.strided:
        return None
    return int(value.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage]


class Lifetimes(TorchFunctionMode):
    """While active, notes of every storage when the last tensor over it dies.

    `now` tells the time: here, how many operators have been recorded. `ended` holds by storage key that number: the
    storage was in use up to the operator before it. A storage that no tensor seen here lies in, such as what only
    exists inside a composite function, has no entry.
    """

    def __init__(self, now: Callable[[], int]) -> None:
        super().__init__()
        self._now = now
        self._alive: Counter[int] = Counter()
        self.ended: dict[int, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch(_tensors(result))
        return result

    def watch(self, values: Iterable[torch.Tensor]) -> None:
        """Follow these tensors from now on."""
        for value in values:
            key = storage_key(value)
            if key is not None:
                self._alive[key] += 1
                weakref.finalize(value, self._died, key).atexit = False

    def _died(self, key: int) -> None:
        self._alive[key] -= 1
        if not self._alive[key]:
            self.ended[key] = self._now()

    def close(self) -> dict[int, int]:
        """What has ended by now; what dies later was still needed."""
        found = {key: end for key, end in self.ended.items() if not self._alive[key]}
        self._now = lambda: 0
        self.ended = {}
        return found


def _tensors(result: object) -> Iterable[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in cast("tuple[object, ...]", result):
            yield from _tensors(part)
