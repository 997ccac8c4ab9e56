"""Whether bodies at given offsets are all apart, by a sweep over time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .problem import Body


def disjoint(bodies: Sequence[Body], offsets: Sequence[int]) -> bool:
    """Whether `bodies` at `offsets` share no address at any time, and lie at aligned addresses of 0 and above.

    Boxes of one body that overlap are told to be not apart: False may be wrong, True is not. What lives at an instant
    is kept in the order of its addresses, where a new box need be compared with its neighbours alone.
    """
    events: list[tuple[int, bool, int, int]] = []
    for body, offset in zip(bodies, offsets, strict=True):
        if offset < 0 or offset % body.alignment:
            return False
        for box in body.boxes:
            if box.start < box.end and box.lo < box.hi:
                events.append((box.start, True, offset + box.lo, offset + box.hi))
                events.append((box.end, False, offset + box.lo, offset + box.hi))
    lows, highs = list[int](), list[int]()
    for _, begins, lo, hi in sorted(events):  # at equal times what ends comes before what begins
        at = bisect_left(lows, lo)
        if not begins:
            del lows[at], highs[at]
            continue
        if (at < len(lows) and lows[at] < hi) or (at > 0 and highs[at - 1] > lo):
            return False
        lows.insert(at, lo)
        highs.insert(at, hi)
    return True
