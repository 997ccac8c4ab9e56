"""A packing problem made small: empty boxes gone, time compressed to maximal live sets, addresses divided by the gcd.

Boxes live on an interval graph. Its maximal cliques ("live sets"), in the order of time, are the only instants that
matter: a box covers a contiguous range [first, last) of them, and two boxes meet exactly when their ranges do. The
peak of live bytes is reached in one of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .problem import Body, Box, PackingProblem

Ints = NDArray[Any]  # int64; dtype object where bytes exceed what 64 bits can add up, or a lifetime what they hold


@dataclass(frozen=True, slots=True, eq=False)
class Compact:
    """Arrays over boxes (`owner`, `first`, `last`, `lo`, `hi`, `span`) and over bodies (`alignment`, `fixed`).

    `owner` is the body of a box and boxes are sorted by it: those of body i are [`begin`[i], `begin`[i + 1]).
    [`first`, `last`) are live sets, `span` is the real lifetime. Addresses are in units of `unit` bytes. `fixed` is -1
    where the base is free. `bodies` are indices into the problem: bodies without bytes are left out.
    """

    bodies: tuple[int, ...]
    begin: NDArray[np.int64]
    owner: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    span: Ints
    lo: Ints
    hi: Ints
    alignment: Ints
    fixed: Ints
    live_sets: int
    unit: int

    def __len__(self) -> int:
        return len(self.bodies)


def compact(problem: PackingProblem, also: Iterable[int] = ()) -> Compact:
    """The problem without what does not matter. Offsets of its packings, times `unit`, are packings of the problem.

    Dividing by the unit loses nothing: push every body of a packing down until it rests on another, on address zero
    or on its alignment, and all offsets are multiples of it. `also` are addresses that shall be multiples of it too.
    """
    bodies = tuple(i for i, body in enumerate(problem.bodies) if any(not b.empty for b in body.boxes))
    kept = [(k, b) for k, i in enumerate(bodies) for b in separate(problem.bodies[i].boxes)]
    chosen = [problem.bodies[i] for i in bodies]
    unit = _unit([*(n for _, b in kept for n in (b.lo, b.hi)), *also], chosen)
    # No address that any search forms exceeds all sizes and one alignment step each, on top of what is fixed.
    reach = (
        sum(b.hi for _, b in kept) + sum(body.alignment for body in chosen) + max([0, *(b.fixed or 0 for b in chosen)])
    )
    wide = np.dtype(np.int64) if 4 * reach < 2**63 else np.dtype(object)
    spans = [b.end - b.start for _, b in kept]
    first, last, live_sets = _live_set_ranges([b.start for _, b in kept], [b.end for _, b in kept])
    owner = np.array([k for k, _ in kept], dtype=np.int64)
    return Compact(
        bodies=bodies,
        begin=np.searchsorted(owner, np.arange(len(bodies) + 1)).astype(np.int64),
        owner=owner,
        first=first,
        last=last,
        span=np.array(spans, dtype=np.int64 if max(spans, default=0) < 2**63 else object),
        lo=np.array([b.lo // unit for _, b in kept], dtype=wide),
        hi=np.array([b.hi // unit for _, b in kept], dtype=wide),
        alignment=np.array([max(1, body.alignment // unit) for body in chosen], dtype=wide),
        fixed=np.array([-1 if body.fixed is None else body.fixed // unit for body in chosen], dtype=wide),
        live_sets=live_sets,
        unit=unit,
    )


def _unit(addresses: list[int], bodies: list[Body]) -> int:
    """The gcd of all addresses and of the alignments that they do not satisfy of themselves."""
    unit = math.gcd(*addresses, *(body.fixed or 0 for body in bodies)) or 1
    while demanding := [body.alignment for body in bodies if unit % body.alignment and body.alignment % unit]:
        unit = math.gcd(unit, *demanding)
    return unit


def separate(boxes: tuple[Box, ...]) -> list[Box]:
    """The same addresses at the same times by boxes that do not overlap, so that no byte is counted twice."""
    boxes = tuple(b for b in boxes if not b.empty)
    if len(boxes) < 2 or not any(
        a.start < b.end and b.start < a.end and a.lo < b.hi and b.lo < a.hi
        for k, a in enumerate(boxes)
        for b in boxes[:k]
    ):
        return list(boxes)
    found: list[Box] = []
    times = sorted({t for b in boxes for t in (b.start, b.end)})
    for start, end in pairwise(times):
        top = -1
        for lo, hi in sorted((b.lo, b.hi) for b in boxes if b.start <= start and end <= b.end):
            if hi > max(lo, top):
                found.append(Box(start, end, max(lo, top), hi))
                top = hi
    return found


def _live_set_ranges(starts: list[int], ends: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """For each interval the range of maximal cliques it is in, and their number.

    A clique is maximal where an end follows a start: sweep the events, ends before starts at equal times.
    """
    events = sorted([(t, 1, k) for k, t in enumerate(starts)] + [(t, 0, k) for k, t in enumerate(ends)])
    first = np.zeros(len(starts), dtype=np.int64)
    last = np.zeros(len(starts), dtype=np.int64)
    done, growing = 0, False
    for _, is_start, k in events:
        if is_start:
            first[k] = done
            growing = True
        else:
            done += growing
            growing = False
            last[k] = done
    return first, last, done


def live_bytes(c: Compact) -> list[int]:
    """Bytes (in units of the problem) live in each maximal live set, padding by alignment included where provable.

    Let g be the gcd of all alignments and every box start at an address = r (mod g). Then two live boxes start a
    multiple of g apart: all but the highest occupy a multiple of g, and the lowest starts at r or above. Where the
    residues differ, the plain sum of lengths is the bound.
    """
    step = math.gcd(*(int(a) for a in c.alignment)) if len(c) else 1
    residues = {int(a) % step for a in c.lo}
    length = c.hi - c.lo
    if len(residues) == 1:
        padded = (length + (step - 1)) // step * step
        base = residues.pop()
    else:
        padded, base = length, 0
    sums = [0] * (c.live_sets + 1)
    slack: list[list[tuple[int, int]]] = [[] for _ in range(c.live_sets + 1)]
    for k, nbytes in enumerate(padded):
        sums[int(c.first[k])] += int(nbytes)
        sums[int(c.last[k])] -= int(nbytes)
        slack[int(c.first[k])].append((-int(nbytes - length[k]), int(c.last[k])))
    return _minus_largest_slack(sums[: c.live_sets], slack, base)


def _minus_largest_slack(changes: list[int], slack: list[list[tuple[int, int]]], base: int) -> list[int]:
    """Running sums of `changes`, plus `base`, minus the largest padding live there (the highest box needs none)."""
    live: list[tuple[int, int]] = []
    found: list[int] = []
    total = 0
    for now, change in enumerate(changes):
        total += change
        for entry in slack[now]:
            heapq.heappush(live, entry)
        while live and live[0][1] <= now:
            heapq.heappop(live)
        found.append(total + base + (live[0][0] if live else 0))
    return found


def lower_bound(c: Compact) -> int:
    """A proven lower bound on the peak, in bytes: live bytes, and what fixed and single bodies reach by themselves."""
    alone = [int(c.hi[k]) + max(0, int(c.fixed[c.owner[k]])) for k in range(len(c.owner))]
    return c.unit * max([0, *live_bytes(c), *alone])


def components(c: Compact) -> list[list[int]]:
    """Bodies (positions in `c.bodies`) grouped so that members of different groups never live at the same time.

    Between the live sets of one group and the next lies an instant that nobody crosses, unless a body has boxes on
    both sides: such groups are joined.
    """
    root = list(range(len(c)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    reach, current = -1, -1
    for k in np.argsort(c.first, kind="stable"):
        body = int(c.owner[k])
        if c.first[k] < reach:
            root[find(body)] = find(current)
        else:
            current = body
        reach = max(reach, int(c.last[k]))
    groups: dict[int, list[int]] = {}
    for i in range(len(c)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())
