"""Transfers between the two topmost tiers of three or more, such that what passes a middle tier fits there.

A plan of the two topmost tiers takes the one below for endless: while a step waits, any number of bytes may pass. On
more tiers all that moves between two instants lies in the middle tier at once. So each transfer is divided among the
steps at which it may run, until no step has more to pass than the tier has room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import lcm

from ..ir.plan import Plan, Transfer
from .instance import Instance

Part = tuple[Transfer, int]
"""A part of a transfer, and the index of the transfer."""

PASSING = (0.5, 0.8, 0.3, 0.95)
"""Shares of a middle tier that may pass it at a step, where otherwise more would than fits: tried one after another."""


def windows(instance: Instance, upper: Plan, seen: Sequence[Transfer]) -> Iterator[list[Part]]:
    """The transfers of an upper plan as they were `seen`, unless that is more at once than the topmost middle tier
    holds; and paced, so that at each step they leave it some room."""
    room = instance.middle[0].usable_nbytes
    if not crowded(seen, instance.steps, room):
        yield [(t, i) for i, t in enumerate(seen)]
    blocks = lcm(*(t.alignment for t in (instance.fast, *instance.middle, instance.home)))
    for share in PASSING:
        parts = paced(upper.transfers, seen, instance.steps, int(share * room), blocks)
        if parts is not None:
            yield parts


def crowded(windows: Sequence[Transfer], steps: int, room_nbytes: int) -> bool:
    """Whether at some step more than `room_nbytes` of these transfers may be under way."""
    change = [0] * (2 * steps + 2)
    for t in windows:
        change[t.after] += t.nbytes
        change[max(t.before, t.after + 1)] -= t.nbytes
    level, levels = 0, list[int]()
    for delta in change:
        level += delta
        levels.append(level)
    return any(levels[s] + levels[s + steps] > room_nbytes for s in range(steps))


def paced(
    wide: Sequence[Transfer], near: Sequence[Transfer], steps: int, room_nbytes: int, alignment: int
) -> list[Part] | None:
    """The transfers `wide` in parts of whole blocks, each within a single step of its window, no more than
    `room_nbytes` in all at a step. None where that is not found.

    `near` are the windows in which the same transfers were seen: steps in them are taken first, then those nearest.
    Transfers that have the fewest steps to choose from choose first.
    """
    free = [room_nbytes] * steps
    found: list[Part] = []
    for i in sorted(range(len(wide)), key=lambda i: (wide[i].before - wide[i].after, -wide[i].nbytes, i)):
        taken = _take(wide[i], near[i], free, alignment)
        if taken is None:
            return None
        found += [(part, i) for part in taken]
    found.sort(key=lambda part: part[1])
    return found


def _take(t: Transfer, seen: Transfer, free: list[int], alignment: int) -> list[Transfer] | None:
    """The parts of one transfer, and their bytes from `free`."""
    steps, left = len(free), t.nbytes
    chosen: dict[int, int] = {}
    for slot in _nearest_first(t, seen, steps):
        nbytes = min(left, free[slot % steps] // alignment * alignment)
        if nbytes > 0:
            chosen[slot] = nbytes
            left -= nbytes
        if not left:
            break
    if left:
        return None
    parts: list[Transfer] = []
    lo = t.lo
    for slot, nbytes in sorted(chosen.items()):
        free[slot % steps] -= nbytes
        back = slot // steps * steps
        parts.append(replace(t, lo=lo, hi=lo + nbytes, after=slot - back, before=min(slot + 1, t.before) - back))
        lo += nbytes
    return parts


def _nearest_first(t: Transfer, seen: Transfer, steps: int) -> list[int]:
    """The steps at which a transfer may run, each once though the window be a whole pass: those at which it was seen,
    then the nearest."""
    begin = t.after
    first = seen.after + (steps if seen.after < begin else 0)
    last = min(first + max(seen.before - seen.after, 1) - 1, t.before)
    slots = range(begin, min(t.before, begin + steps - 1) + 1)
    return sorted(slots, key=lambda s: (max(first - s, s - last, 0), -s if t.before == s else s))
