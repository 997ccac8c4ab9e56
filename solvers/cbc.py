"""CBC through PuLP: slow to build, a second opinion on linear and on integer programs."""

from __future__ import annotations

import math
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .linear import LONGEST_S, LinearAnswer, LinearProgram
from .result import Status

TOLERANCE = 1e-9
"""What is asked of CBC for rows and for whole numbers; by itself it would be 1e-7 and 1e-6."""

_LOWER_BOUND = re.compile(r"^\s*Lower bound:\s*(-?[\d.eE+-]+)", re.MULTILINE)
"""How CBC ends its log when it was stopped. What it calls 'best possible' on the way may be that of a smaller program
inside a heuristic."""

PRINTED = 5e-4
"""By how much a bound may be below what is printed of it: three digits behind the point, whatever its size."""


def solve_cbc(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
    """Solve once by CBC. `bound` of an integer program is what CBC reports, less what it rounds off in print."""
    if time_limit_s <= 0:
        return LinearAnswer(Status.UNKNOWN, None, None, detail="time ran out before CBC began")
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # PuLP 3 announces the names of PuLP 4 on every call; those that serve both do not exist.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _solve(program, time_limit_s, Path(folder))


def _solve(program: LinearProgram, time_limit_s: float, folder: Path) -> LinearAnswer:
    import pulp

    api: Any = pulp
    model, limits = _model(api, program)
    log = folder / "log"
    engine = api.PULP_CBC_CMD(
        msg=False,
        timeLimit=min(time_limit_s, LONGEST_S),
        gapRel=0.0,
        gapAbs=0.0,
        logPath=str(log),
        options=[f"primalTolerance {TOLERANCE}", f"integerTolerance {TOLERANCE}", "allowableGap 0", "increment 0"],
    )
    engine.tmpDir = str(folder)  # a run that is stopped leaves its files there, not in the system's folder
    began = time.monotonic()
    try:
        model.solve(engine)
    except (api.PulpSolverError, OSError) as error:
        return LinearAnswer(Status.ERROR, None, None, detail=f"CBC broke down: {error}")
    word, state = api.LpStatus[model.status], model.sol_status
    if word == "Infeasible" or state == api.LpSolutionInfeasible:
        return LinearAnswer(Status.INFEASIBLE, None, None, detail="proven by CBC")
    bound = _bound(log, program)
    if state not in (api.LpSolutionOptimal, api.LpSolutionIntegerFeasible):
        late = time.monotonic() - began >= 0.9 * time_limit_s
        return LinearAnswer(Status.UNKNOWN if late else Status.ERROR, None, None, bound, f"CBC says: {word}")
    by_name = {column.name: float(column.value() or 0.0) for column in model.variables()}
    values = np.array([by_name.get(f"x{j}", program.col_lower[j]) for j in range(len(program.cost))])
    if state != api.LpSolutionOptimal:  # PuLP calls the program's status 'Optimal' whenever there is a solution
        return LinearAnswer(Status.FEASIBLE, values, None, bound, "time ran out")
    if program.integer is not None:
        least = float(program.cost @ values)  # it is printed with ten digits
        return LinearAnswer(Status.OPTIMAL, values, None, least - 1e-7 * max(TOLERANCE, abs(least)))
    named: dict[str, Any] = dict(model.constraints)
    duals = np.array([sum(float(named[n].pi or 0.0) for n in pair if n in named) for pair in limits])
    return LinearAnswer(Status.OPTIMAL, values, duals)


def _bound(log: Path, program: LinearProgram) -> float | None:
    """The last bound that the log tells; None for a linear program."""
    if program.integer is None or not log.exists():
        return None
    found = _LOWER_BOUND.findall(log.read_text(errors="replace"))
    return _printed(float(found[-1])) if found else None


def _printed(value: float) -> float:
    """The least that a bound may be that was printed so."""
    return value - PRINTED - TOLERANCE * abs(value)


def _model(api: Any, program: LinearProgram) -> tuple[Any, list[tuple[str, str]]]:
    """The program with columns x0, x1, ...; a row i becomes `l<i>` and `u<i>`, as far as its sides are finite."""
    model: Any = api.LpProblem("program", api.LpMinimize)
    whole = program.integer if program.integer is not None else np.zeros(len(program.cost), dtype=np.bool_)
    columns = [
        api.LpVariable(f"x{j}", float(a), None if math.isinf(b) else float(b), "Integer" if w else "Continuous")
        for j, (a, b, w) in enumerate(zip(program.col_lower, program.col_upper, whole, strict=True))
    ]
    model += api.LpAffineExpression([(x, float(c)) for x, c in zip(columns, program.cost, strict=True)])
    limits = [(f"l{i}", f"u{i}") for i in range(len(program.row_lower))]
    for i, (lower, upper) in enumerate(zip(program.row_lower, program.row_upper, strict=True)):
        own = slice(int(program.starts[i]), int(program.starts[i + 1]))
        left = api.LpAffineExpression(
            [(columns[int(j)], float(a)) for j, a in zip(program.indices[own], program.values[own], strict=True)]
        )
        if lower == upper:
            model += (left == float(lower)), f"l{i}"
            continue
        if math.isfinite(lower):
            model += (left >= float(lower)), f"l{i}"
        if math.isfinite(upper):
            model += (left <= float(upper)), f"u{i}"
    return model, limits
