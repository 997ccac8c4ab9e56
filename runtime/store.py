"""The weights of one plan, repacked: a file of blobs on block boundaries, and an index that says what they are."""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.codec import digest, from_json, loads
from ..ir.errors import ExecutionError, InputError, PlanMismatchError
from ..ir.program import Program, SourceFile
from .directio import BLOCK, BOUNCE_NBYTES, DirectFile, never

SCHEMA = 1
CRC_NBYTES = 1 << 20
WEIGHTS, INDEX = "weights.bin", "index.json"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """Where a blob lies in the weights file, and the CRC-32 of each MiB of it."""

    blob: str
    offset: int
    nbytes: int
    crc32: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a store was made from: the engine (with its version and processor) and the files, as they were."""

    engine: str
    files: tuple[SourceFile, ...]

    def check_sources(self) -> None:
        """PlanMismatchError, with both values, unless every source file is as it was."""
        for file in self.files:
            try:
                now = Path(file.path).stat()
            except OSError as error:
                raise PlanMismatchError(
                    f"'{file.path}', from which the plan was made, cannot be found ({error.strerror}); put it back or "
                    "plan again"
                ) from error
            for what, then, current in (
                ("size in bytes", file.nbytes, now.st_size),
                ("modification time in ns", file.mtime_ns, now.st_mtime_ns),
            ):
                if then != current:
                    raise PlanMismatchError(
                        f"weights changed after planning: '{file.path}' had {what} {then}, now {current}; plan again"
                    )


@dataclass(frozen=True, slots=True)
class Index:
    """Content of the index file; `sources` is the digest of the program's list of blobs."""

    schema: int
    identity: Identity
    sources: str
    nbytes: int
    blobs: tuple[BlobEntry, ...]


def identity_of(identity: dict[str, Any]) -> Identity:
    """An Identity from `{"engine": str, "files": [{"path": str, "nbytes": int, "mtime_ns": int}, ...]}`."""
    return from_json(Identity, identity, "store identity")


def layout(program: Program) -> tuple[list[int], int]:
    """Offset of each blob of `program`, on block boundaries in the order given, and the length of the file."""
    offsets, end = list[int](), 0
    for blob in program.blobs:
        offsets.append(end)
        end += -(-blob.nbytes // BLOCK) * BLOCK
    return offsets, end


class WeightStore:
    """An open store. Reads ranges of blobs straight into memory; checks each MiB the first time it is read."""

    def __init__(self, folder: Path, index: Index, file: DirectFile) -> None:
        self.folder = folder
        self.index = index
        self.entries = {b.blob: b for b in index.blobs}
        self._file = file
        self._unchecked = {b.blob: set(range(len(b.crc32))) for b in index.blobs}

    @classmethod
    def open_or_build(
        cls, program: Program, *, identity: dict[str, Any], folder: Path, progress: Progress | None = None
    ) -> WeightStore:
        """The store in `folder` (one folder per program and identity), made if it is not there or not whole.

        `identity` is as `identity_of` says. `progress(done, total)` hears of bytes written. Raises PlanMismatchError
        where a source is not as the identity says, InputError where it is too short, ExecutionError where the disk is
        full or fails. Nothing half made stays. Of several processes that want the same store, one builds.
        """
        from .store_build import build_store, remove_remains

        stated = identity_of(identity)
        stated.check_sources()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder):
            remove_remains(folder)
            store = cls._open(program, stated, folder)
            if store is not None:
                return store
            build_store(program, stated, folder, progress)
            store = cls._open(program, stated, folder)
        if store is None:
            raise ExecutionError(f"the store that was just written to '{folder}' cannot be read back; check the disk")
        return store

    @classmethod
    def _open(cls, program: Program, identity: Identity, folder: Path) -> WeightStore | None:
        """The store as it stands, or None where it is absent, of another schema or origin, or damaged in its form."""
        offsets, nbytes = layout(program)
        try:
            index = from_json(Index, loads((folder / INDEX).read_bytes(), str(folder / INDEX)), str(folder / INDEX))
            if (folder / WEIGHTS).stat().st_size != nbytes:
                return None
            file = DirectFile.open(folder / WEIGHTS)
        except (OSError, InputError):
            return None  # a store is a cache: what cannot be used is made again
        wanted = [(s.blob, at, s.nbytes) for s, at in zip(program.blobs, offsets, strict=True)]
        found = [(b.blob, b.offset, b.nbytes) for b in index.blobs]
        made_from = (index.schema, index.identity, index.sources, index.nbytes)
        if made_from != (SCHEMA, identity, digest(program.blobs), nbytes) or found != wanted:
            file.close()
            return None
        return cls(folder, index, file)

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
        if unchecked and len(target):
            for number in range(start // CRC_NBYTES, -(-(start + len(target)) // CRC_NBYTES)):
                if number in unchecked:
                    self._check(entry, number, start, target)
                    unchecked.discard(number)

    def read_rows(self, blob: str, start: int, target: memoryview) -> None:
        """Fill `target` with a few bytes of `blob` from `start` on, unchecked: a checksum would need a whole MiB."""
        entry = self.entries[blob]
        assert start >= 0 and start + len(target) <= entry.nbytes, (blob, start, len(target), entry.nbytes)
        self._file.read_into(target, entry.offset + start)

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
                f"blob '{entry.blob}' is damaged in bytes [{first}, {last}) of '{self.folder / WEIGHTS}': its CRC-32 "
                f"should be {expected:08x} and is {actual:08x}; remove that folder so that it is made again"
            )

    def close(self) -> None:
        """Close the file; again is allowed."""
        self._file.close()

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _only_one(folder: Path) -> Generator[None, None, None]:
    """Hold the lock of `folder`, which ends with the process that holds it."""
    with open(folder.with_name(f".{folder.name}.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
