"""Making a weight store: piece by piece, past the page cache, never a whole large blob in memory."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.codec import digest, dumps
from ..ir.errors import ExecutionError, InputError
from ..ir.paths import write_atomic
from ..ir.program import BlobSource, FilePiece
from .directio import BLOCK, DirectFile, allocate, disk_full, free_nbytes
from .reading import CRC_NBYTES, BlobEntry, HasBlobs
from .store import INDEX, SCHEMA, WEIGHTS, Identity, Index, Progress, layout

PIECE_NBYTES = 4 << 20
BAND_NBYTES = 8 << 20  # for transposing: three times this is used; a larger matrix is written and read once more
_PARTIAL = ".partial"

Piece = NDArray[np.uint8]


def remove_remains(folder: Path) -> None:
    """Remove what builders of `folder` that died have left. The caller holds the lock, so none is alive."""
    for remains in folder.parent.glob(f".{folder.name}.*{_PARTIAL}"):
        shutil.rmtree(remains, ignore_errors=True)


def build_store(program: HasBlobs, identity: Identity, folder: Path, progress: Progress | None) -> None:
    """Write the store of `program` into a new folder beside `folder` and put it in its place when it is whole."""
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_PARTIAL, dir=folder.parent))
    _, nbytes = layout(program)
    try:
        with BlobWriter(_new_file(partial / WEIGHTS, nbytes), nbytes, progress) as writer:
            entries = tuple(_write_blob(source, writer, partial) for source in program.blobs)
        index = Index(SCHEMA, identity, digest(program.blobs), nbytes, entries)
        write_atomic(partial / INDEX, dumps(index))
        _sync(partial)
        if folder.exists():  # unusable, else it would not be built: move away what others may still read
            folder.rename(partial / "old")
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(folder / "old", ignore_errors=True)
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
    for piece in _pieces(source, folder):
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


def _pieces(source: BlobSource, folder: Path) -> Iterator[Piece]:
    """The bytes of a blob in order, at most some MiB at a time."""
    if source.fill is not None:
        yield from _repeat(bytes.fromhex(source.fill), source.nbytes)
        return
    if source.inline is not None:
        content = np.frombuffer(bytes.fromhex(source.inline), np.uint8)
        yield _transpose(content, source) if source.transposed else content
        return
    if source.pieces:
        for piece in source.pieces:
            with _Source(source.blob, piece) as read:
                for start in range(0, piece.nbytes, PIECE_NBYTES):
                    yield read(start, min(PIECE_NBYTES, piece.nbytes - start))
        return
    if source.path is None:
        raise InputError(f"blob '{source.blob}' has no source: neither a file nor a value; plan again")
    with _Source(source.blob, FilePiece(source.path, source.file_offset, source.nbytes)) as read:
        if source.transposed and source.nbytes > BAND_NBYTES:
            yield from _transposed_by_bands(source, read, folder)
        elif source.transposed:
            yield _transpose(read(0, source.nbytes), source)
        else:
            for start in range(0, source.nbytes, PIECE_NBYTES):
                yield read(start, min(PIECE_NBYTES, source.nbytes - start))


def _repeat(element: bytes, nbytes: int) -> Iterator[Piece]:
    if not element or nbytes % len(element):
        raise InputError(f"a fill of {len(element)} bytes does not divide a blob of {nbytes} bytes")
    block = np.frombuffer(element * (min(PIECE_NBYTES, nbytes) // len(element)), np.uint8)
    while nbytes > 0:
        yield block[: min(len(block), nbytes)]
        nbytes -= min(len(block), nbytes)


class _Source:
    """A range of a file, read without leaving it in the page cache. Calling it reads [start, start + nbytes)."""

    def __init__(self, blob: str, piece: FilePiece) -> None:
        self._blob = blob
        self._piece = piece
        self._path = piece.path
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"'{self._path}', which holds weight '{blob}', cannot be opened: {error.strerror}"
            ) from error

    def __enter__(self) -> Callable[[int, int], Piece]:
        return self._read

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def _read(self, start: int, nbytes: int) -> Piece:
        found = np.empty(nbytes, np.uint8)
        at, done = self._piece.file_offset + start, 0
        while done < nbytes:
            try:
                got = os.preadv(self._descriptor, [found.data[done:]], at + done)
            except OSError as error:
                raise ExecutionError(
                    f"reading '{self._path}' at offset {at + done} failed: {error.strerror} (wanted {nbytes} bytes, "
                    f"got {done}); check the disk"
                ) from error
            if got == 0:
                raise InputError(
                    f"'{self._path}' ends at byte {at + done}, weight '{self._blob}' needs bytes up to "
                    f"{self._piece.file_offset + self._piece.nbytes}; get the whole file"
                )
            done += got
        os.posix_fadvise(self._descriptor, at, nbytes, os.POSIX_FADV_DONTNEED)
        return found


def _matrix(source: BlobSource) -> tuple[int, int, int]:
    """Rows, columns and bytes per element of a source that is stored transposed."""
    count = prod(source.shape)
    if len(source.shape) != 2 or count == 0 or source.nbytes % count:
        raise InputError(
            f"blob '{source.blob}' of shape {source.shape} and {source.nbytes} bytes cannot be transposed: only "
            "matrices of whole-byte elements can"
        )
    return source.shape[0], source.shape[1], source.nbytes // count


def _element(width: int) -> np.dtype[Any]:
    """A type that moves `width` bytes as one; integers are copied faster than void."""
    return np.dtype(f"u{width}") if width in (1, 2, 4, 8) else np.dtype((np.void, width))


def _transpose(content: Piece, source: BlobSource) -> Piece:
    rows, columns, width = _matrix(source)
    matrix = content.view(_element(width)).reshape(rows, columns)
    return _bytes(matrix.T)


def _bytes(matrix: NDArray[Any]) -> Piece:
    return np.ascontiguousarray(matrix).reshape(-1).view(np.uint8)


def _transposed_by_bands(source: BlobSource, read: Callable[[int, int], Piece], folder: Path) -> Iterator[Piece]:
    """Transpose out of memory in two passes: whole rows in, tiles out; then all tiles of a band of columns, joined.

    The band of columns [j, k) takes the bytes that it will have in the result; its tiles, one per block of rows,
    stand in it one after the other.
    """
    rows, columns, width = _matrix(source)
    element = _element(width)
    tall = max(1, BAND_NBYTES // (columns * width))  # rows in a block
    wide = max(1, BAND_NBYTES // (rows * width))  # columns in a band
    with tempfile.TemporaryFile(dir=folder) as tiles:
        descriptor = tiles.fileno()
        allocate(descriptor, source.nbytes, folder)
        for i in range(0, rows, tall):
            high = min(tall, rows - i)
            block = read(i * columns * width, high * columns * width).view(element).reshape(high, columns)
            for j in range(0, columns, wide):
                tile = _bytes(block[:, j : j + wide].T)
                _write_all(descriptor, tile, (j * rows + i * min(wide, columns - j)) * width)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for j in range(0, columns, wide):
            count = min(wide, columns - j)
            band = np.empty((count, rows), element)
            for i in range(0, rows, tall):
                high = min(tall, rows - i)
                tile = _read_all(descriptor, high * count * width, (j * rows + i * count) * width)
                band[:, i : i + high] = tile.view(element).reshape(count, high)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            yield _bytes(band)


def _write_all(descriptor: int, content: Piece, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwritev(descriptor, [content.data[done:]], offset + done)


def _read_all(descriptor: int, nbytes: int, offset: int) -> Piece:
    found, done = np.empty(nbytes, np.uint8), 0
    while done < nbytes:
        got = os.preadv(descriptor, [found.data[done:]], offset + done)
        if got == 0:
            raise ExecutionError(f"a temporary file ends at byte {offset + done}, wanted {nbytes} from {offset}")
        done += got
    return found
