"""A device made of host memory, for boxes without one: bounded, as slow as its links, and strict about order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from ...ir.errors import ExecutionError
from ...ir.machine import Link
from ..arena import Arena
from ..directio import TransferCancelledError
from ..tiers import Cancelled, Move
from .devices import as_bytes


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
        self._elements = as_bytes(self.arena.view(0, self.arena.nbytes))
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
        return self._move(self._range(offset, len(source)), as_bytes(source), after, link, inward=True)

    def outgoing(self, offset: int, target: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies from `offset` to `target`."""
        return self._move(as_bytes(target), self._range(offset, len(target)), after, link, inward=False)

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
