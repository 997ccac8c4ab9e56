"""Tests of what tensorstow/execute.py measures: passes as they follow one another, each block beside its controls."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tensorstow import execute
from tensorstow.executors import Executor
from tensorstow.hosts import silent
from tensorstow.runtime import memory
from tensorstow.runtime.passes import Stats


class Box:
    """An executor on a box that becomes slower from fill to fill; a pass behind a fill takes ten times as long."""

    def __init__(self) -> None:
        self.fills = 0
        self.fresh = False
        self.stats = Stats()

    def load(self) -> int:
        self.fills += 1
        self.fresh = True
        return 5

    def run(self, inputs: object) -> dict[str, Any]:
        seconds = self.fills * (10.0 if self.fresh else 1.5)
        self.stats, self.fresh = Stats(seconds, read_nbytes=0 if self.fresh else 7), False
        return {"y": seconds}

    def compute_only(self) -> float:
        return 1.0 * self.fills

    def io_only(self) -> float:
        return 0.5 * self.fills


@pytest.mark.parametrize("repeat", [1, 2, 5, 7])
def test_the_pass_behind_a_fill_is_not_counted(repeat: int) -> None:
    measure = execute._measure  # pyright: ignore[reportPrivateUsage]
    found = measure(cast("Executor", Box()), {}, repeat, silent)
    blocks = min(repeat, 3)
    assert len(found.passes_s) == repeat
    assert set(found.passes_s) == {1.5 * (1 + i) for i in range(blocks)}
    assert found.read_nbytes == 7 * repeat
    assert found.over_limit == [1.5] * blocks  # however slow the box has become
    assert found.load_nbytes == 5


def test_resident_memory_is_told_by_what_lies_there() -> None:
    kinds = memory.resident_nbytes()
    if not kinds:
        pytest.skip("this kernel does not tell")
    assert kinds["anonymous"] > 1 << 20
    assert abs(sum(kinds.values()) - memory.current_rss_nbytes()) < 8 << 20
