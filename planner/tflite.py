"""What COSMA is compared with: TensorFlow Lite's linear allocation with Belady's replacement, weights streamed.

Section V of arXiv 2311.18246 keeps a schedule, lets Belady's algorithm choose what leaves when an operator finds no
room (the tensor whose next use is farthest, activations too), and puts what stays where TensorFlow Lite's memory arena
does: greedy by size, each at the best gap between those already placed that live at the same time (Pisarchyk and Lee,
"Efficient Memory Management for Deep Neural Net Inference", 2020; simple_memory_arena.cc).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..ir.errors import TimeLimitError
from ..ir.plan import Plan
from ..ir.sizes import format_size
from .instance import Instance
from .items import round_up
from .one_way import bound_nbytes, removable_gaps, require_room
from .realise import realise
from .stays import Placed, Stay, make_stays
from .strategies import Effort, register

ROOMS = 40
"""How many smaller capacities are given to the replacement, evenly down to nothing but operands, until the greedy
allocation of what it keeps fits the real one."""

MOST_SUMS = 20_000
"""Subset sums that one eviction looks at."""

Victims = Callable[[Instance, dict[int, int], int], list[int]]
"""Given items that may leave, with the step of their next use, and the bytes wanted: those that leave."""


@register
@dataclass(frozen=True, slots=True)
class TfliteBelady:
    """Replacement by the farthest next use, allocation greedy by size. One pass: every weight is loaded once in it or
    more often, as nothing is kept from one pass to the next."""

    name: ClassVar[str] = "tflite-belady"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan under the largest room for the replacement for which the allocation fits."""
        return _fitted(instance, effort, self.name, farthest)


@register
@dataclass(frozen=True, slots=True)
class TfliteGreedy:
    """Replacement by the fewest bytes at each eviction (COSMA's second baseline: the subset of least size that makes
    enough room), allocation greedy by size."""

    name: ClassVar[str] = "tflite-greedy"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan under the largest room for the replacement for which the allocation fits."""
        return _fitted(instance, effort, self.name, least_bytes)


def _fitted(instance: Instance, effort: Effort, name: str, victims: Victims) -> Plan:
    """Raises InfeasibleError where what cannot leave is too much, TimeLimitError where no room has an allocation, or
    time is over before one is found: of the rooms left only the smallest is tried then."""
    require_room(instance)
    capacity, deadline = instance.capacity_nbytes, time.monotonic() + effort.time_limit_s
    tried: set[frozenset[tuple[int, int]]] = set()
    for cut in range(ROOMS + 1):
        if 0 < cut < ROOMS and time.monotonic() > deadline:
            continue
        evicted = replace_tensors(instance, capacity - capacity * cut // ROOMS, victims)
        if evicted in tried:
            continue
        tried.add(evicted)
        placed = allocate(instance, make_stays(instance, evicted))
        if placed is not None:
            return realise(instance, placed, name)
    raise TimeLimitError(
        f"strategy '{name}' found no greedy allocation inside {format_size(instance.fast.usable_nbytes)} of tier "
        f"'{instance.fast.name}'; give it more memory or time, or take a strategy that searches for addresses"
    )


def replace_tensors(instance: Instance, capacity_nbytes: int, victims: Victims) -> frozenset[tuple[int, int]]:
    """Gaps in which items leave, as replacement decides in one walk over the pass. A step whose operands, and what
    cannot leave, exceed the capacity holds them alone. No weight stays from one pass to the next, where its last gap
    lets it leave."""
    gaps, bound = removable_gaps(instance), bound_nbytes(instance)
    open_gap: dict[tuple[int, int], int] = {(g.item, g.start): g.before for g in gaps}
    touching: list[list[int]] = [[] for _ in range(instance.steps)]
    for i, item in enumerate(instance.items):
        for t in item.touches:
            touching[t].append(i)
    evicted = {(g.item, g.before) for g in gaps if g.end >= instance.steps}
    last = {i: item.touches[-1] for i, item in enumerate(instance.items)}
    following = [dict(zip(item.touches, item.touches[1:], strict=False)) for item in instance.items]
    idle: dict[int, tuple[int, int]] = {}  # item on chip without being used now: its latest use, its next one
    for t in range(instance.steps):
        for i in touching[t]:
            idle.pop(i, None)
        used = bound[t] + sum(instance.items[i].nbytes for i in idle)
        over = used - max(capacity_nbytes, bound[t])
        if over > 0:
            for i in victims(instance, {i: until for i, (_, until) in idle.items()}, over):
                evicted.add((i, open_gap[i, idle.pop(i)[0]]))
        for i in touching[t]:
            if t < last[i] and (i, t) in open_gap:
                idle[i] = (t, following[i][t])
    return frozenset(evicted)


def farthest(instance: Instance, nexts: dict[int, int], wanted: int) -> list[int]:
    """Belady: by falling next use until there is room."""
    leaving: list[int] = []
    for i in sorted(nexts, key=lambda i: (-nexts[i], i)):
        if wanted <= 0:
            break
        leaving.append(i)
        wanted -= instance.items[i].nbytes
    return leaving


def least_bytes(instance: Instance, nexts: dict[int, int], wanted: int) -> list[int]:
    """The items of the fewest bytes together that make the room: subset sum by dynamic programming."""
    every = tuple(sorted(nexts, key=lambda i: (-instance.items[i].nbytes, i)))
    best: dict[int, tuple[int, ...]] = {0: ()}
    for i in every:
        size = instance.items[i].nbytes
        for total, chosen in list(best.items()) if len(best) < MOST_SUMS else ():
            if total < wanted:
                best.setdefault(total + size, (*chosen, i))
    best.setdefault(sum(instance.items[i].nbytes for i in every), every)
    return list(best[min(total for total in best if total >= wanted)])


def allocate(instance: Instance, stays: list[Stay]) -> list[Placed] | None:
    """Greedy by size with best fit; transfers block. None where what it reaches is above the capacity."""
    steps = instance.steps
    placed: list[Placed] = []
    start, end = np.zeros((2, len(stays)), dtype=np.int64)
    for n, stay in enumerate(sorted(stays, key=lambda s: (not s.always, -s.nbytes, s.first, s.item))):
        own = Placed(stay, -1, stay.first, steps if stay.always else stay.last + 1)
        meets = (start[:n] - own.start) % steps < own.end - own.start
        meets |= (own.start - start[:n]) % steps < end[:n] - start[:n]
        around = sorted((placed[k] for k in np.flatnonzero(meets)), key=lambda p: p.offset)
        own.offset = _best_fit(around, own.nbytes, instance.alignment_of(stay.item))
        if own.offset + own.nbytes > instance.capacity_nbytes:
            return None
        start[n], end[n] = own.start, own.end
        placed.append(own)
    return placed


def _best_fit(around: list[Placed], nbytes: int, alignment: int) -> int:
    """The start of the smallest hole that is large enough, else the end of the highest."""
    top, best, smallest = 0, -1, -1
    for p in around:
        start = round_up(top, alignment)
        hole = p.offset - start
        if hole >= nbytes and (smallest < 0 or hole < smallest):
            best, smallest = start, hole
        top = max(top, p.offset + p.nbytes)
    return best if best >= 0 else round_up(top, alignment)
