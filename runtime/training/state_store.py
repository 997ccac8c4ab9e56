"""Optimizer states and parameters on disk: a nameless file of blobs that are read ahead of their use and written behind
their update.

All blobs are zeros at first, as PyTorch makes states. The file's blocks are reserved and not written, which
reads as zeros: no state is ever made in memory only to be stored.

The file has no name. Whatever ends the process, `kill -9` too, the system takes it away with the process: the next
start finds nothing half written and begins with zeros, or with the checkpoint that it loads. What is lost is what every
training run loses that way: the steps since the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ALLOCATIONGRANULARITY, mmap
from pathlib import Path
from threading import Lock
from types import MappingProxyType

from ...ir.errors import ExecutionError
from ...ir.paths import cache_dir
from ..directio import BLOCK, BOUNCE_NBYTES, DirectFile, never

_GRANULE = max(BLOCK, ALLOCATIONGRANULARITY)
"""Blobs begin at multiples of it."""


@dataclass(frozen=True, slots=True)
class StateEntry:
    """A blob at `offset` of the file, a multiple of the block."""

    blob: str
    offset: int
    nbytes: int


class StateStore:
    """Blobs of given sizes, zeros at first, that can be read and written by ranges. Several threads may do so at once,
    as long as nobody writes bytes that another one reads or writes: a plan's transfers keep to that.

    What is written is not checked by sums: the bytes change with every step, and each sum would cost as much as the
    update itself.
    """

    def __init__(self, sizes: Mapping[str, int], folder: Path | None = None) -> None:
        """`sizes` are the bytes of each blob. The file lies in `folder`, by default the cache.

        Raises ExecutionError, with needed and free bytes, where the disk has no room: no step can then run out of it.
        """
        entries: dict[str, StateEntry] = {}
        end = 0
        for blob, nbytes in sizes.items():
            entries[blob] = StateEntry(blob, end, nbytes)
            end += -(-nbytes // _GRANULE) * _GRANULE
        self.entries = MappingProxyType(entries)
        self.nbytes = end
        self._spoiled: str | None = None
        self._shared = Lock()  # who changes part of a block reads it, changes it and writes it
        folder = cache_dir() if folder is None else folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = DirectFile.scratch(folder, end)

    def read(
        self,
        blob: str,
        start: int,
        target: memoryview,
        *,
        chunk: int = BOUNCE_NBYTES,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Fill `target` with the bytes of `blob` from `start` on. Raises ExecutionError where the disk fails."""
        self._file.read_into(target, self._at(blob, start, len(target)), chunk=chunk, cancelled=cancelled)

    def read_rows(self, blob: str, start: int, target: memoryview) -> None:
        """The same for a few bytes."""
        self.read(blob, start, target)

    def write(
        self,
        blob: str,
        start: int,
        source: memoryview,
        *,
        chunk: int = BOUNCE_NBYTES,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Put `source` in place of the bytes of `blob` from `start` on. Raises ExecutionError where the disk fails.

        Past the page cache, and without a copy where file offset and address are multiples of the block.
        """
        begin = self._at(blob, start, len(source))
        end, entry = begin + len(source), self.entries[blob]
        first, last = -(-begin // BLOCK) * BLOCK, end // BLOCK * BLOCK
        if end == entry.offset + entry.nbytes:
            last = end  # the rest of the blob's last block is nobody's
        if first > last:
            self._patch(source, begin)
            return
        if begin < first:
            self._patch(source[: first - begin], begin)
        if first < last:
            self._file.write_from(source[first - begin : last - begin], first, chunk=chunk, cancelled=cancelled)
        if last < end:
            self._patch(source[last - begin :], last)

    def mapped(self, blob: str) -> mmap:
        """The blob as memory, whose pages are read when they are touched and are the system's to take back.

        What is stored shows there, and what is written there is read: the system keeps both the same, as long as nobody
        does both at once. It stays valid when the store is closed. Raises ExecutionError where the system refuses.
        """
        entry = self.entries[blob]
        try:
            return mmap(self._file.descriptor, entry.nbytes, offset=entry.offset)
        except OSError as error:
            raise ExecutionError(f"blob '{blob}' of {entry.nbytes} bytes cannot be mapped: {error.strerror}") from error

    def _patch(self, source: memoryview, offset: int) -> None:
        """Change bytes inside one block."""
        first = offset // BLOCK * BLOCK
        block = bytearray(BLOCK)
        with self._shared:
            self._file.read_into(memoryview(block), first)
            block[offset - first : offset - first + len(source)] = source
            self._file.write_from(memoryview(block), first)

    def _at(self, blob: str, start: int, nbytes: int) -> int:
        entry = self.entries[blob]
        assert start >= 0 and start + nbytes <= entry.nbytes, (blob, start, nbytes, entry.nbytes)
        return entry.offset + start

    @contextmanager
    def unchecked(self) -> Generator[None]:
        """While this lasts transfers run without the updates between them, as when they are timed alone. What is stored
        is then not the states: they are lost until `restored`."""
        self.spoil("they were overwritten when the transfers were timed alone")
        yield

    def spoil(self, why: str) -> None:
        """What the blobs hold is not the states any more."""
        self._spoiled = why

    def restored(self) -> None:
        """Every blob has been written as a whole again."""
        self._spoiled = None

    def check_whole(self) -> None:
        """ExecutionError if the states are lost."""
        if self._spoiled is not None:
            raise ExecutionError(
                f"the optimizer's states are lost: {self._spoiled}; load a state_dict into the optimizer before the "
                "next step"
            )

    def close(self) -> None:
        """Close the file, which ends it; again is allowed."""
        self._file.close()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
