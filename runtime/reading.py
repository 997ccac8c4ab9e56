"""How weights are read, wherever they lie: what an executor asks of a store, and blobs that check themselves."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from ..ir.errors import ExecutionError
from ..ir.program import BlobSource
from .directio import BOUNCE_NBYTES, DirectFile, never

CRC_NBYTES = 1 << 20

Self = TypeVar("Self", bound="CheckedBlobs")


class HasBlobs(Protocol):
    """A program, of whatever engine, as a store sees it."""

    @property
    def blobs(self) -> tuple[BlobSource, ...]:
        """Where the bytes of each blob come from."""
        ...


class Entry(Protocol):
    """A blob of a store."""

    @property
    def nbytes(self) -> int:
        """How many bytes of it can be read."""
        ...


class WeightReader(Protocol):
    """An open store of weights: repacked, or the user's own files. Several threads may read at once."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Blobs by name."""
        ...

    def read(
        self,
        blob: str,
        start: int,
        target: memoryview,
        *,
        chunk: int = BOUNCE_NBYTES,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Fill `target` with the bytes of `blob` from `start` on; ExecutionError where they are not as they were."""
        ...

    def read_rows(self, blob: str, start: int, target: memoryview) -> None:
        """The same for a few bytes, with as few requests as that takes."""
        ...

    def unchecked(self) -> AbstractContextManager[None]:
        """While this lasts, what is read is not looked at: several requests may fill one place at once."""
        ...

    def close(self) -> None:
        """Close the files; again is allowed."""
        ...


@runtime_checkable
class StateKeeper(WeightReader, Protocol):
    """A store whose blobs change: the states of an optimizer."""

    def write(
        self,
        blob: str,
        start: int,
        source: memoryview,
        *,
        chunk: int = BOUNCE_NBYTES,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Put `source` in place of the bytes of `blob` from `start` on; ExecutionError where that fails."""
        ...


@runtime_checkable
class Lender(WeightReader, Protocol):
    """A store of what a module in memory has let go, and may want back."""

    def restore(self) -> None:
        """Give every tensor its bytes back; ExecutionError where they cannot be read."""
        ...

    def hand_over(self) -> Callable[[], None]:
        """What does that; the store holds none of the tensors from here on."""
        ...


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """Where a blob lies in the weights file, and the CRC-32 of each MiB of it."""

    blob: str
    offset: int
    nbytes: int
    crc32: tuple[int, ...]


class CheckedBlobs:
    """Blobs in one open file of ours. Reads ranges of them straight into memory; checks each MiB the first time.

    `remedy` ends the error for damaged bytes: what to do about them.
    """

    def __init__(self, blobs: Iterable[BlobEntry], file: DirectFile, *, remedy: str) -> None:
        self.entries = {b.blob: b for b in blobs}
        self._file = file
        self._remedy = remedy
        self._unchecked = {b.blob: set(range(len(b.crc32))) for b in self.entries.values()}
        self._checking = True

    def read(
        self,
        blob: str,
        start: int,
        target: memoryview,
        *,
        chunk: int = BOUNCE_NBYTES,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        """Fill `target` with the bytes of `blob` from `start` on.

        Raises ExecutionError where the file cannot be read and where its bytes are not those that were written.
        """
        entry = self.entries[blob]
        assert start >= 0 and start + len(target) <= entry.nbytes, (blob, start, len(target), entry.nbytes)
        self._file.read_into(target, entry.offset + start, chunk=chunk, cancelled=cancelled)
        unchecked = self._unchecked[blob]
        if unchecked and len(target) and self._checking:
            for number in range(start // CRC_NBYTES, -(-(start + len(target)) // CRC_NBYTES)):
                if number in unchecked:
                    self._check(entry, number, start, target)
                    unchecked.discard(number)

    def read_rows(self, blob: str, start: int, target: memoryview) -> None:
        """Fill `target` with a few bytes of `blob` from `start` on. First of all, the MiB around them is checked."""
        self.read(blob, start, target)

    @contextmanager
    def unchecked(self) -> Generator[None]:
        """While this lasts, what is read is not looked at: several requests may fill one place at once."""
        self._checking = False
        try:
            yield
        finally:
            self._checking = True

    def _check(self, entry: BlobEntry, number: int, start: int, target: memoryview) -> None:
        """Check one MiB, in `target` if it is there as a whole, else read again; `target` holds bytes from `start`."""
        first = number * CRC_NBYTES
        last = min(first + CRC_NBYTES, entry.nbytes)
        lo, hi = max(first, start), min(last, start + len(target))
        if (lo, hi) == (first, last):
            actual, same = zlib.crc32(target[lo - start : hi - start]), True
        else:
            whole = bytearray(last - first)
            self._file.read_into(memoryview(whole), entry.offset + first)
            actual = zlib.crc32(whole)
            same = memoryview(whole)[lo - first : hi - first] == target[lo - start : hi - start]
        expected = entry.crc32[number]
        if actual != expected or not same:
            raise ExecutionError(
                f"blob '{entry.blob}' is damaged in bytes [{first}, {last}) of '{self._file.name}': its CRC-32 "
                f"should be {expected:08x} and is {actual:08x}; {self._remedy}"
            )

    def close(self) -> None:
        """Close the file; again is allowed."""
        self._file.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
