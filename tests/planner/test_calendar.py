"""The calendar of a cyclic pass against sets of steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from tensorstow.planner import calendar
from tensorstow.planner.calendar import Calendar
from tensorstow.solvers import neighbours


@pytest.mark.parametrize(("blocks", "few"), [(1, 0), (3, 0), (8, 0), (512, 0), (512, 512)])
def test_touching_names_every_row_in_the_window(blocks: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calendar, "_BLOCKS", blocks)
    monkeypatch.setattr(calendar, "_FEW", few)
    rng = random.Random(blocks + few)
    for _ in range(300):
        steps = rng.choice([1, 2, 5, 37, 600, 1025])
        made, rows = Calendar(steps), list[set[int]]()
        for row in range(rng.randrange(1, 15)):
            rows.append(set())
            for _ in range(rng.randrange(1, 3)):  # an interval that changes is added again
                rows[row] = _some(rng, steps, made, row)
        start = rng.randrange(-steps, 2 * steps)
        end = start + rng.randrange(1, steps + 1)
        window = {t % steps for t in range(start, end)}
        found = made.touching(start, end).tolist()
        assert found == sorted(set(found))
        assert {r for r, occupied in enumerate(rows) if occupied & window} <= set(found)


def _some(rng: random.Random, steps: int, made: Calendar, row: int) -> set[int]:
    start = rng.randrange(-steps, 2 * steps)
    end = start + rng.randrange(1, steps + 1)
    made.add(row, start, end)
    return {t % steps for t in range(start, end)}


def test_a_short_window_of_a_long_pass_names_few_rows() -> None:
    made = Calendar(100_000)
    for row in range(50_000):
        made.add(row, 2 * row, 2 * row + 3)
    assert len(made.touching(70_000, 70_010)) < 300


@pytest.mark.parametrize("blocks", [1, 8, 4096])
def test_searches_are_those_of_a_look_at_every_step(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the definition: who shares an address with row 0, step by step away from it."""
    monkeypatch.setattr(calendar, "_BLOCKS", blocks)
    monkeypatch.setattr(calendar, "_FEW", 0)
    rng = random.Random(blocks)
    for _ in range(200):
        steps = rng.choice([4, 37, 300])
        made, rows = Calendar(steps), rng.randrange(2, 14)
        columns = np.zeros((4, rows), dtype=np.int64)
        for row in range(rows):
            start, low = rng.randrange(steps), rng.randrange(20)
            columns[:, row] = low, low + rng.randrange(1, 6), start, start + rng.randrange(1, max(2, steps // 3))
            made.add(row, int(columns[2, row]), int(columns[3, row]))
        first, end = int(columns[2, 0]), int(columns[3, 0])
        most, look = rng.randrange(1, steps - (end - first) + 1), rng.randrange(1, 5)
        taken = _steps_beside_row_0(columns, steps)
        back = next((n for n in range(most) if (first - 1 - n) % steps in taken), most)
        if not any(t % steps in taken for t in range(first, end)):
            found = neighbours.free_since(made.lists, columns, 0, first, end, first - most, look, made.out)
            assert found == first - back


def _beside_row_0(columns: NDArray[np.int64]) -> list[int]:
    low, high = columns[:2, 0]
    return [q for q in range(1, columns.shape[1]) if columns[0, q] < high and columns[1, q] > low]


def _steps_beside_row_0(columns: NDArray[np.int64], steps: int) -> set[int]:
    return {t % steps for q in _beside_row_0(columns) for t in range(int(columns[2, q]), int(columns[3, q]))}
