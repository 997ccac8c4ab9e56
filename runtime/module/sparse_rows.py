"""Weights of feed-forward layers stored by neuron, so that those of a few neurons can be read alone.

A layer has one or two matrices here; a neuron's piece of one is a row of d_model elements. Bundled, the rows of a
neuron lie side by side (LLM in a flash, arXiv 2312.11514, section 3.2); else each matrix has a region of its own.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import ExecutionError, InputError
from ...ir.paths import cache_dir
from ..directio import BLOCK, DirectFile
from ..store_build import BlobWriter
from ..store_pieces import PIECE_NBYTES
from .readers import started_pool

READ_NBYTES = 4 << 20

Indices = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Run: TypeAlias = "tuple[int, int, int, int]"
"""(begin, end, first, stop): bytes [begin, end) of a region, whole blocks, hold pieces number first to stop - 1."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a layer of `neurons` lies from byte `begin` of the file on, a block boundary.

    Each neuron has a row of `row_nbytes` bytes of each of `matrices`. `bundled` puts them together.
    """

    neurons: int
    row_nbytes: int
    matrices: int
    bundled: bool
    begin: int = 0

    @property
    def neuron_nbytes(self) -> int:
        """Bytes of all rows of a neuron."""
        return self.matrices * self.row_nbytes

    @property
    def regions(self) -> int:
        """Parts of the file in which a neuron has a piece."""
        return 1 if self.bundled else self.matrices

    @property
    def piece_nbytes(self) -> int:
        """Bytes of a neuron's piece of a region."""
        return self.neuron_nbytes // self.regions

    @property
    def region_nbytes(self) -> int:
        """Bytes from one region to the next, whole blocks."""
        return -(-self.neurons * self.piece_nbytes // BLOCK) * BLOCK

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.regions * self.region_nbytes


@dataclass(slots=True)
class Reading:
    """What was read: bytes in whole blocks, and requests."""

    nbytes: int = 0
    requests: int = 0


def read_runs(positions: Indices, piece_nbytes: int, bridge_nbytes: int) -> list[Run]:
    """What to read for pieces at `positions` (ascending, each once). Gaps of up to `bridge_nbytes` are read."""
    if not len(positions):
        return []
    begins = positions * piece_nbytes // BLOCK * BLOCK
    ends = -(-(positions + 1) * piece_nbytes // BLOCK) * BLOCK
    cuts = np.flatnonzero(begins[1:] - ends[:-1] > bridge_nbytes) + 1
    edges = [0, *cuts.tolist(), len(positions)]
    return [(int(begins[a]), int(ends[b - 1]), a, b) for a, b in pairwise(edges)]


def _batches(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    """Runs that are read together: of READ_NBYTES at most, or one that is larger alone."""
    first, nbytes = 0, 0
    for k, (begin, end, _, _) in enumerate(runs):
        if k > first and nbytes + end - begin > READ_NBYTES:
            yield runs[first:k]
            first, nbytes = k, 0
        nbytes += end - begin
    if runs:
        yield runs[first:]


class RowFile:
    """A nameless file of layers by neuron, which disappears with the process at the latest. One reader at a time.

    The bytes of a piece are compared with their CRC-32 when it is read for the first time.
    """

    def __init__(
        self, file: DirectFile, layouts: Sequence[RowLayout], checks: Sequence[NDArray[np.uint32]], at_once: int
    ) -> None:
        self.layouts = tuple(layouts)
        self._file = file
        self._checks = checks  # by layer, [regions, neurons]
        self._unchecked = [np.ones(c.shape, np.bool_) for c in checks]
        self._carry_nbytes = max((-(-x.piece_nbytes // BLOCK) * BLOCK for x in layouts), default=0)
        self._buffer_nbytes = self._carry_nbytes + READ_NBYTES
        self._buffer: mmap.mmap | None = mmap.mmap(-1, self._buffer_nbytes)
        self._pool = started_pool(at_once, "rows")

    @property
    def memory_nbytes(self) -> int:
        """Bytes that it holds in memory."""
        return self._buffer_nbytes + sum(
            c.nbytes + u.nbytes for c, u in zip(self._checks, self._unchecked, strict=True)
        )

    @classmethod
    def write(
        cls,
        layouts: Sequence[RowLayout],
        rows: Callable[[int], Callable[[int, int], Sequence[Bytes]]],
        folder: Path | None = None,
        *,
        at_once: int = 1,
    ) -> RowFile:
        """Write all layers into a file in `folder` (by default the cache), to be read by `at_once` requests at a time.

        `rows(layer)` opens a layer; what it returns gives the rows of neurons [start, stop) of each matrix, as bytes
        [neurons, row_nbytes]. One layer is open at a time. Raises ExecutionError where the disk is full or fails, or
        the system gives no thread for each request.
        """
        placed, nbytes = laid_out(layouts)
        file = DirectFile.scratch(cache_dir() if folder is None else folder, nbytes)
        checks: list[NDArray[np.uint32]] = []
        try:
            with BlobWriter(file, nbytes, keep_open=True) as writer:
                for number, layout in enumerate(placed):
                    checks.append(_write_layer(layout, rows(number), writer))
            return cls(file, placed, checks, at_once)
        except BaseException:
            file.close()
            raise

    def read(
        self, layer: int, neurons: Indices, bridge_nbytes: int, reading: Reading
    ) -> Iterator[tuple[int, Indices, Bytes]]:
        """Pieces of `neurons` (ascending): (region, neurons, bytes [neurons, piece_nbytes]) batch by batch.

        The bytes are the reader's until it asks for the next batch. Raises ExecutionError where the file cannot be read
        or its bytes are not those that were written.
        """
        layout = self.layouts[layer]
        for region in range(layout.regions):
            at = layout.begin + region * layout.region_nbytes
            for runs in _batches(read_runs(neurons, layout.piece_nbytes, bridge_nbytes)):
                begin, end, first, stop = runs[0]
                if end - begin > READ_NBYTES:
                    batches = self._run(at, begin, end, neurons[first:stop], layout.piece_nbytes, reading)
                else:
                    batches = self._batch(at, runs, neurons, layout.piece_nbytes, reading)
                for wanted, found in batches:
                    self._check(layer, region, wanted, found)
                    yield region, wanted, found

    def _clean_buffer(self) -> mmap.mmap:
        """The buffer; a new one where reads that nobody has waited for may still write to the one before."""
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, self._buffer_nbytes)
        return self._buffer

    def _batch(
        self, at: int, runs: Sequence[Run], neurons: Indices, piece: int, reading: Reading
    ) -> Iterator[tuple[Indices, Bytes]]:
        """Runs that fit into the buffer together, several requests at once."""
        requests: list[Future[None]] = []
        starts: list[Indices] = []
        done = 0
        buffer = self._clean_buffer()
        self._buffer = None  # until all requests are complete, whatever comes between
        try:
            for begin, end, first, stop in runs:
                target = memoryview(buffer)[done : done + end - begin]
                requests.append(self._pool.submit(self._file.read_into, target, at + begin, chunk=READ_NBYTES))
                starts.append(neurons[first:stop] * piece + (done - begin))
                done += end - begin
            wait(requests)
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        self._buffer = buffer
        for request in requests:
            request.result()
        reading.nbytes += done
        reading.requests += len(runs)
        content = np.frombuffer(buffer, np.uint8)
        rows = np.lib.stride_tricks.sliding_window_view(content, piece)[np.concatenate(starts)]
        yield neurons[runs[0][2] : runs[-1][3]], rows

    def _run(
        self, at: int, begin: int, end: int, wanted: Indices, piece: int, reading: Reading
    ) -> Iterator[tuple[Indices, Bytes]]:
        """One run, in requests of at most READ_NBYTES; what a request has of a piece that it cuts is kept for the next.

        Whole pieces stand in the buffer from `start` on, the first of them at a multiple of `piece` of the region.
        """
        buffer = self._clean_buffer()
        content = np.frombuffer(buffer, np.uint8)
        carry = self._carry_nbytes
        kept = 0  # bytes before the request's that stand before it
        for low in range(begin, end, READ_NBYTES):
            high = min(low + READ_NBYTES, end)
            self._file.read_into(memoryview(buffer)[carry : carry + high - low], at + low, chunk=READ_NBYTES)
            reading.nbytes += high - low
            reading.requests += 1
            origin = -(-(low - kept) // piece)  # the first piece that is there from its beginning
            stop = high // piece
            inside = wanted[np.searchsorted(wanted, origin) : np.searchsorted(wanted, stop)]
            if len(inside):
                start = carry + origin * piece - low
                whole = content[start : start + (stop - origin) * piece].reshape(-1, piece)
                yield inside, whole[inside - origin]
            kept = high - max(stop * piece, low - kept)
            content[carry - kept : carry] = content[carry + high - low - kept : carry + high - low].copy()

    def _check(self, layer: int, region: int, neurons: Indices, found: Bytes) -> None:
        unchecked = self._unchecked[layer][region]
        for row in np.flatnonzero(unchecked[neurons]).tolist():
            neuron = int(neurons[row])
            actual, expected = zlib.crc32(found[row].data), int(self._checks[layer][region, neuron])
            if actual != expected:
                raise ExecutionError(
                    f"neuron {neuron} of layer {layer} is damaged in '{self._file.name}': its CRC-32 should be "
                    f"{expected:08x} and is {actual:08x}; the disk or the memory of this machine is at fault: make the "
                    "module again"
                )
            unchecked[neuron] = False

    def close(self) -> None:
        """Give the file back; again is allowed."""
        self._pool.shutdown()
        self._file.close()


def laid_out(layouts: Sequence[RowLayout]) -> tuple[list[RowLayout], int]:
    """The layers one after another, and the bytes that the file takes."""
    placed: list[RowLayout] = []
    end = 0
    for x in layouts:
        if min(x.neurons, x.row_nbytes, x.matrices) < 1:
            raise InputError(f"a feed-forward layer with a size below 1: {x}")
        placed.append(RowLayout(x.neurons, x.row_nbytes, x.matrices, x.bundled, end))
        end += x.nbytes
    return placed, end


def _write_layer(
    layout: RowLayout, rows: Callable[[int, int], Sequence[Bytes]], writer: BlobWriter
) -> NDArray[np.uint32]:
    assert writer.position == layout.begin, (writer.position, layout)
    checks = np.zeros((layout.regions, layout.neurons), np.uint32)
    band = max(1, PIECE_NBYTES // layout.neuron_nbytes)
    for region in range(layout.regions):
        for start in range(0, layout.neurons, band):
            stop = min(start + band, layout.neurons)
            matrices = rows(start, stop)
            pieces = np.hstack(list(matrices)) if layout.bundled else matrices[region]
            pieces = np.ascontiguousarray(pieces)
            checks[region, start:stop] = [zlib.crc32(p.data) for p in pieces]
            writer.write(pieces.reshape(-1))
        writer.finish_blob()
    return checks
