"""`pack`: bounds, portfolio, search, CP-SAT, in this order, on each independent part of a problem."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ..result import Result, Status
from . import cpsat, greedy
from .check import check_packing
from .compact import Compact, Ints, compact, components, lower_bound
from .problem import Packing, PackingProblem, peak_of

# First fits that the search may spend on one part; a fixed number, so that the answer depends on the seed alone as
# long as the time limit does not cut it short.
_SEARCH_PASSES = 2_000
# Parts above this many boxes are left to first fit: CP-SAT's propagation of 2-D no-overlap is quadratic and worse.
_CPSAT_BOXES = 1_500


def load_bound(problem: PackingProblem) -> int:
    """Largest sum of live bytes at an instant: no packing has a lower peak.

    Padding between aligned bodies is counted where every packing needs it; see `compact.live_bytes`. What a fixed
    body reaches by itself counts too.
    """
    return lower_bound(compact(problem))


def pack(problem: PackingProblem, *, time_limit_s: float = 10.0, seed: int = 0, workers: int = 2) -> Result[Packing]:
    """Offsets with the least peak; with a capacity, any within it.

    Objective and bound are peaks in bytes. OPTIMAL: peak equals the bound. FEASIBLE: a packing (within the capacity,
    if there is one), not proven least. INFEASIBLE: proven that nothing fits the capacity or the fixed offsets.
    UNKNOWN: no packing within the capacity was found in time. The same seed gives the same answer with one worker as
    long as the time limit cuts nothing short.
    """
    began = time.monotonic()
    wrong = _impossible_fixed(problem)
    if wrong:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "fixed offsets", wrong)
    whole = compact(problem)
    bound = lower_bound(whole)
    if problem.capacity is not None and bound > problem.capacity:
        detail = f"{bound} bytes are live at one instant, the capacity is {problem.capacity}"
        return Result(Status.INFEASIBLE, None, None, bound, time.monotonic() - began, "load bound", detail)
    deadline = began + time_limit_s
    parts = [_part(problem, [whole.bodies[i] for i in group]) for group in components(whole)]
    _first_fit(parts, problem.capacity or 0, seed, deadline)
    goal = problem.capacity if problem.capacity is not None else max([0, *(part.bound for part in parts)])
    hard = [part for part in parts if part.peak > goal and len(part.form.owner) <= _CPSAT_BOXES]
    for number, part in enumerate(sorted(hard, key=lambda part: part.peak, reverse=True)):
        left = max(0.0, deadline - time.monotonic()) / (len(hard) - number)
        _exact(part, goal, problem.capacity is not None, time.monotonic() + left, seed, workers)
        if problem.capacity is None:
            goal = max(goal, part.peak)  # the peak is the highest part's: others need not be lower
    offsets = [body.fixed or 0 for body in problem.bodies]
    for part in parts:
        for index, base in zip(part.members, part.bases, strict=True):
            offsets[index] = int(base) * part.form.unit
    bound = max([bound, *(part.bound for part in parts)])
    highest = max(parts, key=lambda part: part.peak, default=None)
    return _result(problem, tuple(offsets), bound, highest.method if highest else "empty", began)


def _result(
    problem: PackingProblem, offsets: tuple[int, ...], bound: int, method: str, began: float
) -> Result[Packing]:
    packing = Packing(offsets, peak_of(problem, offsets))
    seconds = time.monotonic() - began
    if problem.capacity is not None and packing.peak > problem.capacity:
        status = Status.INFEASIBLE if bound > problem.capacity else Status.UNKNOWN
        detail = f"the best packing found reaches {packing.peak}, the capacity is {problem.capacity}"
        return Result(status, None, None, bound, seconds, method, detail)
    status = Status.OPTIMAL if packing.peak <= bound else Status.FEASIBLE
    return Result(status, packing, packing.peak, bound, seconds, method)


def _impossible_fixed(problem: PackingProblem) -> str:
    """What is wrong with the fixed offsets among themselves; empty if nothing."""
    fixed = [i for i, body in enumerate(problem.bodies) if body.fixed is not None]
    bodies = tuple(problem.bodies[i] for i in fixed)
    alone = PackingProblem(bodies, ids=tuple(problem.name(i) for i in fixed))
    offsets = tuple(body.fixed or 0 for body in bodies)
    return "; ".join(check_packing(alone, Packing(offsets, peak_of(alone, offsets))))


@dataclass(slots=True, eq=False)
class _Part:
    """Bodies that share no instant with other parts, and the best packing of them so far. Bytes, except `bases`."""

    members: list[int]
    form: Compact
    bound: int
    bases: Ints
    peak: int
    method: str
    conflicts: greedy.Conflicts


def _part(problem: PackingProblem, members: list[int]) -> _Part:
    form = compact(PackingProblem(tuple(problem.bodies[i] for i in members)))
    return _Part(members, form, lower_bound(form), form.fixed, 0, "", greedy.conflicts(form))


def _first_fit(parts: list[_Part], capacity: int, seed: int, deadline: float) -> None:
    """Static orders for every part; then the search over orders for those above the goal, in a quarter of the time."""
    goal = max([capacity, *(part.bound for part in parts)])
    placed = [greedy.portfolio(part.form, part.conflicts, goal // part.form.unit, deadline) for part in parts]
    until = deadline - 0.75 * max(0.0, deadline - time.monotonic())
    for part, start in zip(parts, placed, strict=True):
        c, target = part.form, goal // part.form.unit
        best = greedy.search(c, start, part.conflicts, target, passes=_SEARCH_PASSES, seed=seed, deadline=until)
        part.bases, part.peak, part.method = best.bases, best.peak * c.unit, best.method


def _exact(part: _Part, goal: int, enough: bool, deadline: float, seed: int, workers: int) -> None:
    """CP-SAT on one part: first any packing with a peak of `goal` bytes, then the least above it.

    `enough`: nothing above the goal is of use, since it is the capacity: all the time goes to reaching it.
    """
    c = part.form
    target, peak = goal // c.unit, part.peak // c.unit

    def attempt(lowest: int, highest: int, share: float) -> int:
        """Improve the part by a packing within the limits; returns a proven bound, meaningful only above `lowest`."""
        left = share * max(0.0, deadline - time.monotonic())
        _, bases, proven = cpsat.solve_cpsat(
            c, part.bases, lowest=lowest, highest=highest, time_limit_s=left, seed=seed, workers=workers
        )
        if bases is not None:
            part.bases, part.peak, part.method = bases, int(np.max(bases[c.owner] + c.hi)) * c.unit, "CP-SAT"
        return proven

    proven = attempt(target, target, 1.0 if enough else 0.5)
    if part.peak > goal and not enough and proven < peak:
        proven = max(proven, attempt(proven, peak - 1, 1.0))
    # CP-SAT looked no lower than the goal: what it proves is a bound only where it is above.
    if proven > target:
        part.bound = max(part.bound, proven * c.unit)
