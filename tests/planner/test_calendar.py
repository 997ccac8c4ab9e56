"""The calendar of a cyclic pass against sets of steps."""

from __future__ import annotations

import random

import pytest

from tensorstow.planner import calendar
from tensorstow.planner.calendar import Calendar


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
