"""`pack`: bounds, portfolio, exact search and CP-SAT, in this order, on each independent part of a problem."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..result import Result, Status
from . import greedy
from .check import check_packing
from .compact import Compact, Ints, compact, components, lower_bound
from .disjoint import disjoint
from .problem import Packing, PackingProblem, peak_of

Progress = Callable[[str], None]

# Parts above this many boxes get compiled first fits, and exact search on their most loaded bodies alone.
_LARGE = 1_600
HOT_BOXES = 700


def load_bound(problem: PackingProblem) -> int:
    """Largest sum of live bytes at an instant: no packing has a lower peak.

    Padding between aligned bodies is counted where every packing needs it; see `compact.live_bytes`. What a fixed
    body reaches by itself counts too.
    """
    return lower_bound(compact(problem))


def pack(
    problem: PackingProblem,
    *,
    time_limit_s: float = 10.0,
    seed: int = 0,
    workers: int = 2,
    start: Sequence[int | None] | None = None,
    explained: bool = False,
    progress: Progress | None = None,
) -> Result[Packing]:
    """Offsets with the least peak; with a capacity, any within it.

    Objective and bound are peaks in bytes. OPTIMAL: peak equals the bound. FEASIBLE: a packing (within the capacity,
    if there is one), not proven least. INFEASIBLE: proven that nothing fits the capacity or the fixed offsets.
    UNKNOWN: no packing within the capacity was found in time. The same seed gives the same answer as long as the time
    limit cuts nothing short.

    `start` is an earlier packing: an offset for each body, or None where there is none. If it is a packing (within the
    capacity) the answer is never above it, and equals it unless a lower peak is found; if not, bodies keep their
    offsets where they can. `explained` has the detail of an INFEASIBLE answer
    name bodies that do not fit together, none of them without need (see `explain`). `progress` hears
    what takes long; compiling does not count against the time limit.

    Raises:
        ValueError: a start of another length.
    """
    if start is not None and len(start) != len(problem.bodies):
        raise ValueError(f"start has {len(start)} offsets for {len(problem.bodies)} bodies; give one each, or None")
    began = time.monotonic()
    wrong = _impossible_fixed(problem)
    if wrong:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "fixed offsets", wrong)
    whole = compact(problem)
    bound = lower_bound(whole)
    if problem.capacity is not None and bound > problem.capacity:
        detail = f"{bound} bytes are live at one instant, the capacity is {problem.capacity}" + _why(
            problem, explained, 1
        )
        return Result(Status.INFEASIBLE, None, None, bound, time.monotonic() - began, "load bound", detail)
    parts = _parts(problem, whole, bound)
    goal = max([problem.capacity or 0, *(part.bound for part in parts)])
    notes: list[str] = []
    compiling = _first_fit(parts, problem, goal, start, began + time_limit_s, notes, progress)
    deadline = began + compiling + time_limit_s
    goal = problem.capacity if problem.capacity is not None else max([0, *(part.bound for part in parts)])
    hard = [part for part in parts if part.peak > goal]
    if hard and time.monotonic() < deadline:
        from .improve import improve

        deadline += improve(hard, goal, problem.capacity is not None, deadline, seed, workers, notes, progress)
    offsets = [body.fixed or 0 for body in problem.bodies]
    for part in parts:
        for index, base in zip(part.members, part.bases, strict=True):
            offsets[index] = int(base) * part.form.unit
    bound = max([bound, *(part.bound for part in parts)])
    highest = max(parts, key=lambda part: part.peak, default=None)
    result = _result(problem, tuple(offsets), bound, highest.method if highest else "empty", began, "; ".join(notes))
    if result.status == Status.INFEASIBLE:
        why = _why(problem, explained, max(1.0, deadline - time.monotonic()))
        return replace(result, detail=result.detail + why, seconds=time.monotonic() - began)
    return result


def _why(problem: PackingProblem, wanted: bool, time_limit_s: float) -> str:
    """Which bodies do not fit together, as a continuation of the detail."""
    from .explain import explain

    conflict = explain(problem, time_limit_s=time_limit_s) if wanted else None
    if conflict is None:
        return ""
    names = ", ".join(problem.name(i) for i in conflict.bodies[:12])
    more = len(conflict.bodies) - 12
    names += f" and {more} more" if more > 0 else ""
    return (
        f"; these {len(conflict.bodies)} bodies alone need {conflict.needed} or more ({conflict.method}"
        f"{'' if conflict.irreducible else ', perhaps fewer would'}): {names}"
    )


def _result(
    problem: PackingProblem, offsets: tuple[int, ...], bound: int, method: str, began: float, notes: str
) -> Result[Packing]:
    packing = Packing(offsets, peak_of(problem, offsets))
    seconds = time.monotonic() - began
    if problem.capacity is not None and packing.peak > problem.capacity:
        if bound > problem.capacity:
            detail = f"search proves that a peak of {bound} is needed, the capacity is {problem.capacity}"
            return Result(Status.INFEASIBLE, None, None, bound, seconds, method, detail)
        detail = f"the best packing found reaches {packing.peak}, the capacity is {problem.capacity}"
        return Result(Status.UNKNOWN, None, None, bound, seconds, method, "; ".join(n for n in (detail, notes) if n))
    status = Status.OPTIMAL if packing.peak <= bound else Status.FEASIBLE
    return Result(status, packing, packing.peak, bound, seconds, method, notes)


def _impossible_fixed(problem: PackingProblem) -> str:
    """What is wrong with the fixed offsets among themselves; empty if nothing."""
    fixed = [i for i, body in enumerate(problem.bodies) if body.fixed is not None]
    bodies = tuple(problem.bodies[i] for i in fixed)
    alone = PackingProblem(bodies, ids=tuple(problem.name(i) for i in fixed))
    offsets = tuple(body.fixed or 0 for body in bodies)
    if disjoint(bodies, offsets):
        return ""
    return "; ".join(check_packing(alone, Packing(offsets, peak_of(alone, offsets))))


@dataclass(slots=True, eq=False)
class Part:
    """Bodies that share no instant with other parts, and the best packing of them so far. Bytes, except `bases`.

    `bound` is proven; `hot` are positions of the bodies to which exact search is confined (None: all).
    """

    members: list[int]
    form: Compact
    bound: int
    bases: Ints
    peak: int
    method: str

    @property
    def large(self) -> bool:
        """Whether it is too large for anything quadratic in Python."""
        return len(self.form.owner) > _LARGE

    def take(self, bases: Ints, method: str) -> None:
        """Accept a packing if it is lower."""
        peak = int(np.max(bases[self.form.owner] + self.form.hi)) * self.form.unit
        if not self.method or peak < self.peak:
            self.bases, self.peak, self.method = bases, peak, method


def _parts(problem: PackingProblem, whole: Compact, bound: int) -> list[Part]:
    """The independent parts; where there is but one, it is the whole, which is compact already."""
    groups = components(whole)
    if len(groups) == 1:
        form = replace(whole, bodies=tuple(range(len(whole))))
        return [Part(list(whole.bodies), form, bound, form.fixed, 0, "")]
    return [_part(problem, [whole.bodies[i] for i in group]) for group in groups]


def _part(problem: PackingProblem, members: list[int]) -> Part:
    form = compact(PackingProblem(tuple(problem.bodies[i] for i in members)))
    return Part(members, form, lower_bound(form), form.fixed, 0, "")


def _first_fit(
    parts: list[Part],
    problem: PackingProblem,
    goal: int,
    start: Sequence[int | None] | None,
    deadline: float,
    notes: list[str],
    progress: Progress | None,
) -> float:
    """The start, then static orders for every part. Returns the seconds that compiling took."""
    compiling = 0.0
    for part in parts:
        c, target = part.form, goal // part.form.unit
        if start is not None:
            part.take(_from_start(part, [start[i] for i in part.members]), "start")
        if part.method and part.peak <= max(goal, part.bound):
            continue
        if part.large and c.hi.dtype != np.dtype(object):
            compiled, seconds = load_compiled(notes, progress)
            compiling += seconds
            if compiled:
                from .fit import portfolio_compiled

                found = portfolio_compiled(c, target, deadline + compiling)
                part.take(found.bases, found.method)
                continue
        found = greedy.portfolio(c, greedy.conflicts(c), target, deadline)
        part.take(found.bases, found.method)
    return compiling


def _from_start(part: Part, start: list[int | None]) -> Ints:
    """Bodies keep the offsets of a start in the order of these offsets where they are free; others go by first fit."""
    c = part.form
    wished = [-1 if s is None or s < 0 or s % c.unit else s // c.unit for s in start]
    order = np.array(sorted(range(len(c)), key=lambda i: (wished[i] < 0, wished[i], -int(c.hi[c.begin[i]]))))
    return greedy.first_fit(c, order.astype(np.int64), greedy.conflicts(c), wished=wished)


_loaded: list[bool] = []


def load_compiled(notes: list[str], progress: Progress | None) -> tuple[bool, float]:
    """Have the compiled search ready: whether it is, and the seconds that it took. What stands in the way is noted."""
    if _loaded:
        return _loaded[0], 0.0
    began = time.monotonic()
    try:
        from .. import jit
        from . import exact
    except ImportError as error:
        _loaded.append(False)
        notes.append(f"without numba there is no exact search, only first fit and CP-SAT ({error})")
        return False, time.monotonic() - began
    if progress is not None and not jit.is_compiled(exact.kernel.search):
        progress(f"compiling the packing search, once: it is kept in {jit.cache_folder()}")
    exact.warm_up()
    notes.extend(jit.uncached)
    _loaded.append(True)
    return True, time.monotonic() - began
