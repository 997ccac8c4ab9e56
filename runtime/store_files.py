"""Weights read where they lie: files of the user's, with no copy of ours in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ..ir.errors import ExecutionError, InputError, PlanMismatchError
from ..ir.program import BlobSource, FilePiece, SourceFile
from .directio import BOUNCE_NBYTES, DirectFile, never
from .reading import HasBlobs
from .store import Identity

_REMEDY = "put the whole file back and run again"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A blob as ranges of files, one after another."""

    blob: str
    nbytes: int
    pieces: tuple[FilePiece, ...]


class _Watched:
    """An open file of the user's, as it was when it was opened."""

    def __init__(self, path: str, stated: SourceFile | None) -> None:
        try:
            self.file = DirectFile.open_whole(Path(path), _REMEDY)
        except OSError as error:
            raise InputError(f"'{path}', which holds weights, cannot be opened: {error.strerror}") from error
        self._path = path
        status = os.fstat(self.file.descriptor)
        self._seen = (status.st_size, status.st_mtime_ns)
        if stated is not None and self._seen != (stated.nbytes, stated.mtime_ns):
            self.file.close()
            raise PlanMismatchError(
                f"weights changed after planning: '{path}' had {stated.nbytes} bytes of time {stated.mtime_ns} ns, now "
                f"{self._seen[0]} bytes of {self._seen[1]} ns; plan again"
            )

    def check(self) -> None:
        """ExecutionError, with both values, if the file was written to or cut since it was opened."""
        status = os.fstat(self.file.descriptor)
        now = (status.st_size, status.st_mtime_ns)
        if now != self._seen:
            raise ExecutionError(
                f"'{self._path}' was changed while its weights were in use: it had {self._seen[0]} bytes of time "
                f"{self._seen[1]} ns, now {now[0]} bytes of {now[1]} ns; what was computed since is not to be "
                "trusted: leave the file alone, plan again and run again"
            )

    def read(self, target: memoryview, offset: int, chunk: int, cancelled: Callable[[], bool]) -> None:
        """Fill `target` from `offset` on, and look whether these still were the bytes that the plan means.

        The look comes after the reading: whatever is written before the last byte is read has changed the time by then.
        """
        try:
            self.file.read_into(target, offset, chunk=chunk, cancelled=cancelled)
        except ExecutionError:
            self.check()
            raise
        self.check()


class FileStore:
    """The blobs of a program read from the files that hold them, each a whole file, a range, or several ranges.

    Has no checksums: the formats that it reads bring none. Instead every reading looks at size and modification time of
    the file.
    """

    def __init__(self, entries: Iterable[FileEntry], files: dict[str, _Watched]) -> None:
        self.entries = MappingProxyType({e.blob: e for e in entries})
        self._files = files

    @classmethod
    def open(cls, program: HasBlobs, files: tuple[SourceFile, ...]) -> FileStore:
        """Open all files of `program`; `files` are what the plan was made from.

        Raises PlanMismatchError where one is not as it was, InputError where one is missing, cannot be opened or is too
        short for a blob.
        """
        Identity("", files).check_sources()
        stated = {f.path: f for f in files}
        entries = [_entry(source) for source in program.blobs]
        opened: dict[str, _Watched] = {}
        try:
            for path in dict.fromkeys(p.path for e in entries for p in e.pieces):
                opened[path] = _Watched(path, stated.get(path))
            for entry in entries:
                for piece in entry.pieces:
                    _check_range(entry.blob, piece, opened[piece.path].file.nbytes or 0)
        except BaseException:
            for watched in opened.values():
                watched.file.close()
            raise
        return cls(entries, opened)

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

        Goes past the page cache, and straight to `target` where file offset and address agree modulo the block.
        Raises ExecutionError where a file cannot be read or was changed since it was opened.
        """
        entry = self.entries[blob]
        stop = start + len(target)
        assert start >= 0 and stop <= entry.nbytes, (blob, start, len(target), entry.nbytes)
        at = 0
        for piece in entry.pieces:
            lo, hi = max(start, at), min(stop, at + piece.nbytes)
            if lo < hi:
                watched = self._files[piece.path]
                watched.read(target[lo - start : hi - start], piece.file_offset + lo - at, chunk, cancelled)
            at += piece.nbytes

    def read_rows(self, blob: str, start: int, target: memoryview) -> None:
        """The same for a few bytes."""
        self.read(blob, start, target)

    def unchecked(self) -> AbstractContextManager[None]:
        """Nothing that is read is looked at here, but the files themselves."""
        return nullcontext()

    def close(self) -> None:
        """Close the files; again is allowed."""
        for watched in self._files.values():
            watched.file.close()

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entry(source: BlobSource) -> FileEntry:
    if (source.path is None and not source.pieces) or source.transposed:
        raise InputError(
            f"blob '{source.blob}' lies in no file as it is needed, so it cannot be read there; plan again"
        )
    pieces = source.pieces or (FilePiece(source.path or "", source.file_offset, source.nbytes),)
    found = sum(p.nbytes for p in pieces)
    if found != source.nbytes:
        raise InputError(f"blob '{source.blob}' should have {source.nbytes} bytes, its pieces have {found}; plan again")
    return FileEntry(source.blob, source.nbytes, pieces)


def _check_range(blob: str, piece: FilePiece, nbytes: int) -> None:
    end = piece.file_offset + piece.nbytes
    if piece.file_offset < 0 or end > nbytes:
        raise InputError(
            f"weight '{blob}' should be bytes [{piece.file_offset}, {end}) of '{piece.path}', which has {nbytes}; get "
            "the whole file"
        )
