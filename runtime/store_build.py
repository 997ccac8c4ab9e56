"""Making a weight store: piece by piece, past the page cache, never a whole large blob in memory."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import numpy as np

from ..ir.codec import digest, dumps
from ..ir.errors import ExecutionError, InputError
from ..ir.paths import unwritable, write_atomic
from ..ir.program import BlobSource
from .directio import BLOCK, DirectFile, allocate, disk_full, free_nbytes
from .reading import CRC_NBYTES, BlobEntry, HasBlobs
from .store import INDEX, SCHEMA, WEIGHTS, Identity, Index, Progress, layout
from .store_pieces import PIECE_NBYTES, Piece, pieces

_PARTIAL = ".partial"
_REPLACED = "old"
"""What was in the place of a new store, inside it until it is removed."""


def remove_remains(folder: Path) -> None:
    """Remove what builders of `folder` that died have left. The caller holds the lock, so none is alive."""
    for remains in folder.parent.glob(f".{folder.name}.*{_PARTIAL}"):
        shutil.rmtree(remains, ignore_errors=True)
    shutil.rmtree(folder / _REPLACED, ignore_errors=True)


def build_store(program: HasBlobs, identity: Identity, folder: Path, progress: Progress | None) -> None:
    """Write the store of `program` into a new folder beside `folder` and put it in its place when it is whole."""
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_PARTIAL, dir=folder.parent))
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    _, nbytes = layout(program)
    try:
        with BlobWriter(_new_file(partial / WEIGHTS, nbytes), nbytes, progress) as writer:
            entries = tuple(_write_blob(source, writer, partial) for source in program.blobs)
        index = Index(SCHEMA, identity, digest(program.blobs), nbytes, entries)
        write_atomic(partial / INDEX, dumps(index))
        _sync(partial)
        if folder.exists():  # unusable, else it would not be built: move away what others may still read
            folder.rename(partial / _REPLACED)
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(folder / _REPLACED, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder.parent, nbytes, free_nbytes(folder.parent)) from error
        raise ExecutionError(f"the weight store '{folder}' cannot be written: {error}; check the disk") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_file(path: Path, nbytes: int) -> DirectFile:
    path.touch()
    file = DirectFile.open(path, os.O_RDWR)
    try:
        allocate(file.descriptor, nbytes, path.parent)
    except BaseException:
        file.close()
        raise
    return file


def _write_blob(source: BlobSource, writer: BlobWriter, folder: Path) -> BlobEntry:
    begin = writer.position
    for piece in pieces(source, folder):
        writer.write(piece)
    written = writer.position - begin
    if written != source.nbytes:
        raise InputError(f"blob '{source.blob}' should have {source.nbytes} bytes, its source has {written}")
    return BlobEntry(source.blob, begin, source.nbytes, writer.finish_blob())


class BlobWriter:
    """Writes `file` front to back in large aligned requests, with the CRC-32 of each MiB of each blob.

    A context that ends well writes what is left and syncs; any end closes the file unless `keep_open`. `written` tells
    up to where bytes have reached the file.
    """

    def __init__(
        self, file: DirectFile, nbytes: int, progress: Progress | None = None, *, keep_open: bool = False
    ) -> None:
        self.position = 0
        self._keep_open = keep_open
        self._nbytes = nbytes
        self._progress = progress
        self._map = mmap.mmap(-1, PIECE_NBYTES)
        self._buffer = np.frombuffer(self._map, np.uint8)
        self._written = 0
        self._crcs: list[int] = []
        self._crc, self._crc_nbytes = 0, 0
        self._file = file

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                os.fsync(self._file.descriptor)
        finally:
            if not self._keep_open:
                self._file.close()

    @property
    def written(self) -> int:
        """Bytes from the front of the file that are in it."""
        return self._written

    def write(self, piece: Piece) -> None:
        """Append bytes."""
        done = 0
        while done < len(piece):
            at = self.position - self._written
            count = min(len(piece) - done, len(self._buffer) - at, CRC_NBYTES - self._crc_nbytes)
            part = piece[done : done + count]
            self._buffer[at : at + count] = part
            self._crc, self._crc_nbytes = zlib.crc32(part.data, self._crc), self._crc_nbytes + count
            if self._crc_nbytes == CRC_NBYTES:
                self._end_crc()
            self.position += count
            done += count
            if self.position - self._written == len(self._buffer):
                self._flush()

    def finish_blob(self) -> tuple[int, ...]:
        """Fill up to the next block boundary; the CRCs since the last call."""
        if self._crc_nbytes:
            self._end_crc()
        at = self.position - self._written
        padded = -(-at // BLOCK) * BLOCK
        self._buffer[at:padded] = 0
        self.position = self._written + padded
        if padded == len(self._buffer):
            self._flush()
        crcs, self._crcs = tuple(self._crcs), []
        return crcs

    def _end_crc(self) -> None:
        self._crcs.append(self._crc)
        self._crc, self._crc_nbytes = 0, 0

    def _flush(self) -> None:
        count = self.position - self._written
        self._file.write_from(memoryview(self._map)[:count], self._written, chunk=PIECE_NBYTES)
        self._written = self.position
        if self._progress is not None:
            self._progress(self._written, self._nbytes)
