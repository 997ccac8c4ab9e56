"""Tests of runtime/transfer.py: lanes, instants, waits, failures, ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime import transfer
from tensorstow.runtime.directio import TransferCancelledError
from tensorstow.runtime.lanes import Cancelled, Job
from tensorstow.runtime.transfer import Engine


class Log:
    """Who moved what, in which order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def job(self, name: str, after: int, **options: object) -> Job:
        """A job that notes its name."""
        return Job(name, 1, after, (lambda _: self.names.append(name),), **options)  # type: ignore[arg-type]


def _soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_a_lane_keeps_to_its_order_and_to_the_clock() -> None:
    log = Log()
    engine = Engine({"in": [log.job("a", 1), log.job("b", 0), log.job("c", 2)]}, period=3)
    lane = engine.lanes["in"]
    engine.arrive(0)
    time.sleep(0.02)
    assert log.names == []  # b may start, but stands behind a
    engine.arrive(1)
    engine.wait(lane, 2)
    assert log.names == ["a", "b"]
    engine.arrive(5)
    engine.wait(lane, 6)
    assert log.names == ["a", "b", "c", "a", "b", "c"]
    engine.close()


def test_a_job_waits_for_jobs_of_other_lanes() -> None:
    log, gate = Log(), threading.Event()

    def store(_: Cancelled) -> None:
        gate.wait(5)
        log.names.append("store")

    lanes = {
        "out": [Job("store", 1, 0, (store,), inward=False)],
        "in": [log.job("load", 0, waits=(("out", 0, 0),)), log.job("again", 0, waits=(("out", 0, 1),))],
    }
    engine = Engine(lanes, period=1)
    engine.arrive(0)
    time.sleep(0.02)
    assert log.names == []
    gate.set()
    engine.wait(engine.lanes["in"], 2)
    assert log.names == ["store", "load", "again"]
    assert (engine.lanes["in"].read_nbytes, engine.lanes["out"].written_nbytes) == (2, 1)
    engine.close()


def test_an_error_reaches_whoever_waits_and_a_reset_forgets_it() -> None:
    fail = [True]

    def move(_: Cancelled) -> None:
        if fail[0]:
            raise ExecutionError("disk on fire")

    engine = Engine({"in": [Job("a", 1, 0, (move,)), Job("b", 1, 0, (move,))]}, period=1)
    engine.arrive(0)
    with pytest.raises(ExecutionError, match="disk on fire"):
        engine.wait(engine.lanes["in"], 2)
    fail[0] = False
    engine.reset()
    engine.arrive(0)
    engine.wait(engine.lanes["in"], 2)
    engine.close()


def test_reset_and_close_cut_short_what_is_under_way() -> None:
    started = threading.Event()

    def endless(cancelled: Cancelled) -> None:
        started.set()
        while not cancelled():
            time.sleep(0.001)
        raise TransferCancelledError

    before = set(threading.enumerate())
    engine = Engine({"in": [Job("a", 1, 0, (endless,))]}, period=1)
    for _ in range(3):
        started.clear()
        engine.arrive(0)
        assert started.wait(5)
        engine.reset()
    engine.arrive(0)
    assert started.wait(5)
    begin = time.monotonic()
    engine.close()
    engine.close()
    assert time.monotonic() - begin < 2
    assert not any(t.name.startswith("tensorstow") for t in set(threading.enumerate()) - before)


def test_no_wake_up_is_ever_lost() -> None:
    steps, passes = 50, 60
    log = Log()
    lanes = {
        "in": [log.job("x", t) for t in range(steps)],
        "out": [log.job("y", t, waits=(("in", t, 0),)) for t in range(steps)],
    }
    engine = Engine(lanes, period=steps)
    done = threading.Event()

    def compute() -> None:
        for instant in range(steps * passes):
            engine.arrive(instant)
            for lane in engine.lanes.values():
                if lane.done < instant + 1:
                    engine.wait(lane, instant + 1)
        done.set()

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    assert done.wait(30)
    assert len(log.names) == 2 * steps * passes
    engine.close()
    assert _soon(lambda: not thread.is_alive())


def test_requests_of_a_transfer_overlap_but_transfers_complete_in_order() -> None:
    both = threading.Barrier(2, timeout=5)
    log: list[str] = []

    def meet(_: Cancelled) -> None:
        both.wait()

    engine = Engine({"in": [Job("a", 2, 0, (meet, meet)), Job("b", 1, 0, (lambda _: log.append("b"),))]}, period=1)
    engine.arrive(0)
    engine.wait(engine.lanes["in"], 2)
    assert log == ["b"]
    assert engine.lanes["in"].read_nbytes == 3
    engine.close()


def test_a_lane_of_loads_and_stores_runs_one_at_a_time() -> None:
    running, most = [0], [0]

    def move(_: Cancelled) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.002)
        running[0] -= 1

    engine = Engine({"bus": [Job("a", 1, 0, (move, move)), Job("b", 1, 0, (move,), inward=False)]}, period=1)
    engine.arrive(3)
    engine.wait(engine.lanes["bus"], 8)
    assert most == [1]
    engine.close()


def test_a_closed_engine_says_so() -> None:
    log = Log()
    engine = Engine({"in": [log.job("a", 0)]}, period=1)
    lane = engine.lanes["in"]
    engine.close()
    engine.arrive(0)
    with pytest.raises(ExecutionError, match="closed"):
        engine.wait(lane, 1)
    with pytest.raises(ExecutionError, match="closed"):
        engine.reset()
    engine.settle()
    engine.close()


def test_whoever_waits_is_told_that_the_engine_was_closed() -> None:
    log = Log()
    engine = Engine({"in": [log.job("a", 0), log.job("b", 5)]}, period=6)
    engine.arrive(0)
    closing = threading.Timer(0.05, engine.close)
    closing.start()
    with pytest.raises(ExecutionError, match="closed"):
        engine.wait(engine.lanes["in"], 2)
    closing.join()


def test_who_waits_for_a_job_is_woken_when_it_is_complete_and_not_before() -> None:
    waiting = threading.Event()

    def move(_: Cancelled) -> None:
        waiting.wait(5)

    engine = Engine({"in": [Job("a", 8, 0, (move,) * 8), Job("b", 8, 0, (move,) * 8)]}, period=1)
    changed, woken = engine._changed, list[int]()  # pyright: ignore[reportPrivateUsage]
    notify_all = changed.notify_all
    engine.arrive(0)
    waiter = threading.Thread(target=engine.wait, args=(engine.lanes["in"], 2))
    waiter.start()
    assert _soon(lambda: engine._sleepers == 1)  # pyright: ignore[reportPrivateUsage]

    def counted() -> None:
        woken.append(engine.lanes["in"].done)
        notify_all()

    changed.notify_all = counted
    waiting.set()
    waiter.join(5)
    assert not waiter.is_alive()
    assert woken in ([1, 2], [2])  # both at once, where the last request of the second was faster
    engine.close()


def test_an_interrupt_on_the_way_into_the_lock_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a lock is taken by Python code, a signal may be handled between its taking and the first line behind it."""

    class Interrupted(threading.Condition):
        def __enter__(self) -> bool:
            super().__enter__()
            raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "threading", SimpleNamespace(**(vars(threading) | {"Condition": Interrupted})))
    engine = Engine({"in": [Job("a", 1, 0, (lambda _: None,))]}, period=1)

    def use() -> None:
        engine.arrive(0)
        engine.wait(engine.lanes["in"], 1)
        engine.close()

    user = threading.Thread(target=use, daemon=True)
    user.start()
    user.join(5)
    assert not user.is_alive()
    assert engine.lanes["in"].done == 1
