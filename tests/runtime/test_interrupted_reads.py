"""Tests of runtime/module/: what is left of reads that were interrupted, or that no thread was there for."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime.module import sparse_rows
from tensorstow.runtime.module.experts_cache import ExpertCache
from tensorstow.runtime.module.experts_stats import ExpertStats
from tensorstow.runtime.module.readers import started_pool
from tensorstow.runtime.module.sparse_rows import Reading, RowFile, RowLayout


class Slots:
    """What the slots of a cache hold, written by its pool; `go` lets loads through."""

    def __init__(self, objects: int, slots: int, pool: ThreadPoolExecutor) -> None:
        self.content = [-1] * slots
        self.go = threading.Event()
        self.go.set()
        self.slow = -1  # an expert that takes its time
        self.cache = ExpertCache(objects, slots, self.load, pool, stats=ExpertStats())

    def load(self, expert: int, slot: int) -> None:
        assert self.go.wait(30)
        if expert == self.slow:
            sleep(0.1)
        self.content[slot] = expert

    def check(self, *wanted: int) -> None:
        """One event: every expert lies in its slot when it is used."""
        self.cache.begin(wanted)
        for expert in sorted(wanted):
            assert self.content[self.cache.need(expert)] == expert
        self.cache.end()
        assert len(set(self.cache.slot_of.values())) == len(self.cache.slot_of) <= self.cache.slots


def fail_once(monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor, error: BaseException, *, queued: bool) -> None:
    """The next `submit` raises, before or after it has handed in what it was given."""
    submit = pool.submit

    def failing(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(pool, "submit", submit)
        if queued:
            submit(*args, **kwargs)
        raise error

    monkeypatch.setattr(pool, "submit", failing)


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("can't start new thread")])
def test_an_expert_is_not_there_because_somebody_wanted_to_load_it(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, queued: bool
) -> None:
    with ThreadPoolExecutor(1) as pool:
        slots = Slots(6, 2, pool)
        slots.check(0, 1)
        slots.go.clear()
        busy = pool.submit(slots.go.wait)  # what is handed in stays in the queue for now
        fail_once(monkeypatch, pool, error, queued=queued)
        with pytest.raises(type(error)):
            slots.cache.begin([2])
        slots.go.set()
        assert busy.result(30)
        for wanted in ([2, 3], [0, 1], [4], [2, 5], [0, 3]):
            slots.check(*wanted)


@pytest.mark.parametrize("wanted", [[2], [2, 3]])
def test_what_an_interrupted_load_still_writes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, wanted: list[int]
) -> None:
    """It runs already when the interrupt comes."""
    with ThreadPoolExecutor(2) as pool:
        slots = Slots(6, 2, pool)
        slots.check(0, 1)
        slots.go.clear()
        slots.slow = 2
        running = threading.Event()
        submit, waited = pool.submit, slots.go.wait

        def waiting(timeout: float) -> bool:
            running.set()
            return waited(timeout)

        def interrupted(*args: Any) -> Any:
            submit(*args)
            assert running.wait(30)
            raise KeyboardInterrupt

        monkeypatch.setattr(slots.go, "wait", waiting)
        monkeypatch.setattr(pool, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slots.cache.begin(wanted)
        monkeypatch.setattr(pool, "submit", submit)
        slots.go.set()
        for again in ([4, 5], [4, 5], wanted, [0, 1]):
            slots.check(*again)
            sleep(0.15)


def test_slots_that_an_interrupt_lost_are_found_again() -> None:
    with ThreadPoolExecutor(1) as pool:
        slots = Slots(6, 3, pool)
        slots.check(0, 1, 2)
        slots.cache._drop(1)  # pyright: ignore[reportPrivateUsage] - and nobody takes its slot
        slots.check(3, 4, 5)
        slots.check(0, 1, 2)
        assert sorted(slots.cache.slot_of.values()) == [0, 1, 2]


@contextmanager
def few_threads(monkeypatch: pytest.MonkeyPatch, allowed: int) -> Generator[None]:
    """The system starts so many threads more."""
    start = threading.Thread.start
    left = allowed

    def starting(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", starting)
        yield


def test_a_pool_has_its_threads_before_its_first_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = threading.active_count()
    pool = started_pool(3, "something")
    try:
        assert threading.active_count() == before + 3
        with few_threads(monkeypatch, 0):
            assert list(pool.map(str, range(3))) == ["0", "1", "2"]
    finally:
        pool.shutdown()
    with few_threads(monkeypatch, 2), pytest.raises(ExecutionError, match="gives 2 of the 3 threads that read 'some"):
        started_pool(3, "something")
    with few_threads(monkeypatch, 1), pytest.raises(ExecutionError, match="gives 1 of the 4 threads"):
        rows_file(tmp_path, at_once=4)
    assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


ROWS = np.random.default_rng(0).integers(0, 256, (400, 4096), np.uint8)


def rows_file(folder: Path, at_once: int) -> RowFile:
    """A file of one layer, whose neuron n has ROWS[n]."""
    layout = RowLayout(len(ROWS), ROWS.shape[1], 1, bundled=True)
    return RowFile.write([layout], lambda _: lambda a, b: [ROWS[a:b]], folder, at_once=at_once)


def rows_of(file: RowFile, wanted: list[int]) -> Any:
    found = np.zeros_like(ROWS)
    for _, neurons, rows in file.read(0, np.array(wanted, np.int64), 0, Reading()):
        found[neurons] = rows
    return found[wanted]


@pytest.mark.parametrize("where", ["wait", "submit"])
def test_reads_of_an_interrupted_call_do_not_land_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    file: Any = rows_file(tmp_path, at_once=4)  # three of them will be late
    read, late, begun, go = file._file.read_into, [390, 394, 398], threading.Semaphore(0), threading.Event()

    def slow(target: memoryview, at: int, **options: Any) -> None:
        begun.release()
        if at >= 380 * 4096:
            assert go.wait(30)
        read(target, at, **options)

    def interrupted(*_: Any) -> None:
        assert begun.acquire(timeout=30)
        raise KeyboardInterrupt

    try:
        with monkeypatch.context() as patch:
            patch.setattr(file._file, "read_into", slow)
            if where == "wait":
                patch.setattr(sparse_rows, "wait", interrupted)
            else:
                submit = file._pool.submit

                def submit_and_stop(*args: Any, **options: Any) -> None:
                    submit(*args, **options)
                    interrupted()

                patch.setattr(file._pool, "submit", submit_and_stop)
            with pytest.raises(KeyboardInterrupt):
                rows_of(file, late)
        wanted = [2, 5, 9]
        with monkeypatch.context() as patch:  # when the next call has read, the reads of the one before end
            wait: Any = sparse_rows.wait

            def then_late(requests: Any) -> None:
                wait(requests)
                go.set()
                file._pool.shutdown()
                file._pool = started_pool(4, "rows")

            patch.setattr(sparse_rows, "wait", then_late)
            assert (rows_of(file, wanted) == ROWS[wanted]).all()
        assert (rows_of(file, late) == ROWS[late]).all()
        assert (rows_of(file, list(range(400))) == ROWS).all()
    finally:
        go.set()
        file.close()
