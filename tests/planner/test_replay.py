"""Caches over passes: the heap's replay against one that looks at everything each time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.planner.replay import WARM_UP_PASSES, Cacheable, farthest, least_recent, misses


@st.composite
def caches(draw: st.DrawFn) -> tuple[list[Cacheable], list[int], int]:
    steps = draw(st.integers(1, 7))
    entries: list[Cacheable] = []
    for _ in range(draw(st.integers(0, 5))):
        uses = tuple(sorted(draw(st.sets(st.integers(0, steps - 1), min_size=1, max_size=3))))
        ends = tuple(t + draw(st.integers(1, 3)) for t in uses)
        entries.append(Cacheable(draw(st.integers(1, 5)), uses, ends))
    return entries, [draw(st.integers(0, 3)) for _ in range(steps)], draw(st.integers(0, 20))


def naive(
    entries: list[Cacheable], beside: list[int], capacity: int, key: Callable[[int, int], int]
) -> set[tuple[int, int]] | None:
    steps, held, missed = len(beside), dict[int, int](), set[tuple[int, int]]()

    def next_use(i: int, now: int) -> int:
        return next(t for t in itertools.count(now + 1) if t % steps in entries[i].uses)

    def in_use(i: int, now: int) -> bool:
        windows = zip(entries[i].uses, entries[i].ends, strict=True)
        return any(a <= now - turn * steps < b for a, b in windows for turn in range(WARM_UP_PASSES + 1))

    for now in range((WARM_UP_PASSES + 1) * steps):
        for i, entry in enumerate(entries):
            if now % steps in entry.uses:
                if i not in held and now >= WARM_UP_PASSES * steps:
                    missed.add((i, entry.uses.index(now % steps)))
                held[i] = now
        while sum(entries[i].nbytes for i in held) + beside[now % steps] > capacity:
            others = [i for i in held if not in_use(i, now)]
            if not others:
                return None
            del held[min(others, key=lambda i: (key(held[i], next_use(i, held[i])), i))]
    return missed


@pytest.mark.parametrize("urgency", [least_recent, farthest])
@settings(max_examples=150, deadline=None)
@given(problem=caches())
def test_against_a_replay_that_looks_at_everything(
    urgency: Callable[[int, int], int], problem: tuple[list[Cacheable], list[int], int]
) -> None:
    assert misses(*problem, urgency) == naive(*problem, urgency)


def test_a_cyclic_pass_defeats_recency_and_not_foresight() -> None:
    entries = [Cacheable(1, (t,), (t + 1,)) for t in range(6)]
    assert misses(entries, [0] * 6, 4, least_recent) == {(i, 0) for i in range(6)}
    found = misses(entries, [0] * 6, 4, farthest)
    assert found is not None
    assert len(found) < 6
    assert misses(entries, [0] * 6, 6, farthest) == set()
    assert misses(entries, [0] * 6, 0, farthest) is None
