"""Why nothing fits: an irreducible infeasible subset of the bodies, each of which is needed for the proof.

The deletion filter (Chinneck and Dravnieks, "Locating minimal infeasible constraint sets in linear programs", ORSA
Journal on Computing 3, 1991): take one body after another out; where what is left is still proven not to fit, it stays
out. What remains does not fit, and without any one of its bodies it fits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..result import Status
from .check import check_packing
from .compact import Compact, compact, live_bytes, lower_bound
from .disjoint import collision
from .loading import load_compiled
from .problem import Packing, PackingProblem, peak_of

# Decisions that a proof with one body less may take; where it takes more, the body is kept without knowing.
_PROOF_NODES = 4_000
# Instants that are looked at for the one whose largest bodies exceed the capacity soonest.
_INSTANTS = 200


@dataclass(frozen=True, slots=True)
class Conflict:
    """Bodies (indices) that do not fit together, by the proof that `method` names, and the peak they need at least.

    `irreducible`: without any one of them the others fit. If False, time or decisions ended before that was known.
    """

    bodies: tuple[int, ...]
    needed: int
    method: str
    irreducible: bool


def explain(problem: PackingProblem, *, time_limit_s: float = 5.0, seed: int = 0) -> Conflict | None:
    """An irreducible subset of bodies that do not fit `problem.capacity`; None where no proof of that was found.

    Where the load at one instant is above the capacity, the subset is found among the largest bodies of the instant
    that needs the fewest. Compiling does not count against the time limit.

    Raises:
        ValueError: a problem without a capacity.
    """
    if problem.capacity is None:
        raise ValueError("without a capacity everything fits; give the problem one to explain")
    prover = _Prover(problem, problem.capacity, time.monotonic() + time_limit_s, seed)
    return _fixed_pair(problem) or _by_load(prover) or _by_search(prover)


def only(problem: PackingProblem, bodies: Sequence[int]) -> PackingProblem:
    """The problem with these bodies alone."""
    ids = tuple(problem.ids[i] for i in bodies) if problem.ids else ()
    return PackingProblem(tuple(problem.bodies[i] for i in bodies), problem.capacity, ids)


@dataclass(slots=True)
class _Prover:
    """What is known of bodies by their indices: whether they fit `capacity` bytes, until `deadline`."""

    problem: PackingProblem
    capacity: int
    deadline: float
    seed: int

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    def bound(self, bodies: Sequence[int]) -> int:
        return lower_bound(compact(only(self.problem, bodies)))

    def fits(self, bodies: Sequence[int]) -> bool | None:
        """True and False are proven, None is not known."""
        c = compact(only(self.problem, bodies))
        if lower_bound(c) > self.capacity:
            return False
        stacked = _stacked(c)
        if stacked is not None and stacked * c.unit <= self.capacity:
            return True
        if self.late:
            return None
        compiled, seconds = load_compiled([], None)
        self.deadline += seconds
        if not compiled:
            return None
        from . import exact

        if not exact.fits_memory(c):
            return None
        search = exact.Search(c, seed=self.seed)
        found = search.run(self.capacity // c.unit, self.deadline, 1, most_nodes=_PROOF_NODES)
        return None if found.status == Status.UNKNOWN else found.status == Status.FEASIBLE

    def reduced(self, bodies: list[int], size: int) -> Conflict:
        """Of bodies that do not fit, those that are needed for it: `size` are left out at once, then half as many."""
        kept = bodies
        while True:
            start, sure = 0, size == 1
            while start < len(kept):
                if self.late:
                    return self._conflict(kept, False)
                rest = kept[:start] + kept[start + size :]
                answer = self.fits(rest)
                if answer is False:
                    kept = rest
                else:  # fewer bodies still fit without these, so they need not be tried again
                    start += size
                    sure = sure and answer is True
            if size == 1:
                return self._conflict(kept, sure)
            size //= 2

    def _conflict(self, bodies: list[int], irreducible: bool) -> Conflict:
        bound = self.bound(bodies)
        needed, method = (bound, "load bound") if bound > self.capacity else (self.capacity + 1, "exact search")
        return Conflict(tuple(sorted(bodies)), needed, method, irreducible)


def _stacked(c: Compact) -> int | None:
    """The peak (units) of all bodies one above the other, the most aligned lowest; None where one is fixed."""
    if (c.fixed >= 0).any():
        return None
    top = 0
    for i in sorted(range(len(c)), key=lambda i: -int(c.alignment[i])):
        align = int(c.alignment[i])
        top = -(-top // align) * align + _height(c, i)
    return top


def _height(c: Compact, body: int) -> int:
    return int(c.hi[int(c.begin[body]) : int(c.begin[body + 1])].max())


def _fixed_pair(problem: PackingProblem) -> Conflict | None:
    """A fixed body above the capacity or off its alignment, or two fixed bodies that collide."""
    fixed = [i for i, body in enumerate(problem.bodies) if body.fixed is not None]
    offsets = [problem.bodies[i].fixed or 0 for i in fixed]
    for i, offset in zip(fixed, offsets, strict=True):
        part = only(problem, (i,))
        peak = peak_of(part, (offset,))
        if check_packing(part, Packing((offset,), peak)):
            return Conflict((i,), peak, "fixed offsets", True)
    pair = collision([problem.bodies[i] for i in fixed], offsets)
    if pair is None:
        return None
    peak = peak_of(only(problem, [fixed[k] for k in pair]), tuple(offsets[k] for k in pair))
    return Conflict((fixed[pair[0]], fixed[pair[1]]), peak, "fixed offsets", True)


def _by_load(prover: _Prover) -> Conflict | None:
    """A body above the capacity by itself, or the fewest whose live bytes at one instant exceed it."""
    bodies, capacity = prover.problem.bodies, prover.capacity
    for i, body in enumerate(bodies):
        reach = max((b.hi + (body.fixed or 0) for b in body.boxes if not b.empty), default=0)
        if reach > capacity:
            return Conflict((i,), reach, "load bound", True)
    c = compact(prover.problem)
    crowd = _crowd(c, prover)
    chosen = [c.bodies[k] for k in crowd]
    needed = prover.bound(chosen)
    if not chosen or needed <= capacity:
        return None
    # Bodies that lie one above the other without a hole, in any order: the sum decides, and the last was needed for it.
    if all(c.fixed[k] < 0 and c.alignment[k] == 1 and _height(c, k) == live for k, live in crowd.items()):
        return Conflict(tuple(sorted(chosen)), needed, "load bound", True)
    return prover.reduced(sorted(chosen, key=lambda i: max(b.hi for b in bodies[i].boxes)), 1)


def _crowd(c: Compact, prover: _Prover) -> dict[int, int]:
    """The fewest bodies (positions) that exceed the capacity at one instant, and their live bytes there (units), the
    largest first; all of the instant, where only padding exceeds it. Empty where no load does."""
    loads = live_bytes(c)
    fewest: dict[int, int] = {}
    for now in sorted(range(c.live_sets), key=lambda s: -loads[s])[:_INSTANTS]:
        if loads[now] * c.unit <= prover.capacity or (fewest and prover.late):
            break
        live: dict[int, int] = {}
        for k in np.flatnonzero((c.first <= now) & (now < c.last)):
            body = int(c.owner[k])
            live[body] = live.get(body, 0) + int(c.hi[k] - c.lo[k])
        chosen: dict[int, int] = {}
        total = 0
        for body in sorted(live, key=lambda b: (-live[b], b)):
            chosen[body] = live[body]
            total += live[body] * c.unit
            if total > prover.capacity:
                break
        if not fewest or len(chosen) < len(fewest):
            fewest = chosen
    return fewest


def _by_search(prover: _Prover) -> Conflict | None:
    """The deletion filter with the exact search as its proof: halves first, then quarters, then single bodies."""
    everything = list(range(len(prover.problem.bodies)))
    if prover.fits(everything) is not False:
        return None
    return prover.reduced(everything, max(1, len(everything) // 2))
