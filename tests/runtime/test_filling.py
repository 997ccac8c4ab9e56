"""Tests of runtime/filling.py, and that what is resident is filled by as many requests as a lane has."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime.filling import run_together
from tensorstow.runtime.lanes import REQUESTS, Cancelled
from tensorstow.runtime.store import WeightStore

from .build import same_bits
from .plans import execute, feed, mlp


def test_so_many_run_at_once_and_all_are_run() -> None:
    together, done = threading.Barrier(REQUESTS, timeout=10), list[int]()

    def move(number: int) -> None:
        together.wait()
        done.append(number)

    run_together([lambda _, n=n: move(n) for n in range(4 * REQUESTS)])
    assert sorted(done) == list(range(4 * REQUESTS))
    run_together([])


def test_what_fails_is_raised_when_nothing_is_under_way_and_the_rest_is_not_begun() -> None:
    other, ended, begun = threading.Event(), list[bool](), list[int]()

    def fails(_: Cancelled) -> None:
        assert other.wait(10)
        raise ExecutionError("disk on fire")

    def under_way(cancelled: Cancelled) -> None:
        other.set()
        end = time.monotonic() + 10
        while not cancelled() and time.monotonic() < end:
            time.sleep(0.001)
        ended.append(cancelled())

    with pytest.raises(ExecutionError, match="disk on fire"):
        run_together([fails, under_way, *[lambda _, n=n: begun.append(n) for n in range(5)]], at_once=2)
    assert (ended, begun) == ([True], [])
    assert not any(t.name == "tensorstow filling" for t in threading.enumerate())


def test_the_resident_set_is_read_by_several_requests_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = mlp(tmp_path)
    read, lock, counted = WeightStore.read, threading.Lock(), [0, 0]  # under way, and the most of them

    def slowly(store: WeightStore, *given: Any, **options: Any) -> None:
        with lock:
            counted[0] += 1
            counted[1] = max(counted)
        time.sleep(0.01)
        read(store, *given, **options)
        with lock:
            counted[0] -= 1

    monkeypatch.setattr(WeightStore, "read", slowly)
    with execute(net, net.resident()) as executor:
        assert executor.load() == sum(b.nbytes for b in net.blobs)
        assert counted == [0, REQUESTS]
        assert same_bits(executor.run(feed()), net.reference(feed()))
