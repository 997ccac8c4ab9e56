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


def merge_boxes(boxes: Iterable[Box], least_ns: int, least_nbytes: int) -> tuple[Box, ...]:
    """Boxes on a grid of `least_ns` x `least_nbytes`, those of one kind and row that touch as one; without texts. None
    vanishes: what is smaller than a cell takes the whole of it."""
    least_ns, least_nbytes = max(1, least_ns), max(1, least_nbytes)
    rows: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
    for b in boxes:
        low, high = b.low // least_nbytes, -(-b.high // least_nbytes)
        rows.setdefault((b.kind, low, high), []).append((b.start_ns // least_ns, -(-b.end_ns // least_ns)))
    found: list[Box] = []
    for (kind, low, high), spans in rows.items():
        begin, end = -1, -1
        for start, stop in [*sorted(spans), (1 << 62, 1 << 62)]:
            if start > end:
                if end > begin:
                    found.append(
                        Box(kind, begin * least_ns, end * least_ns, low * least_nbytes, high * least_nbytes, "")
                    )
                begin, end = start, stop
            end = max(end, stop)
    return tuple(found)
