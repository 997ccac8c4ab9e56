"""The independent checker of packings: quadratic, from the definition, sharing nothing with the search."""

from __future__ import annotations

from .problem import Packing, PackingProblem


def check_packing(problem: PackingProblem, packing: Packing) -> tuple[str, ...]:
    """Every violation with its numbers; empty when the packing is right.

    A capacity is checked too: a packing above it is returned by nobody.
    """
    if len(packing.offsets) != len(problem.bodies):
        return (f"{len(packing.offsets)} offsets for {len(problem.bodies)} bodies",)
    found: list[str] = []
    placed: list[tuple[int, int, int, int, int]] = []  # body, start, end, first address, end address
    for i, (body, offset) in enumerate(zip(problem.bodies, packing.offsets, strict=True)):
        if offset < 0:
            found.append(f"body {problem.name(i)} has the negative offset {offset}")
        if offset % body.alignment:
            found.append(f"body {problem.name(i)} at {offset} is not aligned to {body.alignment}")
        if body.fixed is not None and offset != body.fixed:
            found.append(f"body {problem.name(i)} at {offset} was fixed at {body.fixed}")
        placed += [
            (i, b.start, b.end, offset + b.lo, offset + b.hi) for b in body.boxes if b.start < b.end and b.lo < b.hi
        ]
    for k, (i, start, end, lo, hi) in enumerate(placed):
        for j, other_start, other_end, other_lo, other_hi in placed[:k]:
            if i != j and start < other_end and other_start < end and lo < other_hi and other_lo < hi:
                found.append(
                    f"bodies {problem.name(j)} and {problem.name(i)} both occupy addresses "
                    f"[{max(lo, other_lo)}, {min(hi, other_hi)}) at times "
                    f"[{max(start, other_start)}, {min(end, other_end)})"
                )
    highest = max((hi for *_, hi in placed), default=0)
    if highest != packing.peak:
        found.append(f"peak {packing.peak} is stated, {highest} is reached")
    if problem.capacity is not None and highest > problem.capacity:
        found.append(f"address {highest} is reached, the capacity is {problem.capacity}")
    return tuple(found)
