"""The memory that a module computes from: the host's, or a CUDA device's; `fake_device` is a stand-in for that.

Nothing else here knows CUDA. There, calls return before they have run, so three things keep order. A stream for each
direction copies beside the computing one. At each instant of a pass after which something may move, an event is
recorded in the computing stream, and a copy waits for the event of its own instant, so that it never overwrites what a
kernel still reads. And a thread that copies returns when its copy is complete, so that whoever waits for the transfer
calls no kernel before its operands are there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from ...ir.errors import ExecutionError, PlanMismatchError
from ...ir.machine import Link, Machine, TierKind, Unit
from ..arena import Arena
from ..directio import TransferCancelledError
from ..tiers import Cancelled, Device, Move


class TorchDevice(Device, Protocol):
    """Memory of which PyTorch makes tensors."""

    @property
    def torch_device(self) -> torch.device:
        """Where PyTorch says that it is."""
        ...

    @property
    def elements(self) -> torch.Tensor:
        """All of it, as bytes."""
        ...


def device_for(unit: Unit, machine: Machine) -> TorchDevice | None:
    """The device of this box that `unit` stands for; None for the processor itself. Raises PlanMismatchError."""
    tier = machine.tier[unit.tier]
    if tier.kind is TierKind.DRAM:
        return None
    what = f"the plan computes on unit '{unit.name}' from tier '{tier.name}' ({tier.kind.value}) of machine"
    if tier.kind is not TierKind.HBM:
        raise PlanMismatchError(
            f"{what} '{machine.name}'; modules compute from dram on the CPU or from hbm on a CUDA device: plan for "
            "such a machine"
        )
    lacking = _lacking(tier.capacity_nbytes)
    if lacking:
        raise PlanMismatchError(f"{what} '{machine.name}', and {lacking}: plan for a machine that this box is")
    return CudaDevice(torch.cuda.current_device())


def no_cuda() -> str | None:
    """Why this process cannot compute on a CUDA device; None where it can."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"PyTorch finds no CUDA device (there is none, or no driver for CUDA {torch.version.cuda})"
    return None


def _lacking(nbytes: int) -> str | None:
    """What keeps this process from computing on a CUDA device whose memory is planned to have `nbytes`."""
    lacking = no_cuda()
    if lacking is not None:
        return lacking
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if total < nbytes:
        return f"its tier has {nbytes} bytes, the CUDA device {total}; give the tier less"
    return None


class CudaDevice:
    """Memory of CUDA device `index`. See the module for how it keeps order.

    Kernels are those of the stream that is current where the module is called; a module that uses several streams must
    join them there. The whole module may be called in one stream after another, and nobody has to join these: copies
    wait for the kernels of all. Who calls parts of it alone, in several streams, joins them. The memory is one block,
    taken from PyTorch's allocator.
    """

    def __init__(self, index: int) -> None:
        self.torch_device = torch.device("cuda", index)
        self._elements: torch.Tensor | None = None
        self._events: dict[int, torch.cuda.Event] = {}
        self._marked: torch.cuda.Stream | None = None  # where the last mark was made

    @property
    def nbytes(self) -> int:
        """Of its arena; 0 before `open`."""
        return 0 if self._elements is None else self._elements.numel()

    @property
    def elements(self) -> torch.Tensor:
        """All of its memory, as bytes. ExecutionError where it is closed."""
        if self._elements is None:
            raise ExecutionError(f"the memory of '{self.torch_device}' is closed; open it again")
        return self._elements

    @property
    def marks(self) -> Mapping[int, Callable[[], None]]:
        """By instant: record in the stream that computes."""
        return {instant: partial(self._mark, event) for instant, event in self._events.items()}

    def _mark(self, event: torch.cuda.Event) -> None:
        stream, before = torch.cuda.current_stream(self.torch_device), self._marked
        if before is not None and before != stream:
            stream.wait_stream(before)  # whose kernels may still read what is copied over after this mark
        self._marked = stream
        event.record(stream)

    def open(self, nbytes: int, *, tier: str) -> None:
        """Take the memory and the streams. Raises ExecutionError where there is too little."""
        try:
            self._elements = torch.empty(nbytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(self.torch_device)
            raise ExecutionError(
                f"the arena of tier '{tier}' needs {nbytes} bytes, '{self.torch_device}' has {free} free of {total}; "
                f"plan with a smaller --tier {tier}=SIZE or free memory"
            ) from error
        self._inward = torch.cuda.Stream(self.torch_device)
        self._outward = torch.cuda.Stream(self.torch_device)

    @contextmanager
    def pinned(self, arena: Arena) -> Generator[None]:
        """Register the whole of `arena` with the driver. Raises ExecutionError where the system allows no more."""
        cudart: Any = torch.cuda.cudart()
        with torch.cuda.device(self.torch_device):
            status = int(cudart.cudaHostRegister(arena.address, arena.nbytes, 0))
        if status:
            raise ExecutionError(
                f"{arena.nbytes} bytes of host memory cannot be registered with '{self.torch_device}' (cudaError "
                f"{status}); plan with less of that tier, or allow the process to lock more memory"
            )
        try:
            yield
        finally:
            with torch.cuda.device(self.torch_device):
                cudart.cudaHostUnregister(arena.address)

    def incoming(self, offset: int, source: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies `source` to `offset`."""
        there = self._range(offset, len(source))
        return partial(self._copy, self._inward, there, as_bytes(source), self._event(after))

    def outgoing(self, offset: int, target: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies from `offset` to `target`."""
        there = self._range(offset, len(target))
        return partial(self._copy, self._outward, as_bytes(target), there, self._event(after))

    def _range(self, offset: int, nbytes: int) -> torch.Tensor:
        return self.elements.data[offset : offset + nbytes]  # what is written here counts as no write to weights

    def expect(self, after: int) -> None:
        """Moves will be told of instant `after`."""
        if after not in self._events:
            event = self._events[after] = torch.cuda.Event()
            self._mark(event)  # made now: later, two threads might make it at once

    def _event(self, after: int | None) -> torch.cuda.Event | None:
        if after is None:
            return None
        self.expect(after)
        return self._events[after]

    def _copy(
        self,
        stream: torch.cuda.Stream,
        target: torch.Tensor,
        source: torch.Tensor,
        after: torch.cuda.Event | None,
        cancelled: Cancelled,
    ) -> None:
        if cancelled():
            raise TransferCancelledError
        done = torch.cuda.Event(blocking=True)  # a thread that spins would take a core from the others
        with torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            done.record(stream)
        done.synchronize()

    def settle(self) -> None:
        """Return when all kernels and copies have run."""
        if self._elements is not None:
            torch.cuda.synchronize(self.torch_device)

    def restart(self) -> None:
        """Events that have come stay so, and the clock records them anew before anything moves."""

    def close(self) -> None:
        """Give the memory back to PyTorch's allocator; again is allowed."""
        self._elements = self._marked = None
        self._events.clear()


def as_bytes(view: memoryview) -> torch.Tensor:
    """`view` as a tensor over the same memory."""
    return torch.frombuffer(view, dtype=torch.uint8) if len(view) else torch.empty(0, dtype=torch.uint8)
