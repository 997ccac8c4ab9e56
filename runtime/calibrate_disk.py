"""How fast the disk under a folder is: rate, latency, and the request size that reaches the rate."""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from .directio import BLOCK, DirectFile, disk_full, free_nbytes, never
from .transfer import REQUESTS

_CHUNKS = tuple((256 << 10) << shift for shift in range(7))  # 256 KiB to 16 MiB
_FILE_NBYTES = 1 << 30
_QUICK_FILE_NBYTES = 256 << 20
_LEAST_FILE_NBYTES = 4 * _CHUNKS[-1]  # a request of the largest size in each part
_LATENCY_READS = 64
_PARTS = 4
# A larger request than the smallest one that comes this near the best rate only delays what waits behind it.
_NEAR_BEST = 0.97


@dataclass(frozen=True, slots=True)
class Direction:
    """A transfer of n bytes takes latency_s + n / bytes_per_s; `chunk_nbytes` is the request size that reaches it."""

    bytes_per_s: float
    latency_s: float
    chunk_nbytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    """Both directions, whether past the page cache (O_DIRECT), and the bytes of the file that was used."""

    read: Direction
    write: Direction
    direct: bool
    file_nbytes: int


class Scratch:
    """A file of random bytes without a name, and a buffer on pages of its own; both gone with the object's end."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.nbytes = nbytes
        self.file = DirectFile.scratch(folder, nbytes)
        self._map = mmap.mmap(-1, _CHUNKS[-1])
        self._more = [mmap.mmap(-1, _CHUNKS[-1]) for _ in range(REQUESTS - 1)]
        self.buffer = memoryview(self._map)
        # Random, so that no layer below can compress or deduplicate it.
        np.frombuffer(self.buffer, np.uint64)[:] = np.random.default_rng(0).integers(
            0, 1 << 63, len(self.buffer) // 8, dtype=np.uint64
        )

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.buffer.release()
        for one in (self._map, *self._more):
            one.close()
        self.file.close()

    def read(self, chunk: int, begin: int, end: int, *, stop: Callable[[], bool] = never) -> float:
        """Read bytes [begin, end) in requests of `chunk` bytes, until `stop` says so; bytes per second.

        As many are under way at once as the engine of transfers has: another number of them gives another rate.
        """
        offsets = iter(range(begin, end, chunk))  # whose next is for one thread alone

        def take(target: mmap.mmap) -> int:
            done = 0
            with memoryview(target) as buffer:
                for offset in offsets:
                    if stop():
                        break
                    self.file.read_into(buffer[:chunk], offset, chunk=chunk)
                    done += chunk
            return done

        with ThreadPoolExecutor(REQUESTS) as threads:
            began = time.perf_counter()
            done = sum(threads.map(take, (self._map, *self._more)))
            return done / (time.perf_counter() - began)

    def write(self, chunk: int, begin: int, end: int) -> float:
        """Write bytes [begin, end) in requests of `chunk` bytes, one after another; bytes per second."""
        began = time.perf_counter()
        for offset in range(begin, end, chunk):
            self.file.write_from(self.buffer[:chunk], offset, chunk=chunk)
        return len(range(begin, end, chunk)) * chunk / (time.perf_counter() - began)

    def block_times(self, *, write: bool) -> list[float]:
        """Seconds of single blocks at random offsets."""
        choose = random.Random(0)
        offsets = [choose.randrange(self.nbytes // BLOCK) * BLOCK for _ in range(_LATENCY_READS)]
        transfer = self.file.write_from if write else self.file.read_into
        times: list[float] = []
        for offset in offsets:
            begin = time.perf_counter()
            transfer(self.buffer[:BLOCK], offset)
            times.append(time.perf_counter() - begin)
        return times


def scratch_nbytes(folder: Path, *, quick: bool) -> int:
    """Bytes of the file to measure with: at most half of what is free. Raises ExecutionError where that is too few."""
    free = free_nbytes(folder)
    wanted = _QUICK_FILE_NBYTES if quick else _FILE_NBYTES
    nbytes = min(wanted, free // 2) // _LEAST_FILE_NBYTES * _LEAST_FILE_NBYTES
    if nbytes < _LEAST_FILE_NBYTES:
        raise disk_full(folder, 2 * _LEAST_FILE_NBYTES, free)
    return nbytes


def measure_disk(scratch: Scratch, *, quick: bool, progress: Callable[[float], None]) -> Disk:
    """Rates and latencies of the disk under `scratch`, whose content is written anew.

    The file is written first: a block that was reserved but never written would be answered with zeros, from no disk.
    Each chunk size then has a part of the file of its own in each round, so that nothing is read twice in a row.
    """
    chunks = _CHUNKS[2::2] if quick else _CHUNKS
    part = scratch.nbytes // _PARTS
    middle = chunks[len(chunks) // 2]
    writes = {middle: scratch.write(middle, 0, scratch.nbytes)}
    progress(0.2)
    for i, chunk in enumerate(() if quick else (chunks[2], chunks[-1])):
        writes[chunk] = scratch.write(chunk, i * part, (i + 1) * part)
    reads: dict[int, list[float]] = {chunk: [] for chunk in chunks}
    rounds = 1 if quick else 2
    for turn in range(rounds):
        for i, chunk in enumerate(chunks):
            begin = (turn * len(chunks) + i) % _PARTS * part
            reads[chunk].append(scratch.read(chunk, begin, begin + part))
            progress(0.3 + 0.6 * (turn + (i + 1) / len(chunks)) / rounds)
    disk = Disk(
        read=_direction({c: max(rates) for c, rates in reads.items()}, scratch.block_times(write=False)),
        write=_direction(writes, scratch.block_times(write=True)),
        direct=scratch.file.direct,
        file_nbytes=scratch.nbytes,
    )
    progress(1.0)
    return disk


def _direction(rates: dict[int, float], block_times: list[float]) -> Direction:
    """The smallest chunk near the best rate; its request's own latency is in that rate and not counted again."""
    best = max(rates.values())
    chunk = min(c for c, rate in rates.items() if rate >= _NEAR_BEST * best)
    latency = max(0.0, median(block_times) - BLOCK / rates[chunk])
    return Direction(bytes_per_s=rates[chunk], latency_s=latency, chunk_nbytes=chunk)
