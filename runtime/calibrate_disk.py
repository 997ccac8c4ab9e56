"""How fast the disk under a folder is: rate, latency, and the request size that reaches the rate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from .directio import BLOCK, DirectFile, disk_full, free_nbytes, never
from .lanes import REQUESTS
from .memory import available_nbytes
from .pages import Pages

_CHUNKS = tuple((256 << 10) << shift for shift in range(7))  # 256 KiB to 16 MiB
_FILE_NBYTES = 1 << 30
_QUICK_FILE_NBYTES = 256 << 20
_LEAST_FILE_NBYTES = 4 * _CHUNKS[-1]  # a request of the largest size in each part
_TARGET_NBYTES = 256 << 20
"""Into so much is read in turn: what a pass reads goes to a place of its own each time, which no cache holds any more.
Small requests that come to one place again and again look as good as large ones, and are not."""
_TARGET_SHARE = 1 / 4  # of the memory that is there
_LATENCY_READS = 64
_PARTS = 4
# A larger request than the smallest one that costs this near the least only delays what waits behind it.
_NEAR_BEST = 0.95
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast requests of one size read, and what a byte takes of a processor core meanwhile, in seconds."""

    bytes_per_s: float
    core_s_per_byte: float

    @property
    def cost_s_per_byte(self) -> float:
        """The disk's time and a core's together: where everything computes, each request takes both from the pass."""
        return 1 / self.bytes_per_s + self.core_s_per_byte


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
    """A file of random bytes without a name, and buffers on such pages as an arena has; gone with the object's end."""

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.nbytes = nbytes
        self.file = DirectFile.scratch(folder, nbytes)
        room = min(_TARGET_NBYTES, int(_TARGET_SHARE * available_nbytes())) // REQUESTS
        self._targets = [Pages(max(room // _CHUNKS[-1], 1) * _CHUNKS[-1]) for _ in range(REQUESTS)]
        for pages in self._targets:
            pages.populate()
        self.buffer = self._targets[0].whole[: _CHUNKS[-1]]
        # Random, so that no layer below can compress or deduplicate it.
        np.frombuffer(self.buffer, np.uint64)[:] = np.random.default_rng(0).integers(
            0, 1 << 63, len(self.buffer) // 8, dtype=np.uint64
        )

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.buffer.release()
        for pages in self._targets:
            pages.close()
        self.file.close()

    def read(self, chunk: int, begin: int, end: int, *, stop: Callable[[], bool] = never) -> Reading:
        """Read bytes [begin, end) in requests of `chunk` bytes, until `stop` says so."""
        return read_rate(self.file, self._targets, iter(range(begin, end, chunk)), chunk, stop=stop)

    def write(self, chunk: int, begin: int, end: int, *, stop: Callable[[], bool] = never) -> float:
        """Write bytes [begin, end) in requests of `chunk` bytes, one after another, until `stop` says so; bytes per
        second of what all of them hold."""
        began = time.perf_counter()
        for offset in range(begin, end, chunk):
            if stop():
                break
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


def read_rate(
    file: DirectFile,
    targets: Sequence[Pages],
    offsets: Iterator[int],
    chunk: int,
    *,
    stop: Callable[[], bool] = never,
) -> Reading:
    """Read `chunk` bytes at each of `offsets`, a thread for each of `targets`, until `stop` says so.

    Each thread goes through its target from the beginning to the end, and again. As many are under way at once as the
    engine of transfers has: another number of them gives another rate.
    """

    def take(target: Pages) -> tuple[int, float]:
        done, at, began = 0, 0, time.thread_time()
        with target.whole as whole:
            for offset in offsets:  # a range's iterator is safe to share: each number goes to one thread
                if stop():
                    break
                with whole[at : at + chunk] as place:
                    file.read_into(place, offset, chunk=chunk)
                done += chunk
                at = at + chunk if at + 2 * chunk <= len(whole) else 0
        return done, time.thread_time() - began

    with ThreadPoolExecutor(len(targets)) as threads:
        began = time.perf_counter()
        taken = list(threads.map(take, targets))
        seconds = time.perf_counter() - began
    done = sum(nbytes for nbytes, _ in taken)
    return Reading(done / seconds, sum(core_s for _, core_s in taken) / max(done, 1))


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
    reads: dict[int, list[Reading]] = {chunk: [] for chunk in chunks}
    for turn in range(_ROUNDS):
        for i, chunk in enumerate(chunks):
            begin = (turn * len(chunks) + i) % _PARTS * part
            reads[chunk].append(scratch.read(chunk, begin, begin + part))
            progress(0.3 + 0.6 * (turn + (i + 1) / len(chunks)) / _ROUNDS)
    disk = Disk(
        read=_direction({c: _best(found) for c, found in reads.items()}, scratch.block_times(write=False)),
        write=_direction({c: Reading(rate, 0.0) for c, rate in writes.items()}, scratch.block_times(write=True)),
        direct=scratch.file.direct,
        file_nbytes=scratch.nbytes,
    )
    progress(1.0)
    return disk


def _best(found: list[Reading]) -> Reading:
    """What a size can do: another load on the box only makes it slower, and only takes more of a core."""
    return Reading(max(r.bytes_per_s for r in found), min(r.core_s_per_byte for r in found))


def choose_chunk(found: Mapping[int, Reading]) -> int:
    """The smallest request size near the least cost of a byte."""
    least = min(r.cost_s_per_byte for r in found.values())
    return min(c for c, r in found.items() if least >= _NEAR_BEST * r.cost_s_per_byte)


def _direction(found: Mapping[int, Reading], block_times: list[float]) -> Direction:
    """With the chosen request size; a request's own latency is in its rate and not counted again."""
    chunk = choose_chunk(found)
    rate = found[chunk].bytes_per_s
    return Direction(bytes_per_s=rate, latency_s=max(0.0, median(block_times) - BLOCK / rate), chunk_nbytes=chunk)
