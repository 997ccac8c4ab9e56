"""What autograd saves in a step of a module, and when each of it is read: from one step, run in full."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate
from time import perf_counter, perf_counter_ns, time_ns
from typing import Any, cast

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile

from ...ir.errors import InputError
from ...ir.saved import SavedProfile, SavedTensor
from .saved_contents import Contents, can_leave, storage_of, storages_of
from .unchanged import unchanged


class _Seen:
    """A content of the step, and its times as they become known."""

    def __init__(self, tensor: torch.Tensor, packed_s: float) -> None:
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.nbytes = tensor.untyped_storage().nbytes()
        self.packed_s = packed_s
        self.needed_s: float | None = None
        self.freed_s: float | None = None


class _Content:
    """Alive while a save of it is."""

    def __init__(self, seen: _Seen, version: int) -> None:
        self.seen = seen
        self.version = version

    def __del__(self) -> None:
        self.seen.freed_s = perf_counter()


class _Profiler:
    """Hooks that save what they are given and look at the clock."""

    def __init__(self, own: frozenset[int]) -> None:
        self.seen: list[_Seen] = []
        self._own = own
        self._contents = Contents()

    def pack(self, tensor: torch.Tensor) -> tuple[torch.Tensor, _Content | None]:
        """Keep it."""
        if not can_leave(tensor) or storage_of(tensor) in self._own:
            return tensor.detach(), None
        content = cast("_Content | None", self._contents.find(tensor))
        if content is None:
            self.seen.append(_Seen(tensor, perf_counter()))
            content = _Content(self.seen[-1], tensor._version)
            self._contents.add(tensor, content)
        return tensor.detach(), content

    def unpack(self, saved: tuple[torch.Tensor, _Content | None]) -> torch.Tensor:
        """Give it back."""
        if saved[1] is not None and saved[1].seen.needed_s is None:
            saved[1].seen.needed_s = perf_counter()
        return saved[0]


def profile_saved(module: torch.nn.Module, run: Callable[[], torch.Tensor]) -> SavedProfile:
    """Of a forward pass of `run`, which returns the loss, and its backward pass.

    Runs twice, in as much memory as they take; the second run's times count, and what the first one allocated beside
    what it saved. Gradients are as before, and what `unchanged` names. Raises InputError where the loss is no scalar
    that depends on a parameter.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    with unchanged(module):
        other = _other_nbytes(lambda profiler: _step(run, parameters, profiler), _Profiler(storages_of(module)))
    with unchanged(module):
        profiler = _Profiler(storages_of(module))
        begin = perf_counter()
        turn = _step(run, parameters, profiler)
        end = perf_counter()
    gc.collect()
    tensors = tuple(_times(seen, begin, end) for seen in profiler.seen)
    return SavedProfile(tensors, end - begin, turn - begin, other)


def _other_nbytes(step: Callable[[_Profiler], object], profiler: _Profiler) -> int:
    """The most bytes that a step has allocated at one time, less those that are saved then."""
    ahead_ns = time_ns() - perf_counter_ns()  # the tracer's clock is the system's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step(profiler)
    events = [(e.start_ns() - ahead_ns, e.nbytes()) for e in _memory_events(found)]
    for seen in profiler.seen:
        if not _held(seen):
            events.append((int(seen.packed_s * 1e9), -seen.nbytes))
            events += [(int(seen.freed_s * 1e9), seen.nbytes)] if seen.freed_s is not None else []
    return max(accumulate(nbytes for _, nbytes in sorted(events)), default=0)


def _memory_events(found: Any) -> list[Any]:
    """What was allocated (bytes above 0) and given back, as the tracer saw it."""
    return [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]


def _held(seen: _Seen) -> bool:
    """Whether something else than autograd keeps it in memory."""
    return not seen.storage.expired()


def _step(run: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter], profiler: _Profiler) -> float:
    """A forward and a backward pass; when the first ended."""
    with saved_tensors_hooks(profiler.pack, profiler.unpack):
        loss = run()
    if loss.numel() != 1 or not loss.requires_grad or not parameters:
        raise InputError(
            f"the loss has shape {list(loss.shape)} and {'needs' if loss.requires_grad else 'needs no'} gradient, for "
            f"{len(parameters)} trained parameters: return a scalar that depends on one"
        )
    turn = perf_counter()
    torch.autograd.grad(loss, parameters, allow_unused=True)
    return turn


def _times(seen: _Seen, begin: float, end: float) -> SavedTensor:
    freed = end if seen.freed_s is None else seen.freed_s
    needed = freed if seen.needed_s is None else seen.needed_s
    return SavedTensor(
        seen.nbytes,
        seen.packed_s - begin,
        needed - begin,
        max(freed, needed) - begin,
        held=_held(seen),
    )
