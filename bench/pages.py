"""What the pages that a disk fills are worth, and how reading and computing get on with one another.

`python -m bench pages`: a file is read as a pass reads it, past the page cache, several requests at once, into an arena
of small pages, into one of large pages, and over and over into the first requests' worth of each. Then products with
weights in an arena of large pages, alone and while another one is filled from the disk without end, by more and fewer
requests at once, larger and smaller: what both lose.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import torch

from tensorstow.ir.paths import cache_dir
from tensorstow.runtime import pages
from tensorstow.runtime.directio import DirectFile
from tensorstow.runtime.lanes import REQUESTS
from tensorstow.runtime.pages import Pages

from .common import MIB, table

FILE_NBYTES = 512 * MIB
CHUNKS = (1 * MIB, 4 * MIB)
BESIDE = tuple((threads, chunk * MIB) for chunk in (1, 4, 16) for threads in (2, 4))
"""Requests at once, and the bytes of each."""
ROUNDS = 5
MOMENT_S = 0.4
WIDTH, ROWS = 2048, 128


def _arena(*, large: bool) -> Pages:
    with patch.object(pages, "huge_page_nbytes", pages.huge_page_nbytes if large else lambda: 0):
        made = Pages(FILE_NBYTES)
    made.populate()
    return made


def _read(
    file: DirectFile, target: memoryview, chunk: int, *, again: bool, threads: int = REQUESTS, stop: Event | None = None
) -> tuple[float, int]:
    """Read the file once, chunk by chunk, each to its own place or (`again`) each thread to the same one; the time of
    a core that it took, in seconds, and the bytes that were read before `stop` was set."""
    offsets, spent, done = iter(range(0, FILE_NBYTES, chunk)), [0.0] * threads, [0] * threads

    def take(number: int) -> None:
        began = time.thread_time()
        for offset in offsets:
            if stop is not None and stop.is_set():
                break
            place = number * chunk if again else offset
            file.read_into(target[place : place + chunk], offset, chunk=chunk)
            done[number] += chunk
        spent[number] = time.thread_time() - began

    readers = [Thread(target=take, args=(n,)) for n in range(threads)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return sum(spent), sum(done)


def _products(weights: torch.Tensor) -> float:
    """Seconds of a product with each of the weights, in the mean over a moment."""
    x = torch.ones(ROWS, WIDTH)
    began, rounds = time.perf_counter(), 0
    while time.perf_counter() - began < MOMENT_S:
        for weight in weights:
            torch.nn.functional.linear(x, weight)
        rounds += 1
    return (time.perf_counter() - began) / rounds


def _beside(file: DirectFile, target: memoryview, threads: int, chunk: int, meanwhile: Callable[[], Any]) -> float:
    """GB/s of reading the file over and over while `meanwhile` runs."""
    ended, found = Event(), [0]

    def fill() -> None:
        while not ended.is_set():
            found[0] += _read(file, target, chunk, again=False, threads=threads, stop=ended)[1]

    filling, began = Thread(target=fill), time.perf_counter()
    filling.start()
    try:
        meanwhile()
    finally:
        ended.set()
        filling.join()
    return found[0] / (time.perf_counter() - began) / 1e9


def _reads(file: DirectFile, arenas: dict[str, Pages]) -> list[dict[str, Any]]:
    """Of each kind of pages, size of request and place: medians of rounds in turn."""
    runs: dict[tuple[str, int, bool], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for kind, arena in arenas.items():
            for chunk in CHUNKS:
                for again in (False, True):
                    began = time.perf_counter()
                    core_s, nbytes = _read(file, arena.whole, chunk, again=again)
                    rate = nbytes / (time.perf_counter() - began)
                    runs.setdefault((kind, chunk, again), []).append((rate / 1e9, core_s * 1e9 / nbytes))
    found: list[dict[str, Any]] = []
    for (kind, chunk, again), pairs in runs.items():
        rate, core_s = (statistics.median(column) for column in zip(*pairs, strict=True))
        found.append({"pages": kind, "chunk": chunk, "again": again, "gb_per_s": rate, "core_s_per_gb": core_s})
    return found


def _both(file: DirectFile, weights: torch.Tensor, target: memoryview) -> list[dict[str, Any]]:
    """Reading alone, products alone, and each beside the other: medians of rounds in turn."""
    runs: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for _ in range(ROUNDS):
        for way in BESIDE:
            alone = _beside(file, target, *way, lambda: time.sleep(MOMENT_S))
            quiet, took = _products(weights), list[float]()
            rate = _beside(file, target, *way, lambda took=took: took.append(_products(weights)))
            runs.setdefault(way, []).append((alone, rate, took[0] / quiet))
    found: list[dict[str, Any]] = []
    for (threads, chunk), triples in runs.items():
        alone, rate, longer = (statistics.median(column) for column in zip(*triples, strict=True))
        entry = {"threads": threads, "chunk": chunk, "alone_gb_per_s": alone, "beside_gb_per_s": rate}
        found.append(entry | {"products": longer})
    return found


def main() -> dict[str, Any]:
    """Measure, print, and give the numbers."""
    arenas = {kind: _arena(large=kind == "large") for kind in ("small", "large")}
    twin = _arena(large=True)
    arenas["small"].whole[:] = bytes(range(256)) * (FILE_NBYTES // 256)  # no layer below answers with zeros
    file = DirectFile.scratch(cache_dir(), FILE_NBYTES)
    try:
        file.write_from(arenas["small"].whole, 0, chunk=CHUNKS[-1])
        reads = _reads(file, arenas)
        weights = torch.frombuffer(arenas["large"].whole, dtype=torch.float32).view(-1, WIDTH, WIDTH)[:16].fill_(0.5)
        both = _both(file, weights, twin.whole)
    finally:
        file.close()
    rows: list[list[str]] = []
    for r in reads:
        place, rate = "the same" if r["again"] else "its own", f"{r['gb_per_s']:.2f}"
        rows.append([r["pages"], f"{r['chunk'] // MIB} MiB", place, rate, f"{r['core_s_per_gb']:.3f}"])
    table("a file read past the page cache", ("pages", "request", "place of each", "GB/s", "core s a GB"), rows)
    rows = []
    for r in both:
        alone, beside, longer = (f"{r[key]:.2f}" for key in ("alone_gb_per_s", "beside_gb_per_s", "products"))
        rows.append([str(r["threads"]), f"{r['chunk'] // MIB} MiB", alone, beside, longer])
    columns = ("requests at once", "of", "GB/s alone", "GB/s beside products", "products, times as long")
    table("reading beside products, both in large pages", columns, rows)
    return {"direct": file.direct, "reads": reads, "both": both}


if __name__ == "__main__":
    main()
