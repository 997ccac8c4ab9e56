"""Whether a packing is right, by a sweep over time: the answer of `check` in n log n."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .check import check_packing
from .compact import separate
from .problem import Body, Packing, PackingProblem, peak_of


def verify_packing(problem: PackingProblem, packing: Packing) -> tuple[str, ...]:
    """What `check_packing` says, which is asked only where the sweep finds something wrong, to name all of it."""
    bodies, offsets = problem.bodies, packing.offsets
    right = (
        len(offsets) == len(bodies)
        and all(
            offset >= 0 and offset % body.alignment == 0 and body.fixed in (None, offset)
            for body, offset in zip(bodies, offsets, strict=True)
        )
        and packing.peak == peak_of(problem, offsets)
        and (problem.capacity is None or packing.peak <= problem.capacity)
        and collision(bodies, offsets) is None
    )
    return () if right else check_packing(problem, packing)


def collision(bodies: Sequence[Body], offsets: Sequence[int]) -> tuple[int, int] | None:
    """Two bodies (indices, the lower first) that share an address at some time; None where all are apart.

    What lives at an instant is kept in the order of its addresses, where a new box need be compared with its neighbours
    alone.
    """
    events: list[tuple[int, bool, int, int, int]] = []
    for i, (body, offset) in enumerate(zip(bodies, offsets, strict=True)):
        for box in separate(body.boxes):
            events.append((box.start, True, offset + box.lo, offset + box.hi, i))
            events.append((box.end, False, offset + box.lo, offset + box.hi, i))
    events.sort()  # at equal times what ends comes before what begins
    lows, highs, owners = list[int](), list[int](), list[int]()
    for _, begins, lo, hi, i in events:
        at = bisect_left(lows, lo)
        if not begins:
            del lows[at], highs[at], owners[at]
            continue
        if at < len(lows) and lows[at] < hi:
            return min(i, owners[at]), max(i, owners[at])
        if at > 0 and highs[at - 1] > lo:
            return min(i, owners[at - 1]), max(i, owners[at - 1])
        lows.insert(at, lo)
        highs.insert(at, hi)
        owners.insert(at, i)
    return None
