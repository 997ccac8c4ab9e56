"""`improve_residency`: whole tensors only. The same program with whole e, started from a rounding of the fluid one."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..engines import AUTO, solve_whole, whole_engines
from ..result import Result, Status
from .lp import read_solution, trivial
from .model import build
from .problem import ResidencyProblem, ResidencySolution
from .rounding import round_and_repair


def improve_residency(
    problem: ResidencyProblem,
    relaxed: Result[ResidencySolution],
    *,
    time_limit_s: float,
    relative_gap: float = 1e-3,
    engine: str = AUTO,
    decided: Mapping[int, bool] | None = None,
) -> Result[ResidencySolution]:
    """The least time of a pass when every tensor is wholly absent or wholly kept in each gap, by branch and bound.

    For up to about 1,500 gaps. Objective and bound are nanoseconds a pass; the bound is one for whole tensors, at least
    the relaxation's. Among whole choices found equal the search prefers none. OPTIMAL: within `relative_gap` of its
    bound. The caller should simulate what comes back beside its own roundings and keep the best.

    `engine` is one of `engines.NAMES`. `decided`: gaps that are absent (True) or kept (False) whatever it costs; then
    INFEASIBLE may mean that nothing fits with these. ERROR: the engine broke down, or its answer did not hold.

    Raises:
        ValueError: an unknown engine.
    """
    began = time.monotonic()
    method = f"MIP by {whole_engines(engine)[0]}"
    early = trivial(problem, method, began)
    if early is not None:
        return early
    model = build(problem)
    whole = np.zeros(len(model.program.cost), dtype=np.bool_)
    whole[model.column["e"]] = True
    lower, upper = model.program.col_lower.copy(), model.program.col_upper.copy()
    column = model.column["e of gap"]
    for g, absent in (decided or {}).items():
        if column[g] >= 0:
            lower[column[g]], upper[column[g]] = max(lower[column[g]], float(absent)), float(absent)
    compute = float(sum(problem.durations_ns))
    hint = None
    if relaxed.solution is not None:
        fractions = [float((decided or {}).get(g, e)) for g, e in enumerate(relaxed.solution.absent)]
        rounded = round_and_repair(problem, fractions)
        hint = model.column["e"].astype(np.int32), np.array([rounded[g] for g in model.gaps], dtype=np.float64)
    answer = solve_whole(
        replace(model.program, integer=whole, col_lower=lower, col_upper=upper),
        engine,
        time_limit_s - (time.monotonic() - began),
        hint=hint,
        gap=relative_gap * compute / model.ns_unit if compute else 1e-6,
    )
    seconds = time.monotonic() - began
    bound = relaxed.bound if relaxed.bound is not None else compute
    if answer.bound is not None:
        # The engine's bound is its own floats: what its tolerance could add is taken off.
        bound = max(bound, compute + (answer.bound - 1e-6 * max(1.0, abs(answer.bound))) * model.ns_unit)
    if answer.values is None:
        return Result(answer.status, None, None, bound, seconds, method, answer.detail)
    solution = read_solution(problem, model, answer.values, None)
    objective = max(compute + math.fsum(solution.stall_ns), bound)
    proven = objective <= bound * (1 + relative_gap) + 1.0
    return Result(
        Status.OPTIMAL if proven else Status.FEASIBLE, solution, objective, bound, seconds, method, answer.detail
    )
