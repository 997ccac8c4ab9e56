"""The memory that a module computes from: the host's, a CUDA device's, or a fake of one in the host's memory.

Nothing else here knows CUDA. There, calls return before they have run, so three things keep order. A stream for each
direction copies beside the computing one. At each instant of a pass after which something may move, an event is
recorded in the computing stream, and a copy waits for the event of its own instant, so that it never overwrites what a
kernel still reads. And a thread that copies returns when its copy is complete, so that whoever waits for the transfer
calls no kernel before its operands are there.
"""

from __future__ import annotations

import threading
import time
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
    join them there. The memory is one block, taken from PyTorch's allocator.
    """

    def __init__(self, index: int) -> None:
        self.torch_device = torch.device("cuda", index)
        self._elements: torch.Tensor | None = None
        self._events: dict[int, torch.cuda.Event] = {}

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
        event.record(torch.cuda.current_stream(self.torch_device))

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
        return partial(self._copy, self._inward, there, _bytes(source), self._event(after))

    def outgoing(self, offset: int, target: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies from `offset` to `target`."""
        there = self._range(offset, len(target))
        return partial(self._copy, self._outward, _bytes(target), there, self._event(after))

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
        self._elements = None
        self._events.clear()


class FakeDevice:
    """A device of at most `capacity_nbytes` in host memory of its own, whose copies take the time of their links.

    What nobody has put there is bytes of 0xFF: as floating point, no numbers. It computes at once, so marks order
    nothing; instead a copy that begins before its mark is an ExecutionError, since on a device it would not wait.
    """

    def __init__(self, capacity_nbytes: int) -> None:
        self.capacity_nbytes = capacity_nbytes
        self.torch_device = torch.device("cpu")
        self.arena: Arena | None = None
        self.pinned_nbytes: list[int] = []
        self._elements = torch.empty(0, dtype=torch.uint8)
        self._marked: dict[int, int] = {}
        self._wires = {True: _Wire(), False: _Wire()}
        self._restarts = 0

    @property
    def nbytes(self) -> int:
        """Of its arena; 0 before `open`."""
        return 0 if self.arena is None else self.arena.nbytes

    @property
    def elements(self) -> torch.Tensor:
        """All of its memory, as bytes."""
        return self._elements

    @property
    def marks(self) -> Mapping[int, Callable[[], None]]:
        """By instant: count."""
        return {instant: partial(self._mark, instant) for instant in self._marked}

    def _mark(self, instant: int) -> None:
        self._marked[instant] += 1

    def open(self, nbytes: int, *, tier: str) -> None:
        """Take the memory. Raises ExecutionError where there is too little."""
        if nbytes > self.capacity_nbytes:
            raise ExecutionError(
                f"the arena of tier '{tier}' needs {nbytes} bytes, the device has {self.capacity_nbytes}; plan with a "
                f"smaller --tier {tier}=SIZE"
            )
        self.arena = Arena(nbytes, tier=tier)
        self._elements = _bytes(self.arena.view(0, self.arena.nbytes))
        self._elements.fill_(0xFF)

    @contextmanager
    def pinned(self, arena: Arena) -> Generator[None]:
        """Note how much it was asked for."""
        self.pinned_nbytes.append(arena.nbytes)
        yield
        self.pinned_nbytes.remove(arena.nbytes)

    def expect(self, after: int) -> None:
        """Moves will be told of instant `after`."""
        self._marked.setdefault(after, 0)

    def incoming(self, offset: int, source: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies `source` to `offset`."""
        return self._move(self._range(offset, len(source)), _bytes(source), after, link, inward=True)

    def outgoing(self, offset: int, target: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies from `offset` to `target`."""
        return self._move(_bytes(target), self._range(offset, len(target)), after, link, inward=False)

    def _range(self, offset: int, nbytes: int) -> torch.Tensor:
        return self._elements.data[offset : offset + nbytes]  # what is written here counts as no write to weights

    def _move(
        self, target: torch.Tensor, source: torch.Tensor, after: int | None, link: Link | None, *, inward: bool
    ) -> Move:
        if target.numel() != source.numel():
            raise ExecutionError(f"{source.numel()} bytes are moved to {target.numel()} of the device")
        if after is not None:
            self.expect(after)
        done = [0, 0]  # runs since the n-th restart

        def move(cancelled: Cancelled) -> None:
            if cancelled():
                raise TransferCancelledError
            if done[1] != self._restarts:
                done[:] = [0, self._restarts]
            done[0] += 1
            if after is not None and self._marked[after] < done[0]:
                raise ExecutionError(f"a copy of instant {after} began for the {done[0]}th time without its mark")
            if link is not None:
                self._wires[inward].pass_through(link.busy_ns(target.numel()), cancelled)
            target.copy_(source)

        return move

    def settle(self) -> None:
        """All that was called has run."""

    def restart(self) -> None:
        """Marks count from the beginning again."""
        self._restarts += 1
        self._marked = dict.fromkeys(self._marked, 0)

    def close(self) -> None:
        """Give the memory back; again is allowed."""
        self._elements = torch.empty(0, dtype=torch.uint8)
        if self.arena is not None:
            self.arena.close()
            self.arena = None


class _Wire:
    """One direction of a link: what passes through takes turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_ns = 0  # when what passes through now is through

    def pass_through(self, busy_ns: int, cancelled: Cancelled) -> None:
        """Return when the wire has been busy for us. Raises TransferCancelledError."""
        with self._lock:
            self._free_ns = end = max(time.perf_counter_ns(), self._free_ns) + busy_ns
        while (left := end - time.perf_counter_ns()) > 0:
            if cancelled():
                raise TransferCancelledError
            time.sleep(min(left * 1e-9, 0.01))


def _bytes(view: memoryview) -> torch.Tensor:
    return torch.frombuffer(view, dtype=torch.uint8) if len(view) else torch.empty(0, dtype=torch.uint8)
