"""Tests of runtime/alone.py, by an executor: threads share one, an end waits for a pass, a child of a fork is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.ir.plan import Plan
from tensorstow.runtime.onnx_executor import OnnxExecutor
from tensorstow.runtime.pages import Pages

from .build import Net, same_bits
from .plans import execute, feed, mlp, streamed


def _resident(net: Net) -> Plan:
    return net.resident()


def _behind_first_step(executor: OnnxExecutor, do: Callable[[], object]) -> None:
    """From now on `do` is called in each pass, when the first step has run."""
    calls = executor._calls  # pyright: ignore[reportPrivateUsage]
    call, binding, opaque, waits = calls[0]

    def and_do(binding: Any, options: Any) -> None:
        call(binding, options)
        do()

    calls[0] = (and_do, binding, opaque, waits)


@pytest.mark.parametrize("planned", [_resident, streamed])
def test_threads_that_share_an_executor_each_get_their_own_bits(tmp_path: Path, planned: Callable[[Net], Plan]) -> None:
    net = mlp(tmp_path)
    expected = [net.reference(feed(seed)) for seed in range(4)]
    with execute(net, planned(net)) as executor:
        executor.load()
        _behind_first_step(executor, lambda: time.sleep(0.005))
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(executor.run, map(feed, range(4))))
    assert all(same_bits(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_close_waits_for_the_pass_that_another_thread_runs(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    started, go = threading.Event(), threading.Event()
    executor = execute(net, streamed(net))
    executor.load()
    _behind_first_step(executor, lambda: (started.set(), go.wait(10)))
    with ThreadPoolExecutor(2) as threads:
        passing = threads.submit(executor.run, feed())
        assert started.wait(10)
        closing = threads.submit(executor.close)
        time.sleep(0.05)
        early = executor.closed or closing.done()
        go.set()
        assert not early
        assert same_bits(passing.result(10), net.reference(feed()))
        closing.result(10)
    assert executor.closed


def test_an_end_that_is_asked_for_amid_a_pass_comes_behind_it(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    executor = execute(net, streamed(net))
    executor.load()
    _behind_first_step(executor, executor.close)  # as the handler of a signal may
    found = executor.run(feed())
    assert executor.closed
    assert same_bits(found, net.reference(feed()))


def test_a_pass_amid_a_pass_is_refused(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    with execute(net, net.resident()) as executor:
        executor.load()
        said: list[str] = []

        def again() -> None:
            with pytest.raises(ExecutionError) as caught:
                executor.run(feed(2))
            said.append(str(caught.value))

        _behind_first_step(executor, again)
        assert same_bits(executor.run(feed()), net.reference(feed()))
    assert len(said) == 1
    assert "amid a pass" in said[0]


def _status_of_child(does: Callable[[], bool]) -> int | None:
    """0 where `does` says yes in the child of a fork, 1 where not, 2 where it raises; None where it never returns."""
    child = os.fork()
    if not child:
        status = 2
        try:
            status = 0 if does() else 1
        finally:
            os._exit(status)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_child_of_a_fork_is_told_that_nothing_moves_there(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    with execute(net, streamed(net)) as executor:
        executor.run(feed())

        def refused() -> bool:
            try:
                executor.run(feed())
            except ExecutionError as error:
                return "a child of process" in str(error)
            return False

        assert _status_of_child(refused) == 0
        assert same_bits(executor.run(feed(2)), net.reference(feed(2)))


def test_a_child_of_a_fork_closes_whatever_the_threads_held_just_then(tmp_path: Path) -> None:
    net = mlp(tmp_path)
    with execute(net, streamed(net)) as executor:
        executor.run(feed())
        lock = executor._memory.engine._lock  # pyright: ignore[reportPrivateUsage]

        def closed() -> bool:
            executor.close()
            return executor.closed

        with lock:
            assert _status_of_child(closed) == 0
        assert not executor.closed
        assert same_bits(executor.run(feed(2)), net.reference(feed(2)))


def test_pages_that_are_kept_from_children_hold_what_was_written_here_alone() -> None:
    pages = Pages(3 << 20)
    pages.populate()
    pages.whole[0] = pages.whole[-1] = 7
    assert _status_of_child(lambda: pages.whole[0] == pages.whole[-1] == 7) == 0
    if not pages.keep_from_children():
        pytest.skip("this kernel gives children all pages")
    assert _status_of_child(lambda: pages.whole[0] == pages.whole[-1] == 0) == 0
    assert pages.whole[0] == pages.whole[-1] == 7
    pages.close()
