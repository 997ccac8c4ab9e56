"""`pack`: bounds, portfolio, exact search and CP-SAT, in this order, on each independent part of a problem."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ..result import Result, Status
from .check import check_packing
from .compact import compact, lower_bound
from .disjoint import collision, verify_packing
from .loading import Progress
from .parts import Part, first_packings, split, whole_of, wishes
from .problem import Packing, PackingProblem, peak_of


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
    offsets where they can. `explained` has the detail of an INFEASIBLE answer name bodies that do not fit together,
    none of them without need (see `explain`). `progress` hears what takes long; compiling does not count against the
    time limit. Every packing is verified before it is the answer.

    Raises:
        ValueError: a start of another length.
    """
    if start is not None and len(start) != len(problem.bodies):
        raise ValueError(f"start has {len(start)} offsets for {len(problem.bodies)} bodies; give one each, or None")
    began = time.monotonic()
    wrong = _impossible_fixed(problem)
    if wrong:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "fixed offsets", wrong)
    wished = None if start is None else wishes(problem, start)
    whole = whole_of(problem, wished)
    bound, capacity = lower_bound(whole), problem.capacity
    goal = bound if capacity is None else capacity
    parts = split(problem, whole, bound, goal, wished) if bound <= goal else []
    bound = max([bound, *(part.bound for part in parts)])
    if capacity is not None and bound > capacity:
        detail = f"{bound} bytes are live at one instant, the capacity is {capacity}"
        detail += _why(problem, _guilty(problem, parts), 1) if explained else ""
        return Result(Status.INFEASIBLE, None, None, bound, time.monotonic() - began, "load bound", detail)
    goal = max(goal, bound)
    notes: list[str] = []
    compiling = first_packings(parts, goal, wished, began + time_limit_s, notes, progress)
    deadline = began + compiling + time_limit_s
    hard = [part for part in parts if part.peak > goal]
    if hard and time.monotonic() < deadline:
        from .improve import improve

        deadline += improve(hard, goal, capacity is not None, deadline, seed, workers, notes, progress)
    packing, method = _joined(problem, parts, wished)
    bound = max([bound, *(part.bound for part in parts)])
    result = _result(problem, packing, bound, method, began, "; ".join(notes))
    if result.status == Status.INFEASIBLE and explained:
        why = _why(problem, _guilty(problem, parts), max(1.0, deadline - time.monotonic()))
        return replace(result, detail=result.detail + why, seconds=time.monotonic() - began)
    return result


def _joined(problem: PackingProblem, parts: list[Part], wished: Sequence[int] | None) -> tuple[Packing, str]:
    """The packing of all parts, and what found that of the highest; the start, where that is a packing as low."""
    offsets = [body.fixed or 0 for body in problem.bodies] if wished is None else [max(0, w) for w in wished]
    for part in parts:
        for index, base in zip(part.members, part.bases, strict=True):
            offsets[index] = int(base) * part.form.unit
    found = Packing(tuple(offsets), peak_of(problem, tuple(offsets)))
    if wished is not None and min(wished, default=0) >= 0:
        given = Packing(tuple(wished), peak_of(problem, tuple(wished)))
        if given.peak <= found.peak and not verify_packing(problem, given):
            return given, "start"
    highest = max(parts, key=lambda part: part.peak, default=None)
    return found, highest.method if highest else "empty"


def _guilty(problem: PackingProblem, parts: list[Part]) -> list[int]:
    """The bodies of the smallest part that is proven not to fit the capacity; all, where no part is."""
    alone = [part.members for part in parts if part.bound > (problem.capacity or 0)]
    return min(alone, key=len, default=list(range(len(problem.bodies))))


def _why(problem: PackingProblem, members: list[int], time_limit_s: float) -> str:
    """Which of these bodies do not fit together, as a continuation of the detail."""
    from .explain import explain, only

    conflict = explain(only(problem, members), time_limit_s=time_limit_s)
    if conflict is None:
        return ""
    names = ", ".join(problem.name(members[i]) for i in conflict.bodies[:12])
    more = len(conflict.bodies) - 12
    names += f" and {more} more" if more > 0 else ""
    return (
        f"; these {len(conflict.bodies)} bodies alone need {conflict.needed} or more ({conflict.method}"
        f"{'' if conflict.irreducible else ', perhaps fewer would'}): {names}"
    )


def _result(
    problem: PackingProblem, packing: Packing, bound: int, method: str, began: float, notes: str
) -> Result[Packing]:
    if problem.capacity is not None and packing.peak > problem.capacity:
        seconds = time.monotonic() - began
        if bound > problem.capacity:
            detail = f"search proves that a peak of {bound} is needed, the capacity is {problem.capacity}"
            return Result(Status.INFEASIBLE, None, None, bound, seconds, method, detail)
        detail = f"the best packing found reaches {packing.peak}, the capacity is {problem.capacity}"
        return Result(Status.UNKNOWN, None, None, bound, seconds, method, "; ".join(n for n in (detail, notes) if n))
    wrong = verify_packing(problem, packing)
    assert not wrong, f"the packer made a wrong packing: {wrong[0]}"
    status = Status.OPTIMAL if packing.peak <= bound else Status.FEASIBLE
    return Result(status, packing, packing.peak, bound, time.monotonic() - began, method, notes)


def _impossible_fixed(problem: PackingProblem) -> str:
    """What is wrong with the fixed offsets among themselves; empty if nothing."""
    fixed = [i for i, body in enumerate(problem.bodies) if body.fixed is not None]
    bodies = [problem.bodies[i] for i in fixed]
    offsets = tuple(body.fixed or 0 for body in bodies)
    wrong = [k for k, (body, offset) in enumerate(zip(bodies, offsets, strict=True)) if offset % body.alignment]
    wrong = wrong or list(collision(bodies, offsets) or ())
    if not wrong:
        return ""
    names = tuple(problem.ids[fixed[k]] if problem.ids else str(fixed[k]) for k in wrong)
    alone = PackingProblem(tuple(bodies[k] for k in wrong), ids=names)
    at = tuple(offsets[k] for k in wrong)
    return "; ".join(check_packing(alone, Packing(at, peak_of(alone, at))))
