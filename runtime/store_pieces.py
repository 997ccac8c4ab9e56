"""The bytes of a blob in order, from where the model has them: files, values, or transposed on the way."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import ExecutionError, InputError
from ..ir.program import BlobSource, FilePiece
from .directio import allocate

PIECE_NBYTES = 4 << 20
BAND_NBYTES = 8 << 20  # for transposing: three times this is used; a larger matrix is written and read once more

Piece = NDArray[np.uint8]


def pieces(source: BlobSource, folder: Path) -> Iterator[Piece]:
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
