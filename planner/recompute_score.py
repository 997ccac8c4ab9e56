"""How good an order with recomputation may become, quickly: residency alone, with memory looked at a few times a pass.

The program is that of the joint bound (`solvers.residency.recompute`) with nothing left to call again. What is alike is
counted as one there, so it takes a fraction of a second where the program of every step takes many.
"""

from __future__ import annotations

from dataclasses import replace

from ..solvers.residency.coarse_solve import solve_coarse
from ..solvers.residency.recompute import RecomputeProblem, Value, solve_recompute
from .instance import Instance
from .recompute_bound import gaps_at_home, lives_at_home, rates_of, with_margin

WINDOWS = 16
"""How often memory is looked at in a pass."""
MACRO_STEPS = 48
"""Parts of a pass in the program whose fractions the search for a plan rounds. Finer fractions round no better, where
most bytes move that may: 1.03 to 1.17 times the time in three of four cases, for ten times as long to solve."""
COARSE_STEPS = 200
"""Orders of fewer steps are solved as they are, in well under a second."""
SOLVED_S = 60.0
"""Longer than `search` lets a program take that it solves again for each cut: what is coarse is thinned instead."""


def order_problem(posed: Instance) -> RecomputeProblem:
    """The residency of an order that may hold repeated calls: each time something is made is a value of its own."""
    values: list[Value] = []
    for item in posed.items:
        nbytes = posed.graph.storage[item.storage].nbytes
        if not item.homed:
            values.append(Value(nbytes, item.touches, False))
        else:
            values += [
                Value(nbytes, touches, False) for touches in lives_at_home(item.touches, item.writes, posed.steps)
            ]
    load, store, shared = rates_of(posed)
    return RecomputeProblem(
        durations_ns=posed.durations_ns,
        needed_nbytes=posed.base_nbytes,
        reads=((),) * posed.steps,
        values=tuple(values),
        gaps=gaps_at_home(posed, posed.steps),
        capacity_nbytes=posed.capacity_nbytes,
        load_bytes_per_s=load,
        store_bytes_per_s=store,
        shared_channel=shared,
    )


def expected_ns(posed: Instance, margin: tuple[float, float] = (1.0, 1.0), *, time_limit_s: float = 5.0) -> float:
    """About the least nanoseconds of a pass in this order; infinite where nothing fits or time ended.

    With shares of the links' rates and of the capacity as a `margin`, as whole storages need to find addresses in time.
    """
    if posed.peak_of_all() <= margin[1] * posed.capacity_nbytes:
        return float(sum(posed.durations_ns))
    result = solve_recompute(with_margin(order_problem(posed), margin), windows=WINDOWS, time_limit_s=time_limit_s)
    return float("inf") if result.objective is None else float(result.objective)


def relax_coarsely(posed: Instance, *, time_limit_s: float) -> None:
    """Let the instance answer `relax` with the fractions of a coarse program, where the fine one is long."""
    if posed.steps >= COARSE_STEPS:
        problem = posed.residency_problem(posed.capacity_nbytes)
        result = solve_coarse(problem, macro_steps=MACRO_STEPS, time_limit_s=time_limit_s)
        if result.solution is not None:
            posed.remember(posed.capacity_nbytes, replace(result, seconds=SOLVED_S))
