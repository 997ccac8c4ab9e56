"""Plan-run cycles leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.cycles import cycle_many


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_cycles_of_planning_and_running_leave_nothing_behind(tmp_path: Path, count: int) -> None:
    left = cycle_many(tmp_path, count)
    assert left.nothing, left
