"""Steps beside what moves, against time counted in small pieces."""

from __future__ import annotations

from math import isclose

from hypothesis import given
from hypothesis import strategies as st

from tensorstow.ir.contention import Contention

Spans = list[list[tuple[int, int, float]]]
SHARES = (0.25, 0.5, 1.0, 3.0)


@st.composite
def lanes(draw: st.DrawFn) -> Spans:
    """Spans of up to three lanes: start, end, share."""
    found: Spans = []
    for _ in range(draw(st.integers(1, 3))):
        at, spans = 0, list[tuple[int, int, float]]()
        for _ in range(draw(st.integers(0, 4))):
            begin = at + draw(st.integers(0, 6))
            at = begin + draw(st.integers(0, 9))
            spans.append((begin, at, draw(st.sampled_from(SHARES))))
        found.append(spans)
    return found


def counted(spans: Spans, start: int, duration: int) -> float:
    """When `duration` is computed: nanosecond by nanosecond."""
    now, left = start, float(duration)
    while left > 1e-9:
        pace = 1.0 + sum(share for lane in spans for begin, end, share in lane if begin <= now < end)
        if left * pace <= 1:
            return now + left * pace
        left -= 1 / pace
        now += 1
    return now


@given(lanes(), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), min_size=1, max_size=5))
def test_a_step_ends_when_its_computing_is_done(spans: Spans, steps: list[tuple[int, int]]) -> None:
    """Steps one after another, with waits between."""
    contention = Contention(len(spans))
    for number, lane in enumerate(spans):
        for span in lane:
            contention.add(number, *span)
    now = 0
    for wait, duration in steps:
        exact = counted(spans, now + wait, duration)
        end = contention.end_ns(now + wait, duration)
        assert end >= exact - 1e-5 and (end < exact + 1 or isclose(end, exact + 1, abs_tol=1e-5))
        now = end


def test_nothing_of_a_transfer_without_contention_is_kept() -> None:
    contention = Contention(1)
    contention.add(0, 0, 10, 0.0)
    assert contention.end_ns(0, 5) == 5
    assert contention.after(0) == [()]


def test_what_lasts_is_told_from_an_instant_on() -> None:
    contention = Contention(2)
    contention.add(0, 3, 9, 0.5)
    contention.add(1, 12, 15, 0.25)
    assert contention.after(5) == [((0, 4, 0.5),), ((7, 10, 0.25),)]
