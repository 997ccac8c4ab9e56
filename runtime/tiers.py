"""The memories of a plan's tiers, and what moves bytes into them: from the store, from one another, from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import numpy as np

from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph, Storage
from ..ir.machine import Link
from ..ir.plan import Plan
from .arena import Arena
from .directio import BLOCK, BOUNCE_NBYTES, TransferCancelledError
from .filling import Move, cuts, run_together
from .lanes import Cancelled
from .reading import CRC_NBYTES, StateKeeper, WeightReader


class Device(Protocol):
    """Memory that steps compute from and that is not the host's, with its own sense of time.

    It computes behind the back of the thread that calls: what has been called may still run. So `marks` has one call
    for each instant that a move was told of as `after`; the computing thread makes it on arriving there, and the move
    waits until the device, too, has come as far.
    """

    @property
    def nbytes(self) -> int:
        """Of its arena; 0 before `open`."""
        ...

    @property
    def marks(self) -> Mapping[int, Callable[[], None]]:
        """What to call at which instants of a pass."""
        ...

    def open(self, nbytes: int, *, tier: str) -> None:
        """Take the memory. Raises ExecutionError where there is too little."""
        ...

    def pinned(self, arena: Arena) -> AbstractContextManager[None]:
        """Make host memory ready for moves, once for all of them, until the context ends."""
        ...

    def expect(self, after: int) -> None:
        """Moves will be told of instant `after`, though none is yet made."""
        ...

    def incoming(self, offset: int, source: memoryview, after: int | None, link: Link | None) -> Move:
        """What copies host memory to `offset`, complete when it returns; with no `after`, without waiting for any."""
        ...

    def outgoing(self, offset: int, target: memoryview, after: int | None, link: Link | None) -> Move:
        """The same in the other direction."""
        ...

    def settle(self) -> None:
        """Return when all that was called has run."""
        ...

    def restart(self) -> None:
        """Passes are counted from the first one again; nothing runs or moves."""
        ...

    def close(self) -> None:
        """Give the memory back; again is allowed."""
        ...


class HostHome:
    """The homed storages of a plan in host memory, where that is their home: read from the store once."""

    def __init__(self, plan: Plan, graph: Graph) -> None:
        used = dict.fromkeys([*(r.storage for r in plan.residencies), *(t.storage for t in plan.transfers)])
        self._storages = [graph.storage[s] for s in used if graph.storage[s].homed]
        self._offset: dict[str, int] = {}
        end = 0
        for storage in self._storages:
            # On blocks, so that the store reads straight to the place.
            self._offset[storage.id] = end
            end += -(-storage.nbytes // BLOCK) * BLOCK
        self._nbytes = end
        self._tier = plan.home_tier
        self.arena: Arena | None = None
        self.filled = False

    def open(self) -> Arena:
        """Take the memory. Raises ExecutionError where there is too little."""
        self.arena = Arena(self._nbytes, tier=self._tier)
        return self.arena

    def fill(self, store: WeightReader) -> int:
        """Read everything, unless that was done; the bytes read. Raises ExecutionError where they cannot be."""
        if self.filled:
            return 0
        run_together(
            [
                partial(load_homed, store, s, lo, self.view(s, lo, hi - lo), BOUNCE_NBYTES)
                for s in self._storages
                for lo, hi in cuts(0, s.nbytes, BOUNCE_NBYTES, s.blob_offset)
            ]
        )
        self.filled = True
        return sum(s.nbytes for s in self._storages)

    def view(self, storage: Storage, lo: int, nbytes: int) -> memoryview:
        """Bytes [lo, lo + nbytes) of `storage`."""
        assert self.arena is not None
        return self.arena.view(self._offset[storage.id] + lo, nbytes)


class Tiers:
    """Where the bytes of each tier are: host memory in `arenas`, by tier, and `device`, the memory of `device_tier`.

    Homed storages come from `home` where that is host memory, else from `store`.
    """

    def __init__(
        self,
        store: WeightReader,
        arenas: Mapping[str, Arena],
        *,
        device: Device | None = None,
        device_tier: str | None = None,
        home: HostHome | None = None,
    ) -> None:
        self.store = store
        self.arenas = arenas
        self.device = device
        self.device_tier = device_tier
        self.home = home
        self._spare: list[Arena] = []

    def load(
        self, storage: Storage, lo: int, hi: int, to: tuple[str, int], chunk: int, after: int | None, link: Link | None
    ) -> Move:
        """What brings bytes [lo, hi) of a homed storage to (tier, offset), after instant `after` of each pass."""
        tier, offset = to
        if tier != self.device_tier:
            target = self.arenas[tier].view(offset, hi - lo)
            if self.home is not None:
                return partial(_copy, target, self.home.view(storage, lo, hi - lo))
            return partial(load_homed, self.store, storage, lo, target, chunk)
        assert self.device is not None
        if self.home is not None:
            return self.device.incoming(offset, self.home.view(storage, lo, hi - lo), after, link)
        if after is not None:
            self.device.expect(after)
        return partial(self._load_staged, self.device, storage, lo, hi, offset, chunk, after, link)

    def loads(
        self, storage: Storage, lo: int, hi: int, to: tuple[str, int], chunk: int, after: int | None, link: Link | None
    ) -> tuple[Move, ...]:
        """The same in requests of `chunk` bytes; their ends lie on multiples of it in the blob, where checksums begin
        and end."""
        tier, offset = to
        chunk = -(-chunk // CRC_NBYTES) * CRC_NBYTES
        return tuple(
            self.load(storage, begin, end, (tier, offset + begin - lo), chunk, after, link)
            for begin, end in cuts(lo, hi, chunk, storage.blob_offset)
        )

    def store_back(
        self, storage: Storage, lo: int, hi: int, origin: tuple[str, int], chunk: int, after: int, link: Link
    ) -> Move:
        """What brings bytes [lo, hi) of a homed storage that was changed from (tier, offset) to its home.

        Raises PlanMismatchError where the home cannot be written to, or not from there.
        """
        tier, offset = origin
        if self.home is not None:
            target = self.home.view(storage, lo, hi - lo)
            if tier != self.device_tier:
                return partial(_copy, target, self.arenas[tier].view(offset, hi - lo))
            assert self.device is not None
            return self.device.outgoing(offset, target, after, link)
        if not isinstance(self.store, StateKeeper):
            raise PlanMismatchError(
                f"the plan stores '{storage.id}' ({storage.kind.value}), which its steps change, but the store of this "
                "executor is only read; plan again"
            )
        return partial(store_homed, self.store, storage, lo, self.host(tier, offset, hi - lo), chunk)

    def copy(self, origin: tuple[str, int], target: tuple[str, int], nbytes: int, after: int, link: Link) -> Move:
        """What copies from one (tier, offset) to another, in another tier."""
        device = self.device
        if device is None or self.device_tier not in (origin[0], target[0]):
            return partial(_copy, self.arenas[target[0]].view(target[1], nbytes), self.host(*origin, nbytes))
        if target[0] == self.device_tier:
            return device.incoming(target[1], self.host(*origin, nbytes), after, link)
        return device.outgoing(origin[1], self.host(*target, nbytes), after, link)

    def host(self, tier: str, offset: int, nbytes: int) -> memoryview:
        """Bytes of a tier in host memory."""
        if tier not in self.arenas:
            raise PlanMismatchError(
                f"the plan moves bytes between '{tier}' and a file, which do not reach one another; plan again"
            )
        return self.arenas[tier].view(offset, nbytes)

    def _load_staged(
        self,
        device: Device,
        storage: Storage,
        lo: int,
        hi: int,
        offset: int,
        chunk: int,
        after: int | None,
        link: Link | None,
        cancelled: Cancelled,
    ) -> None:
        """From the store by way of a buffer in host memory, which is kept for the next one."""
        try:
            stage = self._spare.pop()
        except IndexError:
            stage = Arena(chunk)
        if stage.nbytes < chunk:
            stage.close()
            stage = Arena(chunk)
        for start in range(lo, hi, chunk):
            view = stage.view(0, min(chunk, hi - start))
            load_homed(self.store, storage, start, view, chunk, cancelled)
            device.incoming(offset + start - lo, view, after, link)(cancelled)
        self._spare.append(stage)

    def drop_stages(self) -> None:
        """Give the buffers back: what is resident has been loaded, and few plans load past the host after that."""
        while self._spare:
            self._spare.pop().close()


def load_homed(
    store: WeightReader, storage: Storage, lo: int, target: memoryview, chunk: int, cancelled: Cancelled
) -> None:
    """Fill `target` with the bytes of a homed storage from `lo` on."""
    assert storage.blob is not None
    store.read(storage.blob, storage.blob_offset + lo, target, chunk=chunk, cancelled=cancelled)


def store_homed(
    store: StateKeeper, storage: Storage, lo: int, source: memoryview, chunk: int, cancelled: Cancelled
) -> None:
    """Put `source` in place of the bytes of a homed storage from `lo` on."""
    assert storage.blob is not None
    store.write(storage.blob, storage.blob_offset + lo, source, chunk=chunk, cancelled=cancelled)


def _copy(target: memoryview, source: memoryview, cancelled: Cancelled) -> None:
    if cancelled():
        raise TransferCancelledError
    np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))  # without the interpreter's lock


def host_tiers(plan: Plan, compute_tier: str) -> tuple[str, ...]:
    """Tiers that a plan keeps bytes in, between the one it computes from and the home, in order of mention."""
    found: Iterable[str] = [r.tier for r in plan.residencies]
    found = [*found, *(tier for t in plan.transfers for tier in (t.origin, t.target))]
    return tuple(dict.fromkeys(t for t in found if t not in (compute_tier, plan.home_tier)))
