"""Integer programs by CP-SAT, which knows whole numbers only: columns, rows and objective are counted in small units.

A continuous column is counted in 2^30 parts of its range, a row's coefficients in as many bits as 64 hold. What either
rounds off is added to the row's limits, so that whatever meets the program meets its counted form: that is infeasible
only where the program is, and its bound holds for the program. Rows over whole numbers alone whose coefficients fit are
exact. The values of continuous columns are as rough as that; whoever needs them fixes the whole ones and solves again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .linear import Floats, Indices, LinearAnswer, LinearProgram
from .result import Status

PARTS = 1 << 30
"""Into how many parts the range of a continuous column is divided."""

ROW_BITS, OBJECTIVE_BITS = 60, 52
"""Sums stay below 2^60, as CP-SAT has 64 bits; the objective's below 2^52, as its bound is told as a float."""

Term = tuple[int, Fraction]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Column j is lower[j] + unit[j] * k with whole k in [0, most[j]], right to half a unit, exactly where `exact`."""

    lower: list[Fraction]
    unit: list[Fraction]
    most: list[int]
    exact: list[bool]


@dataclass(frozen=True, slots=True)
class _Sum:
    """A sum counted in units of 1 / `scale`: coefficients by column, the constant in front of them, and how far the
    counted sum may be from scale * (the sum - constant)."""

    terms: list[tuple[int, int]]
    constant: Fraction
    scale: Fraction
    error: Fraction


def solve_cpsat(
    program: LinearProgram, time_limit_s: float, hint: tuple[Indices, Floats] | None = None
) -> LinearAnswer:
    """Solve once by CP-SAT; `bound` holds for the program itself. No duals.

    Every column needs finite limits; else the answer is an ERROR that says so. `hint`: columns and their values.
    """
    from ortools.sat.python import cp_model

    began = time.monotonic()
    if time_limit_s <= 0:
        return LinearAnswer(Status.UNKNOWN, None, None, detail="time ran out before CP-SAT began")
    if not (np.isfinite(program.col_lower).all() and np.isfinite(program.col_upper).all()):
        return LinearAnswer(Status.ERROR, None, None, detail="CP-SAT needs finite limits of every column")
    scale = _scale(program)
    if any(m < 0 for m in scale.most):
        return LinearAnswer(Status.INFEASIBLE, None, None, detail="a whole column has limits without one between")
    model: Any = cp_model.CpModel()
    columns = [model.new_int_var(0, most, f"x{j}") for j, most in enumerate(scale.most)]
    for i in range(len(program.row_lower)):
        _add_row(model, columns, program, scale, i)
    cost = _counted([(j, Fraction(float(c))) for j, c in enumerate(program.cost) if c], scale, OBJECTIVE_BITS)
    model.minimize(sum(c * columns[j] for j, c in cost.terms))
    for j, value in zip(*hint, strict=True) if hint is not None else ():
        k = round((Fraction(float(value)) - scale.lower[int(j)]) / scale.unit[int(j)]) if scale.unit[int(j)] else 0
        model.add_hint(columns[int(j)], min(max(k, 0), scale.most[int(j)]))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.0, time_limit_s - (time.monotonic() - began))
    solver.parameters.num_workers = 1  # the same answer for the same program
    solver.parameters.random_seed = 0
    state = solver.solve(model)
    if state == cp_model.INFEASIBLE:
        return LinearAnswer(Status.INFEASIBLE, None, None, detail="proven by CP-SAT")
    if state == cp_model.MODEL_INVALID:
        return LinearAnswer(Status.ERROR, None, None, detail=f"CP-SAT says: {model.validate()}")
    # Told as a float: below 2^53 that is the number itself.
    least = cost.constant + (Fraction(math.floor(solver.best_objective_bound)) - cost.error) / cost.scale
    bound = math.nextafter(float(least), -math.inf) if math.isfinite(solver.best_objective_bound) else None
    if state not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return LinearAnswer(Status.UNKNOWN, None, None, bound, "time ran out")
    counts = [solver.value(x) for x in columns]
    values = np.array([float(scale.lower[j] + scale.unit[j] * k) for j, k in enumerate(counts)])
    status = Status.OPTIMAL if state == cp_model.OPTIMAL else Status.FEASIBLE
    return LinearAnswer(status, values, None, bound, solver.status_name(state))


def _scale(program: LinearProgram) -> _Scale:
    whole = program.integer if program.integer is not None else np.zeros(len(program.cost), dtype=np.bool_)
    scale = _Scale([], [], [], [])
    for low, high, is_whole in zip(program.col_lower.tolist(), program.col_upper.tolist(), whole.tolist(), strict=True):
        lower, upper = Fraction(low), Fraction(high)
        if is_whole:
            lower = Fraction(math.ceil(lower))
            unit, most = Fraction(1), math.floor(upper) - int(lower)
        else:
            unit, most = ((upper - lower) / PARTS, PARTS) if upper > lower else (Fraction(0), 0)
        scale.lower.append(lower)
        scale.unit.append(unit)
        scale.most.append(most)
        scale.exact.append(is_whole or not unit)
    return scale


def _add_row(model: Any, columns: Sequence[Any], program: LinearProgram, scale: _Scale, i: int) -> None:
    low, high = float(program.row_lower[i]), float(program.row_upper[i])
    own = slice(int(program.starts[i]), int(program.starts[i + 1]))
    terms = [(int(j), Fraction(float(a))) for j, a in zip(program.indices[own], program.values[own], strict=True)]
    if math.isinf(low) and math.isinf(high):
        return
    row = _counted(terms, scale, ROW_BITS)
    reach = sum(abs(a) * scale.most[j] for j, a in row.terms)
    least, most = -reach, reach
    if math.isfinite(low):
        least = max(least, math.ceil((Fraction(low) - row.constant) * row.scale - row.error))
    if math.isfinite(high):
        most = min(most, math.floor((Fraction(high) - row.constant) * row.scale + row.error))
    left = sum(a * columns[j] for j, a in row.terms)
    if row.terms and least <= most:
        model.add_linear_constraint(left, least, most)
    elif least > most or not least <= 0 <= most:
        model.add_bool_or([])  # no values meet it


def _counted(terms: Sequence[Term], scale: _Scale, bits: int) -> _Sum:
    """sum a x in whole numbers below 2^bits: exactly if the columns are exact and the numbers fit."""
    constant = sum((a * scale.lower[j] for j, a in terms), Fraction(0))
    steps = [(j, a * scale.unit[j]) for j, a in terms if a and scale.most[j]]
    if not steps:
        return _Sum([], constant, Fraction(1), Fraction(0))
    reach = sum(abs(w) * scale.most[j] for j, w in steps)
    largest = max(abs(w) for _, w in steps)
    # A whole multiple of the largest coefficient: equal ones, the usual objective, are counted exactly.
    factor = max(1, math.floor((1 << bits) * largest / reach)) / largest
    if all(scale.exact[j] for j, _ in steps):
        common = math.lcm(*(w.denominator for _, w in steps))
        common = Fraction(common, math.gcd(*(w.numerator * (common // w.denominator) for _, w in steps)))
        if common * reach < 1 << bits:
            factor = common
    counted = [(j, round(w * factor)) for j, w in steps]
    # Half a unit of each column that is not exact, and what its coefficient was rounded by at every count.
    error = sum((abs(w) * factor / 2 for j, w in steps if not scale.exact[j]), Fraction(0))
    for (j, w), (_, n) in zip(steps, counted, strict=True):
        error += abs(w * factor - n) * scale.most[j]
    return _Sum([(j, n) for j, n in counted if n], constant, factor, error)
