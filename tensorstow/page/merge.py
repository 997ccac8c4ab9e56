"""Fewer rectangles where a screen cannot show more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .boxes import Bar, Box

JOINED = 8
"""A joined bar ends at this many times the least length, so that its text still says where one is."""


def merge_bars(bars: Iterable[Bar], least_ns: int) -> tuple[Bar, ...]:
    """Bars of one lane and kind that are shorter than `least_ns` and nearer than that to one another, as one bar."""
    found: list[Bar] = []
    last: dict[tuple[str, str], int] = {}
    for bar in sorted(bars, key=lambda b: b.start_ns):
        key = (bar.lane, bar.kind)
        index = last.get(key)
        short = bar.end_ns - bar.start_ns < least_ns
        if (
            short
            and index is not None
            and bar.start_ns - found[index].end_ns < least_ns
            and _joins(found[index], least_ns)
        ):
            before = found[index]
            count = before.count + 1
            first = before.text.partition("<br>…")[0]
            text = f"{first}<br>… and {count - 1} more until here"
            found[index] = Bar(bar.kind, bar.lane, before.start_ns, max(before.end_ns, bar.end_ns), text, count)
            continue
        last[key] = len(found)
        found.append(bar)
    return tuple(found)


def _joins(bar: Bar, least_ns: int) -> bool:
    """Whether a bar takes more: one that is short itself, or joined and not yet long."""
    return bar.end_ns - bar.start_ns < (JOINED if bar.count > 1 else 1) * least_ns


def largest(boxes: Sequence[Box], most: int) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """The `most` boxes that cover the most of the picture, and the others."""
    if len(boxes) <= most:
        return tuple(boxes), ()
    order = sorted(boxes, key=lambda b: (b.end_ns - b.start_ns) * (b.high - b.low), reverse=True)
    return tuple(order[:most]), tuple(order[most:])
