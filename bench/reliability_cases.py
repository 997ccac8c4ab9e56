"""The seeded random cases of the fault table: run in processes of their own, recorded as they end, continued later."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tensorstow.ir.errors import InputError
from tensorstow.ir.paths import write_atomic
from tests.faults.cases import Done, run_case
from tests.faults.kinds import EXECUTED, MARKS

CASE_LIMIT_S = 180.0
"""A case that takes longer has hung: its strategies are given a second."""
CHUNK = 20
"""Cases that a worker is given at once."""
PROGRESS_EVERY = 200

Case = tuple[int, str]
"""A seed and a kind."""


@dataclass(frozen=True, slots=True)
class Series:
    """Which cases: case i has seed `first` + i; every `every`-th is executed, by the kinds `executed` in turn."""

    first: int
    every: int
    executed: tuple[str, ...] = EXECUTED

    def case(self, number: int) -> Case:
        """The `number`-th case, from 0."""
        if self.every < 1 or number % self.every != self.every - 1:
            return self.first + number, "planned"
        return self.first + number, self.executed[number // self.every % len(self.executed)]


@dataclass
class Record:
    """How cases ended: so many by '`kind`: `status`', what failed with the words that repeat it, and the seconds that
    processors worked."""

    series: Series
    done: int = 0
    ended: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])
    cpu_s: float = 0.0

    def take(self, done: Done, kind: str) -> None:
        """Count one more."""
        self.done += 1
        self.ended[f"{kind}: {done.status}"] += 1
        if done.wrong_bits:
            self.ended[f"{kind}: wrong bits"] += 1
        if done.status == "failed":
            self.failures.append(f"--only {case_name(done.seed, kind)}: {done.what}: {done.said}")
            print(self.failures[-1], file=sys.stderr, flush=True)

    def write(self, path: Path) -> None:
        """As JSON."""
        document = {**vars(self), "series": asdict(self.series), "ended": dict(self.ended)}
        write_atomic(path, json.dumps(document, indent=1).encode() + b"\n")


def case_name(seed: int, kind: str) -> str:
    """What `--only` repeats a case by: its seed, and a letter for its kind."""
    return f"{seed}{MARKS[kind]}"


def parse_case(text: str) -> Case:
    """The case of a name. Raises InputError for what is none."""
    kinds = {mark: kind for kind, mark in MARKS.items()}
    digits = text.rstrip("".join(kinds))
    if not digits.isdigit() or text[len(digits) :] not in kinds:
        raise InputError(f"'{text}' is no case: give a seed, and for one that is executed one of {sorted(kinds)[1:]}")
    return int(digits), kinds[text[len(digits) :]]


def read_record(path: Path, series: Series) -> Record:
    """The record of a series that was begun, or a new one. Raises InputError for that of another series."""
    if not path.exists():
        return Record(series)
    found: dict[str, Any] = json.loads(path.read_text())
    begun = Series(found["series"]["first"], found["series"]["every"], tuple(found["series"]["executed"]))
    if begun != series:
        raise InputError(
            f"'{path}' is of {begun}, and {series} is wanted; give another file, or what it was begun with"
        )
    return Record(series, found["done"], Counter(found["ended"]), found["failures"], found["cpu_s"])


def run_series(series: Series, count: int, jobs: int, path: Path | None) -> Record:
    """The first `count` cases of `series`, without those that `path` has; it is written after every `CHUNK` of them."""
    record = Record(series) if path is None else read_record(path, series)
    todo, began = [series.case(i) for i in range(record.done, count)], time.perf_counter()
    for number, (done, kind, cpu_s) in enumerate(_run_all(todo, jobs), 1):
        record.take(done, kind)
        record.cpu_s += cpu_s
        if path is not None and (number % CHUNK == 0 or number == len(todo)):
            record.write(path)
        if number % PROGRESS_EVERY == 0 or number == len(todo):
            left_s = (time.perf_counter() - began) / number * (len(todo) - number)
            said = f"{record.done} of {count} cases, {len(record.failures)} failed, {left_s:.0f} s to go"
            print(said, file=sys.stderr, flush=True)
    return record


def _run_all(todo: list[Case], jobs: int) -> Iterator[tuple[Done, str, float]]:
    """Each case once, in worker processes, with its kind and the seconds of processor that it took; where a worker dies
    or hangs, its chunk is run again case by case."""
    chunks = [todo[i : i + CHUNK] for i in range(0, len(todo), CHUNK)]
    pool, pending = _pool(jobs), list[tuple[list[Case], Future[list[tuple[Done, float]]]]]()
    while chunks or pending:
        while chunks and len(pending) < 2 * jobs:
            chunk = chunks.pop(0)
            pending.append((chunk, pool.submit(_run_chunk, chunk)))
        chunk, future = pending.pop(0)
        try:
            results = future.result(timeout=CASE_LIMIT_S * len(chunk))
        except (BrokenProcessPool, FutureTimeoutError) as error:
            _end(pool)
            pool, again = _pool(jobs), [c for c, _ in pending]
            pending.clear()
            if len(chunk) > 1:
                chunks[:0] = [[case] for case in chunk] + again
                continue
            chunks[:0] = again
            how = "hung" if isinstance(error, FutureTimeoutError) else "died"
            results = [(Done(chunk[0][0], "its process", "failed", how), 0.0)]
        for (done, cpu_s), (_, kind) in zip(results, chunk, strict=True):
            yield done, kind, cpu_s
    _end(pool)


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _end(pool: ProcessPoolExecutor) -> None:
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.kill()


def _run_chunk(chunk: list[Case]) -> list[tuple[Done, float]]:
    found: list[tuple[Done, float]] = []
    for seed, kind in chunk:
        began = time.process_time()
        found.append((run_case(seed, kind), time.process_time() - began))
    return found
