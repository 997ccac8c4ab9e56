"""The weights that a plan places, as tensors: where a step has them, or read whole where no step is meant."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...ir.graph import Storage, Tensor
from ...ir.program import Lookup
from ..directio import BOUNCE_NBYTES, never
from ..lookup import LookupCall
from ..passes import PlanMemory
from ..tiers import load_homed
from .clock import STILL, Clock
from .devices import TorchDevice


@dataclass(frozen=True, slots=True)
class Lookups:
    """The operators of an embedding that the store executes: `steps` they run in, `op` the first one's id.

    The table's first row begins at byte `start` of the blob.
    """

    op: str
    rows: Lookup
    start: int
    steps: tuple[int, ...]


class Source:
    """One placed parameter or buffer. `steps` read it; `at` holds, by step, a tensor over its place in the arena.

    `requires_grad` is that of the original, and of those tensors: PyTorch chooses kernels by it, also where no
    gradients are taken (a product with a weight that requires one folds its batch), and with them other bits.
    """

    def __init__(
        self,
        name: str,
        tensor: Tensor,
        storage: Storage,
        dtype: torch.dtype,
        strides: tuple[int, ...],
        steps: tuple[int, ...],
        lookups: Lookups | None,
        *,
        requires_grad: bool,
    ) -> None:
        assert tensor.shape is not None
        self.name = name
        self.tensor = tensor
        self.storage = storage
        self.dtype = dtype
        self.shape = tensor.shape
        self.strides = strides
        self.steps = steps
        self.lookups = lookups
        self.requires_grad = requires_grad
        self.at: dict[int, torch.Tensor] = {}
        self.ranges: tuple[Source, ...] = ()  # of its rows, where these are placed one by one

    def require_grad(self, wanted: bool) -> None:
        """As `Tensor.requires_grad_` of the original would."""
        self.requires_grad = wanted
        for tensor in self.at.values():
            base: Any = tensor._base  # see `as_weight`; what is empty is no view
            (tensor if base is None else base).requires_grad_(wanted)
        for part in self.ranges:
            part.require_grad(wanted)


class _Inside(threading.local):
    """How deep this thread is in forwards of the module: `calls` of any part of it, `passes` of the whole."""

    calls = 0
    passes = 0


class Weights:
    """What lazy parameters ask. `using` is held while a weight is used, `passing` while a pass of the module runs.

    Threads that call at once take turns: by passes where they call the whole module, else by uses. Values lie in the
    memory of `device`, which PyTorch calls `where`, or in the host's.
    """

    def __init__(self, memory: PlanMemory, device: TorchDevice | None = None) -> None:
        self.memory = memory
        self.where = torch.device("cpu") if device is None else device.torch_device
        self._device = device
        self.clock = Clock(memory)
        self.using = threading.RLock()
        self.passing = threading.RLock()
        self.inside = _Inside()
        self.looked_up_nbytes = 0
        self.totals = (0, 0)  # of `moved`, when the last pass ended
        self._common: dict[tuple[Source, ...], tuple[int, ...]] = {}
        self._all = torch.empty(0)
        self._begin = self._end = 0
        self._version = 0
        self._together: list[dict[int, tuple[torch.Tensor, ...]]] = []
        self._kept: list[dict[int, torch.Tensor]] = []

    def bind(self, sources: Sequence[Source]) -> None:
        """Make the tensors of every step. Raises PlanMismatchError where one is not in the arena then."""
        addresses = self.memory.addresses
        bytes_of_all = self._elements()
        self._all, self._begin = bytes_of_all, bytes_of_all.data_ptr()
        self._end = self._begin + bytes_of_all.numel()
        for source in sources:
            views: dict[int, torch.Tensor] = {}
            for step in source.steps:
                offset = addresses.of_tensor(source.tensor, step)
                if offset not in views:
                    views[offset] = shaped(bytes_of_all[offset : offset + source.tensor.nbytes], source)
                source.at[step] = views[offset]
            self.clock.still = self.clock.still and len(views) <= 1
        if self.clock.still:
            for source in sources:
                if source.steps:
                    source.at[STILL] = source.at[source.steps[0]]
        self._version = bytes_of_all._version

    def _elements(self) -> torch.Tensor:
        if self._device is not None:
            return self._device.elements
        arena = self.memory.arena
        return torch.frombuffer(arena.view(0, arena.nbytes), dtype=torch.uint8)

    def common_steps(self, sources: Sequence[Source]) -> tuple[int, ...]:
        """Steps in which all of them are read."""
        if len(sources) == 1:
            return sources[0].steps
        key = tuple(sources)
        found = self._common.get(key)
        if found is None:
            shared = set(sources[0].steps).intersection(*(s.steps for s in sources[1:]))
            found = self._common[key] = tuple(sorted(shared))
        return found

    def together(self, sources: Sequence[Source]) -> dict[int, tuple[torch.Tensor, ...]]:
        """The tensors of `sources` by the steps that read them all; empty after `close`."""
        steps = self.common_steps(sources)
        steps = (*steps, STILL) if steps and self.clock.still else steps
        found = {step: tuple(s.at[step] for s in sources) for step in steps}
        self._together.append(found)
        return found

    def kept(self) -> dict[int, torch.Tensor]:
        """For views by steps, which are forgotten when everything is given back."""
        found: dict[int, torch.Tensor] = {}
        self._kept.append(found)
        return found

    def arrive(self, steps: tuple[int, ...]) -> int:
        """Advance to the next of `steps`, while the caller holds `using`."""
        if not self.clock.ready:  # as after `close`
            self.memory.check_open()
        return self.clock.seek(steps)

    def resolve(self, sources: Sequence[Source]) -> list[torch.Tensor]:
        """Tensors with the values of `sources`, right for as long as the caller holds `using`.

        In a forward of the module they are where the plan has them, after an advance of the clock. What no step reads
        together with the others, and everything outside of a forward, is read whole into memory of its own.
        """
        if self.inside.calls == 0:
            return [self.read(s) for s in sources]
        clock = self.clock
        self.memory.check_open()
        if not all(clock.step in s.at for s in sources):
            steps = self.common_steps(sources)
            planned = steps or next((s.steps for s in sources if s.steps), ())
            if planned:
                self.arrive(planned)
        found: list[torch.Tensor] = []
        for source in sources:
            here = source.at.get(clock.step)
            found.append(self.read(source) if here is None else here)
        return found

    def read(self, source: Source) -> torch.Tensor:
        """The weight in memory of its own, from the store: right at any time, slow, and outside the plan's memory."""
        self.memory.check_open()
        content = torch.empty(source.tensor.nbytes, dtype=torch.uint8)
        target = content.numpy().data
        load_homed(self.memory.store, source.storage, source.tensor.offset, target, BOUNCE_NBYTES, never)
        return shaped(content.to(self.where), source)

    def look_up(self, source: Source, lookups: Lookups, indices: torch.Tensor) -> torch.Tensor:
        """Rows of a table that is never resident: [*indices.shape, row]. Raises IndexError as PyTorch does."""
        if indices.dtype not in (torch.int32, torch.int64):
            raise RuntimeError(f"the indices of '{source.name}' must be int32 or int64, they are {indices.dtype}")
        rows = source.shape[0]
        flat = indices.detach().reshape(-1).contiguous().cpu()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < rows:
            raise IndexError(f"index out of range in self: '{source.name}' has rows 0 to {rows - 1}")
        found = torch.empty((*indices.shape, *source.shape[1:]), dtype=source.dtype)
        target = found.view(-1).view(torch.uint8).numpy().data if found.numel() else memoryview(b"")
        with self.using:
            self.memory.check_open()
            if self.inside.calls:
                self.arrive(lookups.steps)
            call = LookupCall(lookups.op, lookups.rows, self.memory.store, flat.numpy(), target, start=lookups.start)
            if len(target):
                call(None, None)
            self.looked_up_nbytes += call.read_nbytes
        return found.to(self.where)

    def in_arena(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` lies in the plan's memory."""
        return self._begin <= tensor.data_ptr() < self._end

    def written(self) -> bool:
        """Whether PyTorch has written to the plan's memory since it was last asked, which it must not."""
        before, self._version = self._version, self._all._version
        return before != self._version

    def settle(self) -> None:
        """Return when what was called on the device has run."""
        if self._device is not None:
            self._device.settle()

    def finish(self) -> None:
        """The outermost call of the module is over."""
        with self.using:
            if not self.memory.closed:
                self.clock.finish()
                self.totals = self.moved()

    def moved(self) -> tuple[int, int]:
        """Bytes read and written so far, but for what `load` and `read` read."""
        read, written = self.memory.moved()
        return read + self.looked_up_nbytes, written

    def close(self, sources: Sequence[Source]) -> None:
        """Give everything back."""
        with self.using:
            self.clock.step, self.clock.ready = -1, False
            for views in (*(s.at for s in sources), *self._together, *self._kept):
                views.clear()
            self._all = torch.empty(0)
            self.memory.close()


def shaped(content: torch.Tensor, source: Source) -> torch.Tensor:
    """Bytes as the elements of `source`, a leaf for autograd."""
    if not content.numel():
        return torch.empty_strided(source.shape, source.strides, dtype=source.dtype)
    return as_weight(content.view(source.dtype), source.shape, source.strides, requires_grad=source.requires_grad)


def as_weight(
    elements: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...], *, requires_grad: bool
) -> torch.Tensor:
    """`elements`, memory of somebody else's, as a parameter; one that requires a gradient is an nn.Parameter by
    `isinstance`.

    Of a parameter autocast makes a copy, which it keeps until it ends; of a view it keeps none. So this is a view of
    one: for autograd a leaf, which requires a gradient, as its own views do, where its `_base` does.
    """
    base = nn.Parameter(elements, requires_grad=requires_grad)
    with torch.no_grad():
        found: Any = torch.as_strided(base, shape, strides, base.storage_offset())
    found._is_param = requires_grad
    return found
