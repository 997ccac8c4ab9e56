"""What the pages that a disk fills are worth: small and large ones, in turn, for reading and for what computes beside.

`python -m bench pages`: a file is read as a pass reads it, past the page cache, several requests at once, into an arena
of small pages, into one of large pages, and over and over into the first requests' worth of each. Then products with
weights in either arena, alone and while the other kind's twin is filled from the disk without end.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
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
ROUNDS = 5
WIDTH, ROWS = 2048, 128


def _arena(*, large: bool) -> Pages:
    with patch.object(pages, "huge_page_nbytes", pages.huge_page_nbytes if large else lambda: 0):
        made = Pages(FILE_NBYTES)
    made.populate()
    return made


def _read(file: DirectFile, target: memoryview, chunk: int, *, again: bool, stop: Callable[[], bool]) -> float:
    """Read the file once, chunk by chunk, each to its own place or (`again`) each thread to the same one; the time of
    a core that it took, in seconds."""
    offsets, spent = iter(range(0, FILE_NBYTES, chunk)), [0.0] * REQUESTS

    def take(number: int) -> None:
        began = time.thread_time()
        for offset in offsets:
            if stop():
                break
            place = number * chunk if again else offset
            file.read_into(target[place : place + chunk], offset, chunk=chunk)
        spent[number] = time.thread_time() - began

    threads = [threading.Thread(target=take, args=(n,)) for n in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(spent)


def _products(weights: torch.Tensor) -> float:
    """Seconds of one product with each of the weights."""
    x = torch.ones(ROWS, WIDTH)
    began = time.perf_counter()
    for weight in weights:
        torch.nn.functional.linear(x, weight)
    return time.perf_counter() - began


def _beside(file: DirectFile, target: memoryview, weights: torch.Tensor) -> float:
    """`_products` while the file is read over and over."""
    ended = threading.Event()

    def fill() -> None:
        while not ended.is_set():
            _read(file, target, CHUNKS[0], again=False, stop=ended.is_set)

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        return statistics.median(_products(weights) for _ in range(3))
    finally:
        ended.set()
        filling.join()


def main() -> dict[str, Any]:
    """Measure, print, and give the numbers."""
    kinds = ("small", "large")
    arenas = {kind: _arena(large=kind == "large") for kind in kinds}
    twins = {kind: _arena(large=kind == "large") for kind in kinds}
    arenas["small"].whole[:] = bytes(range(256)) * (FILE_NBYTES // 256)  # no layer below answers with zeros
    reads: dict[tuple[str, int, bool], list[tuple[float, float]]] = {}
    products: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    file = DirectFile.scratch(cache_dir(), FILE_NBYTES)
    try:
        file.write_from(arenas["small"].whole, 0, chunk=CHUNKS[-1])
        for _ in range(ROUNDS):
            for kind in kinds:
                for chunk in CHUNKS:
                    for again in (False, True):
                        began = time.perf_counter()
                        core_s = _read(file, arenas[kind].whole, chunk, again=again, stop=lambda: False)
                        rate = FILE_NBYTES / (time.perf_counter() - began)
                        reads.setdefault((kind, chunk, again), []).append((rate / 1e9, core_s * 1e9 / FILE_NBYTES))
        weights = {
            kind: torch.frombuffer(pages.whole, dtype=torch.float32).view(-1, WIDTH, WIDTH).fill_(0.5)
            for kind, pages in arenas.items()
        }
        for _ in range(ROUNDS):
            for kind in kinds:
                products[kind].append((_products(weights[kind]), _beside(file, twins[kind].whole, weights[kind])))
    finally:
        file.close()
    found: dict[str, Any] = {"direct": file.direct, "reads": [], "products": []}
    rows: list[list[str]] = []
    for (kind, chunk, again), runs in reads.items():
        rate, core_s = (statistics.median(column) for column in zip(*runs, strict=True))
        found["reads"].append(
            {"pages": kind, "chunk": chunk, "again": again, "gb_per_s": rate, "core_s_per_gb": core_s}
        )
        rows.append([kind, f"{chunk // MIB} MiB", "the same" if again else "its own", f"{rate:.2f}", f"{core_s:.3f}"])
    table("a file read past the page cache", ("pages", "request", "place of each", "GB/s", "core s a GB"), rows)
    rows = []
    for kind, runs in products.items():
        alone, beside = (statistics.median(column) for column in zip(*runs, strict=True))
        found["products"].append({"pages": kind, "alone_s": alone, "beside_reads_s": beside})
        rows.append([kind, f"{alone:.3f}", f"{beside:.3f}", f"{beside / alone:.2f}"])
    table("products with weights there, in seconds", ("pages", "alone", "while the disk is read", "ratio"), rows)
    return found


if __name__ == "__main__":
    main()
