"""What first fit leaves above the goal: exact search, then CP-SAT, part by part."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from ..result import Status
from . import cpsat, greedy
from .compact import Ints, compact
from .loading import Progress, load_compiled
from .parts import Part
from .problem import Body, Box, PackingProblem

if TYPE_CHECKING:
    from .exact import Search

# CP-SAT's propagation of a 2-D no-overlap is quadratic and worse.
_CPSAT_BOXES = 1_500
_SEARCH_PASSES = 500
# Of the bodies of a large part, so many boxes of the most loaded go to exact search first.
_HOT_BOXES = 700


def improve(
    hard: list[Part],
    goal: int,
    enough: bool,
    deadline: float,
    seed: int,
    workers: int,
    notes: list[str],
    progress: Progress | None,
) -> float:
    """Lower the parts whose peak is above `goal` bytes; raise their bounds. Returns seconds of compiling, not counted.

    `enough`: the goal is the capacity: nothing above it is of use, and a part that cannot reach it ends the search.
    """
    compiled, compiling = load_compiled(notes, progress)
    deadline += compiling
    for number, part in enumerate(sorted(hard, key=lambda part: part.peak, reverse=True)):
        left = max(0.0, deadline - time.monotonic()) / (len(hard) - number)
        until = time.monotonic() + left
        if part.peak <= goal:
            continue
        if compiled and part.form.hi.dtype != np.dtype(object):
            _compiled(part, goal, enough, until, seed, workers)
        elif not part.large:
            _promote(part, goal, seed, time.monotonic() + 0.25 * left)
        if enough and part.bound > goal:  # nothing fits the capacity, whatever becomes of this part and the others
            break
        if part.peak > max(goal, part.bound) and len(part.form.owner) <= _CPSAT_BOXES:
            _cpsat(part, goal, enough, until, seed, workers)
            if enough and part.bound > goal:
                break
        if not enough:
            goal = max(goal, part.peak)  # the peak is the highest part's: others need not be lower
    return compiling


def _compiled(part: Part, goal: int, enough: bool, deadline: float, seed: int, workers: int) -> None:
    from . import exact

    c = part.form
    now = time.monotonic()
    small = len(c.owner) <= _CPSAT_BOXES
    until = now + (0.7 if small else 1.0) * (deadline - now)
    if not part.large and exact.fits_memory(c):
        _close_in(part, exact.Search(c, seed=seed), goal, enough, until, workers)
    else:
        _hot_first(part, goal, until, seed, workers)


def _close_in(part: Part, search: Search, goal: int, enough: bool, deadline: float, workers: int) -> None:
    """The goal first, with half the time; then, where less than the goal helps, halve what is between it and the peak.

    A capacity is refuted only by an exhausted search: only then does the bound rise.
    """
    unit = part.form.unit
    target = goal // unit
    proven = max(target, part.bound // unit) if not enough else target

    def attempt(capacity: int, until: float) -> bool:
        nonlocal proven
        found = search.run(capacity, until, workers)
        if found.bases is not None:
            part.take(found.bases, found.strategy)
        elif found.status == Status.INFEASIBLE:
            proven = max(proven, capacity + 1)
            part.bound = max(part.bound, proven * unit)
        return found.bases is not None

    now = time.monotonic()
    if attempt(target, deadline if enough else now + 0.5 * (deadline - now)) or enough:
        if part.bound < part.peak <= goal:  # a packing that is also proven least, where one round finds it
            found = search.run(part.bound // unit, deadline, workers, rounds=1)
            if found.bases is not None:
                part.take(found.bases, found.strategy)
        return
    low = proven
    while low < part.peak // unit and time.monotonic() < deadline:
        middle = (low + part.peak // unit - 1) // 2
        now = time.monotonic()
        if not attempt(middle, now + 0.25 * (deadline - now)):
            low = max(middle + 1, proven)


def _hot_first(part: Part, goal: int, deadline: float, seed: int, workers: int) -> None:
    """Thousands of bodies: those that live where the load is highest by exact search, the others fitted around them.

    Where the load is lower there is room for the waste of a first fit. Fixed bodies that the hot ones meet are given
    to the search with them, however low the load is there.
    """
    from . import exact
    from .fit import hottest, large_orders, place_compiled, with_fixed

    c = part.form
    for most in (_HOT_BOXES, _HOT_BOXES // 3, 2 * _HOT_BOXES):
        if part.peak <= goal or time.monotonic() >= deadline:
            return
        hot = with_fixed(c, hottest(c, most))
        small = compact(PackingProblem(tuple(_body(part, int(i)) for i in hot)))
        if not exact.fits_memory(small):
            continue
        capacity = max(goal // c.unit, exact.lower_bound(small))
        now = time.monotonic()
        search = exact.Search(small, seed=seed)
        found = search.run(capacity // small.unit, now + 0.4 * (deadline - now), workers, most_nodes=60 * len(small))
        if found.bases is None:
            continue
        bases = np.full(len(c), -1, dtype=np.int64)
        bases[[int(hot[i]) for i in small.bodies]] = found.bases * small.unit
        for name, order in large_orders(c).items():
            fitted = place_compiled(c, order, bases, stop_above=part.peak // c.unit - 1)
            if fitted is not None:
                part.take(fitted.bases, f"{found.strategy} where it is full, then first-fit by {name}")
            if part.peak <= goal or time.monotonic() >= deadline:
                return


def _body(part: Part, i: int) -> Body:
    """A body of a part in units."""
    c = part.form
    boxes = tuple(
        Box(int(c.first[k]), int(c.last[k]), int(c.lo[k]), int(c.hi[k])) for k in range(c.begin[i], c.begin[i + 1])
    )
    return Body(boxes, int(c.alignment[i]), None if c.fixed[i] < 0 else int(c.fixed[i]))


def _promote(part: Part, goal: int, seed: int, deadline: float) -> None:
    """Where nothing is compiled, or sizes exceed 64 bits: the search over first-fit orders."""
    c, meets = part.form, greedy.conflicts(part.form)
    target = goal // c.unit
    best = greedy.portfolio(c, meets, target, deadline)
    best = greedy.search(c, best, meets, target, passes=_SEARCH_PASSES, seed=seed, deadline=deadline)
    part.take(best.bases, best.method)


def _cpsat(part: Part, goal: int, enough: bool, deadline: float, seed: int, workers: int) -> None:
    """CP-SAT: any packing at the goal where nothing else helps, else the least between the bound and the peak."""
    c = part.form
    lowest = max(goal, part.bound) // c.unit
    highest = lowest if enough else part.peak // c.unit - 1
    bases: Ints | None
    _, bases, proven = cpsat.solve_cpsat(
        c,
        part.bases,
        lowest=lowest,
        highest=highest,
        time_limit_s=deadline - time.monotonic(),
        seed=seed,
        workers=workers,
    )
    if bases is not None:
        part.take(bases, "CP-SAT")
    # CP-SAT looked no lower than `lowest`: what it proves is a bound only where it is above.
    if proven > lowest:
        part.bound = max(part.bound, proven * c.unit)
