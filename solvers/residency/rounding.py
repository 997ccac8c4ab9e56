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
    from .evict import evict  # it imports numba

    profile = held_profile(pauses, out)
    if int(profile.max(initial=0)) <= capacity_nbytes:
        return True
    fractions, length = np.asarray(absent[: len(out)], dtype=np.float64), pauses.end - pauses.start
    left = np.flatnonzero(~out & (pauses.nbytes > 0))
    ranked = left[np.lexsort((left, -length[left], -fractions[left]))]
    return bool(evict(pauses.start, pauses.end, pauses.nbytes, out, ranked, profile, capacity_nbytes))


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
