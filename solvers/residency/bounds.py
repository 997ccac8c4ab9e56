"""Bounds on the time of a pass that need no linear program."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate

from .problem import Gap, ResidencyProblem


def compulsory_bound(problem: ResidencyProblem) -> float:
    """Largest of compute time and of the bytes each link must move, over its rate. Nanoseconds.

    Whatever exists at a step beyond the capacity is absent then, so it is loaded later in the pass, and stored before
    unless it is clean; what lies below when a pass begins is loaded once. Infinite where bytes must move over a link
    without a rate. Holds for every policy that keeps the order.
    """
    loads, stores = compulsory_nbytes(problem)
    load_ns = _time_ns(loads, problem.load_bytes_per_s)
    store_ns = _time_ns(stores, problem.store_bytes_per_s)
    if load_ns is None or store_ns is None:
        return math.inf
    links = load_ns + store_ns if problem.shared_channel else max(load_ns, store_ns)
    return round_down(max(Fraction(sum(problem.durations_ns)), links))


def round_down(value: Fraction) -> float:
    """The largest float that is not above the value, so that a bound stays one."""
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)


def compulsory_nbytes(problem: ResidencyProblem) -> tuple[int, int]:
    """Bytes that every pass loads, and that it stores, at least."""
    steps = len(problem.durations_ns)
    fresh = sum(gap.nbytes for gap in problem.gaps if gap.start < 0)
    alive = _profile(problem, [gap for gap in problem.gaps if gap.start >= 0])
    clean = _profile(problem, [gap for gap in problem.gaps if gap.start >= 0 and gap.clean])
    over = [problem.base_nbytes[t] + alive[t] - problem.capacity_nbytes for t in range(steps)]
    loads = fresh + max([0, *over])
    stores = max([0, *(over[t] - clean[t] for t in range(steps))])
    return loads, stores


def _profile(problem: ResidencyProblem, gaps: list[Gap]) -> list[int]:
    """Bytes of these gaps that cover each step."""
    steps = len(problem.durations_ns)
    change = [0] * (2 * steps + 2)
    for gap in gaps:
        change[gap.start + 1] += gap.nbytes
        change[gap.end] -= gap.nbytes
    levels = list(accumulate(change))
    return [levels[t] + (levels[t + steps] if problem.periodic else 0) for t in range(steps)]


def _time_ns(nbytes: int, bytes_per_s: float) -> Fraction | None:
    """None where the bytes can never arrive."""
    if nbytes == 0:
        return Fraction(0)
    return nbytes * 10**9 / Fraction(bytes_per_s) if bytes_per_s > 0 else None
