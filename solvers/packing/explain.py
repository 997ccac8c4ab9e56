"""Why nothing fits: an irreducible infeasible subset of the bodies, each of which is needed for the proof.

The deletion filter (Chinneck and Dravnieks, "Locating minimal infeasible constraint sets in linear programs", ORSA
Journal on Computing 3, 1991): take one body after another out; where what is left is still proven not to fit, it stays
out. What remains does not fit, and without any one of its bodies it fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .check import check_packing
from .compact import Compact, compact, live_bytes, lower_bound
from .problem import Packing, PackingProblem, peak_of

# Decisions that a proof with one body less may take; where it takes more, the body is kept without knowing.
_PROOF_NODES = 4_000


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

    Where the load at one instant is above the capacity, the subset is the smallest of such: the largest bodies of the
    instant that needs the fewest.

    Raises:
        ValueError: a problem without a capacity.
    """
    if problem.capacity is None:
        raise ValueError("without a capacity everything fits; give the problem one to explain")
    deadline = time.monotonic() + time_limit_s
    fixed = _fixed_pair(problem)
    if fixed is not None:
        return fixed
    by_load = _by_load(problem)
    if by_load is not None:
        return by_load
    return _by_search(problem, deadline, seed)


def only(problem: PackingProblem, bodies: Sequence[int]) -> PackingProblem:
    """The problem with these bodies alone."""
    ids = tuple(problem.ids[i] for i in bodies) if problem.ids else ()
    return PackingProblem(tuple(problem.bodies[i] for i in bodies), problem.capacity, ids)


def _fixed_pair(problem: PackingProblem) -> Conflict | None:
    """A fixed body above the capacity or off its alignment, or two fixed bodies that collide."""
    fixed = [i for i, body in enumerate(problem.bodies) if body.fixed is not None]
    for k, i in enumerate(fixed):
        for group in ((i,), *((j, i) for j in fixed[:k])):
            part = only(problem, group)
            offsets = tuple(body.fixed or 0 for body in part.bodies)
            peak = peak_of(part, offsets)
            if check_packing(part, Packing(offsets, peak)):
                return Conflict(group, peak, "fixed offsets", True)
    return None


def _by_load(problem: PackingProblem) -> Conflict | None:
    """The fewest bodies whose live bytes at one instant exceed the capacity."""
    capacity = problem.capacity or 0
    c = compact(problem)
    best: list[int] | None = None
    loads = live_bytes(c)
    for now in sorted(range(c.live_sets), key=lambda s: -loads[s])[:200]:
        if loads[now] * c.unit <= capacity:
            break
        live = {int(c.owner[k]) for k in range(len(c.owner)) if c.first[k] <= now < c.last[k]}
        at_once = {b: sum(int(c.hi[k] - c.lo[k]) for k in _boxes_at(c, b, now)) for b in live}
        chosen: list[int] = []
        total = 0
        for b in sorted(live, key=lambda b: (-at_once[b], b)):
            chosen.append(c.bodies[b])
            total += at_once[b] * c.unit
            if total > capacity:
                break
        if best is None or len(chosen) < len(best):
            best = chosen
    if best is None:
        single = next((i for i in range(len(problem.bodies)) if _bound(problem, [i]) > capacity), None)
        return None if single is None else Conflict((single,), _bound(problem, [single]), "load bound", True)
    # Padding may be what exceeds the capacity; then, or where the plain sum sufficed, the filter makes it irreducible.
    if _bound(problem, best) <= capacity:
        return None
    for body in sorted(best, key=lambda i: max(b.hi for b in problem.bodies[i].boxes)):
        rest = [i for i in best if i != body]
        if _bound(problem, rest) > capacity:
            best = rest
    return Conflict(tuple(sorted(best)), _bound(problem, best), "load bound", True)


def _boxes_at(c: Compact, body: int, now: int) -> list[int]:
    return [k for k in range(int(c.begin[body]), int(c.begin[body + 1])) if c.first[k] <= now < c.last[k]]


def _bound(problem: PackingProblem, bodies: Sequence[int]) -> int:
    return lower_bound(compact(only(problem, bodies)))


def _by_search(problem: PackingProblem, deadline: float, seed: int) -> Conflict | None:
    """The deletion filter with the exact search as its proof: halves first, then quarters, then single bodies."""
    fits = _prover(problem, deadline, seed)
    kept = list(range(len(problem.bodies)))
    if fits(kept) is not False:
        return None
    size = max(1, len(kept) // 2)
    while True:
        start, sure = 0, True
        while start < len(kept):
            rest = kept[:start] + kept[start + size :]
            answer = fits(rest)
            if answer is False:
                kept = rest
            else:  # fewer bodies still fit without these, so they need not be tried again
                start += size
                sure = sure and answer is True
        if size == 1:
            break
        size //= 2
    assert problem.capacity is not None
    return Conflict(tuple(kept), problem.capacity + 1, "exact search", sure)


def _prover(problem: PackingProblem, deadline: float, seed: int) -> Callable[[list[int]], bool | None]:
    """Whether bodies fit the capacity: True and False are proven, None is not known."""
    from ..result import Status
    from .solve import load_compiled

    compiled, _ = load_compiled([], None)

    def fits(bodies: list[int]) -> bool | None:
        assert problem.capacity is not None
        c = compact(only(problem, bodies))
        if not len(c):
            return True
        if lower_bound(c) > problem.capacity:
            return False
        if not compiled or time.monotonic() >= deadline:
            return None
        from . import exact

        if not exact.fits_memory(c):
            return None
        found = exact.Search(c, seed=seed).run(problem.capacity // c.unit, deadline, 1, most_nodes=_PROOF_NODES)
        return None if found.status == Status.UNKNOWN else found.status == Status.FEASIBLE

    return fits
