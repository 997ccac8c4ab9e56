"""Tests of runtime/passes.py: what is given back when an executor is forgotten, in whatever thread that is noticed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorstow.runtime import passes
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.directio import DirectFile
from tensorstow.runtime.lanes import Cancelled, Job, Lane
from tensorstow.runtime.transfer import Engine

pytestmark = pytest.mark.filterwarnings("error")


class Forgotten:
    """A cycle that gives its resources back when it is collected."""

    def __init__(self, close: Callable[[], None]) -> None:
        self.itself = self
        self.finalizer = weakref.finalize(self, close)


@pytest.fixture
def by_hand() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("locked", [False, True])
def test_what_is_collected_in_a_thread_of_its_own_lane_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    resources = passes._Resources()  # pyright: ignore[reportPrivateUsage]
    owner: list[Any] = [Forgotten(resources.close)]

    def collected(_: object = None) -> None:
        owner.clear()
        gc.collect()

    if locked:
        complete = Lane.complete

        def and_collect(lane: Lane, number: int) -> None:
            complete(lane, number)
            collected()

        monkeypatch.setattr(Lane, "complete", and_collect)

    def move(_: Cancelled) -> None:
        if not locked:
            collected()

    arena, scratch = resources.take(Arena(4096)), DirectFile.scratch(tmp_path, 4096)
    resources.scratch = scratch
    resources.engine = engine = Engine({"in": [Job("a", 1, 0, (move,))], "out": [Job("b", 1, 9, (move,))]}, period=10)
    threads = [t for t in threading.enumerate() if t.name in ("tensorstow in", "tensorstow out")]
    assert len(threads) > 2
    engine.arrive(0)
    assert _soon(lambda: arena.closed)
    assert _soon(lambda: scratch.descriptor < 0)
    assert not any(t.is_alive() for t in threads)
    assert resources.engine is None
