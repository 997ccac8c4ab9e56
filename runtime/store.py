"""The weights of one plan, repacked: a file of blobs on block boundaries, and an index that says what they are."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..ir.codec import digest, from_json, loads
from ..ir.errors import ExecutionError, InputError, PlanMismatchError
from ..ir.paths import unwritable
from ..ir.program import SourceFile
from .directio import BLOCK, DirectFile
from .reading import CRC_NBYTES as CRC_NBYTES
from .reading import BlobEntry, CheckedBlobs, HasBlobs

SCHEMA = 1
WEIGHTS, INDEX = "weights.bin", "index.json"

Progress = Callable[[int, int], None]


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
                        f"changed after planning: '{file.path}' had {what} {then}, now {current}; plan again"
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


def layout(program: HasBlobs) -> tuple[list[int], int]:
    """Offset of each blob of `program`, on block boundaries in the order given, and the length of the file."""
    offsets, end = list[int](), 0
    for blob in program.blobs:
        offsets.append(end)
        end += -(-blob.nbytes // BLOCK) * BLOCK
    return offsets, end


class WeightStore(CheckedBlobs):
    """An open store, kept in a folder of the cache for the next run."""

    def __init__(self, folder: Path, index: Index, file: DirectFile) -> None:
        super().__init__(index.blobs, file, remedy="remove that folder so that it is made again")
        self.folder = folder
        self.index = index

    @classmethod
    def open_or_build(
        cls, program: HasBlobs, *, identity: dict[str, Any], folder: Path, progress: Progress | None = None
    ) -> WeightStore:
        """The store in `folder` (one folder per program and identity), made if it is not there or not whole.

        `identity` is as `identity_of` says. `progress(done, total)` hears of bytes written. Raises PlanMismatchError
        where a source is not as the identity says, InputError where it is too short, ExecutionError where the disk is
        full or fails, or may not be written and has no such store. Nothing half made stays. Of several processes that
        want the same store, one builds.
        """
        from .store_build import build_store, remove_remains

        stated = identity_of(identity)
        stated.check_sources()
        try:
            lock = _locked(folder)
        except OSError as error:  # a cache that may only be read: what is whole there needs no lock
            store = cls._open(program, stated, folder)
            if store is None:
                raise unwritable(folder.parent, error) from error
            return store
        with lock:
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
    def _open(cls, program: HasBlobs, identity: Identity, folder: Path) -> WeightStore | None:
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


def _locked(folder: Path) -> BinaryIO:
    """The lock of `folder`, held until this file is closed, which it is with its process at the latest. Raises
    OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = open(folder.with_name(f".{folder.name}.lock"), "wb")  # noqa: SIM115 - the caller's to close
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        lock.close()
        raise
    return lock
