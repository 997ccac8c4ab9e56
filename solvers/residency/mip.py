"""`improve_residency`: whole tensors only. The same program with binary e, started from a rounding of the fluid one."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np

from ..linear import Highs
from ..result import Result, Status
from .lp import read_solution, trivial
from .model import build
from .problem import ResidencyProblem, ResidencySolution


def improve_residency(
    problem: ResidencyProblem, relaxed: Result[ResidencySolution], *, time_limit_s: float, relative_gap: float = 1e-3
) -> Result[ResidencySolution]:
    """The least time of a pass when every tensor is wholly absent or wholly kept in each gap, by branch and bound.

    For up to about 1,500 gaps. Objective and bound are nanoseconds a pass; the bound is one for whole tensors, at least
    the relaxation's. Among whole choices found equal the search prefers none. OPTIMAL: within `relative_gap` of its
    bound. The caller should simulate what comes back beside its own roundings and keep the best.
    """
    began = time.monotonic()
    early = trivial(problem, "MIP by highs", began)
    if early is not None:
        return early
    model = build(problem)
    whole = np.zeros(len(model.program.cost), dtype=np.bool_)
    whole[model.column["e"]] = True
    highs = Highs(replace(model.program, integer=whole))
    compute = float(sum(problem.durations_ns))
    highs.option("mip_rel_gap", 0.0)
    highs.option("mip_abs_gap", relative_gap * compute / model.ns_unit if compute else 1e-6)
    if relaxed.solution is not None:
        rounded = round_and_repair(problem, relaxed.solution.absent)
        chosen = np.array([rounded[g] for g in model.gaps], dtype=np.float64)
        highs.hint(model.column["e"].astype(np.int32), chosen)
    answer = highs.solve(time_limit_s - (time.monotonic() - began))
    seconds, method = time.monotonic() - began, "MIP by highs"
    bound = relaxed.bound if relaxed.bound is not None else compute
    if answer.bound is not None and math.isfinite(answer.bound):
        # The engine's bound is its own floats: what its tolerance could add is taken off.
        bound = max(bound, compute + (answer.bound - 1e-6 * max(1.0, abs(answer.bound))) * model.ns_unit)
    if answer.values is None:
        status = answer.status if answer.status in (Status.INFEASIBLE, Status.ERROR) else Status.UNKNOWN
        return Result(status, None, None, bound, seconds, method, answer.detail)
    solution = read_solution(problem, model, answer.values, None)
    objective = max(compute + math.fsum(solution.stall_ns), bound)
    proven = objective <= bound * (1 + relative_gap) + 1.0
    return Result(
        Status.OPTIMAL if proven else Status.FEASIBLE, solution, objective, bound, seconds, method, answer.detail
    )


def round_and_repair(problem: ResidencyProblem, absent: tuple[float, ...]) -> tuple[int, ...]:
    """Whole choices near the fractions: 1 above a half, then more gaps dropped until what is kept fits everywhere.

    While a step is over the capacity, the gap around it with the largest fraction is dropped, else the longest
    (DESIGN 4.1). Every step's base must be within the capacity.
    """
    steps = len(problem.durations_ns)
    chosen = [1 if fraction > 0.5 or problem.gaps[g].start < 0 else 0 for g, fraction in enumerate(absent)]
    over = np.array([b - problem.capacity_nbytes for b in problem.base_nbytes], dtype=object)
    around: list[list[int]] = [[] for _ in range(steps)]
    for g, gap in enumerate(problem.gaps):
        if not chosen[g] and gap.nbytes:
            for t in range(gap.start + 1, gap.end):
                over[t % steps] += gap.nbytes
                around[t % steps].append(g)
    for t in np.argsort(-over, kind="stable"):
        while over[t] > 0:
            left = [g for g in around[int(t)] if not chosen[g]]
            g = max(left, key=lambda g: (absent[g], problem.gaps[g].end - problem.gaps[g].start, -g))
            chosen[g] = 1
            for s in range(problem.gaps[g].start + 1, problem.gaps[g].end):
                over[s % steps] -= problem.gaps[g].nbytes
    return tuple(chosen)
