"""Whole choices from fractions: what is kept over each step, and what more must go until it fits. DESIGN 4.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .problem import ResidencyProblem

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Pauses:
    """Gaps as arrays: gap g keeps `nbytes`[g] over the steps start[g] < t < end[g], which may lie in the next pass;
    `base` are the bytes that each step of a pass needs beside them."""

    start: Ints
    end: Ints
    nbytes: Ints
    base: Ints

    @property
    def steps(self) -> int:
        """Steps of a pass."""
        return len(self.base)

    def over(self, step: int) -> Mask:
        """Which gaps reach over `step` of this pass, or over that of the next one."""
        later = step + self.steps
        return ((self.start < step) & (step < self.end)) | ((self.start < later) & (later < self.end))


def held_profile(pauses: Pauses, out: Mask) -> Ints:
    """Bytes at each step: those it needs, and the gaps over it that are not `out`."""
    kept = ~out & (pauses.end > pauses.start + 1)
    change = np.zeros(2 * pauses.steps + 2, dtype=np.int64)
    np.add.at(change, pauses.start[kept] + 1, pauses.nbytes[kept])
    np.add.at(change, pauses.end[kept], -pauses.nbytes[kept])
    level = np.cumsum(change)
    return pauses.base + level[: pauses.steps] + level[pauses.steps : 2 * pauses.steps]


def repair(pauses: Pauses, absent: Sequence[float], out: Mask, capacity_nbytes: int) -> bool:
    """Take more gaps `out`, in place, until what is kept fits at every step; False where it cannot.

    At the step that overflows most, the gap with the largest fraction `absent` goes, among equals the longest, then the
    first.
    """
    fractions = np.asarray(absent[: len(out)], dtype=np.float64)
    length = pauses.end - pauses.start
    profile = held_profile(pauses, out)
    while int(profile.max(initial=0)) > capacity_nbytes:
        over = np.flatnonzero(pauses.over(int(profile.argmax())) & ~out & (pauses.nbytes > 0))
        if not len(over):
            return False
        worst = int(over[np.lexsort((-over, length[over], fractions[over]))[-1]])
        out[worst] = True
        first, end, nbytes = int(pauses.start[worst]) + 1, int(pauses.end[worst]), int(pauses.nbytes[worst])
        profile[first : min(end, pauses.steps)] -= nbytes
        profile[max(first - pauses.steps, 0) : max(end - pauses.steps, 0)] -= nbytes
    return True


def round_and_repair(problem: ResidencyProblem, absent: Sequence[float]) -> tuple[int, ...]:
    """For each gap 1 where it is absent: above a half, below where the pass begins, and what `repair` takes beside.

    Every step's base must be within the capacity.
    """
    rows = [(g.start, g.end, g.nbytes) for g in problem.gaps]
    start, end, nbytes = np.asarray(rows, dtype=np.int64).reshape(-1, 3).T
    out = (np.asarray(absent, dtype=np.float64) > 0.5) | (start < 0)
    pauses = Pauses(start, end, nbytes, np.asarray(problem.base_nbytes, dtype=np.int64))
    repair(pauses, absent, out, problem.capacity_nbytes)
    return tuple(int(x) for x in out)
