"""Linear programs as arrays, the engines that solve them, and bounds that hold whatever an engine's tolerance.

Engines differ in speed and in trust; nothing else of ours knows them. A `LinearProgram` is passed in bulk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .result import Status

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class LinearProgram:
    """Minimise cost @ x subject to row_lower <= A x <= row_upper and col_lower <= x <= col_upper.

    A is stored by rows: row i has `values`[starts[i] : starts[i+1]] at columns `indices`[...]. `integer` marks columns
    that must be whole numbers; None if none must.
    """

    cost: Floats
    col_lower: Floats
    col_upper: Floats
    row_lower: Floats
    row_upper: Floats
    starts: Indices
    indices: Indices
    values: Floats
    integer: NDArray[np.bool_] | None = None

    @property
    def rows_of_entries(self) -> NDArray[np.int64]:
        """The row of each entry of `values`."""
        return np.repeat(np.arange(len(self.row_lower)), np.diff(self.starts))


@dataclass(frozen=True, slots=True, eq=False)
class LinearAnswer:
    """What an engine says. `duals` are per row, with cost - A' duals the reduced costs; None for integer programs.

    `bound` is the engine's own bound of an integer program, None otherwise.
    """

    status: Status
    values: Floats | None
    duals: Floats | None
    bound: float | None = None
    detail: str = ""


LONGEST_S = 1e9
"""No search lasts so long. Engines that count whole milliseconds, or read a number, are given no more, nor infinity."""

Engine = Callable[[LinearProgram, float], LinearAnswer]


def safe_bound(program: LinearProgram, duals: Floats) -> float:
    """A lower bound on the optimum from any row multipliers, rounding included; -inf where a column is unbounded.

    Weak duality: cost @ x >= y @ b + sum_j min over [l_j, u_j] of (cost - A'y)_j x_j, for every y of the right signs.
    What rounding may add in forming these sums is subtracted (Neumaier and Shcherbina, Math. Program. 99, 2004), so
    an engine's dual tolerance makes the bound weaker, never wrong.
    """
    usable = np.where(duals > 0, np.isfinite(program.row_lower), np.isfinite(program.row_upper))
    y = np.where(usable, duals, 0.0)
    side = np.where(y > 0, program.row_lower, program.row_upper)
    row_terms = np.where(y != 0, y * np.where(y != 0, side, 0.0), 0.0)
    entries = program.values * y[program.rows_of_entries]
    columns = len(program.cost)
    reduced = program.cost - np.bincount(program.indices, weights=entries, minlength=columns)
    counts = np.bincount(program.indices, minlength=columns)
    size = np.abs(program.cost) + np.bincount(program.indices, weights=np.abs(entries), minlength=columns)
    # Every coefficient was itself rounded when it was scaled: four more operations each.
    rounding = np.finfo(np.float64).eps * (counts + 8) * size
    best = np.minimum(_product(reduced - rounding, program.col_lower), _product(reduced - rounding, program.col_upper))
    worst = np.minimum(_product(reduced + rounding, program.col_lower), _product(reduced + rounding, program.col_upper))
    terms = np.minimum(best, worst)
    total = math.fsum(row_terms.tolist()) + math.fsum(terms.tolist())
    return total - 8 * np.finfo(np.float64).eps * (float(np.abs(row_terms).sum()) + float(np.abs(terms).sum()))


def _product(coefficients: Floats, limits: Floats) -> Floats:
    """Products in which zero times infinity is zero."""
    with np.errstate(invalid="ignore"):
        return np.where(coefficients == 0, 0.0, coefficients * limits)


WRONG_PRESOLVE = ("1.14.0",)
"""Versions of HiGHS whose presolve makes integer programs with continuous columns end in wrong optima: its issues 2957,
3043 and 3073, present from 1.14.0, repaired for 1.15. Linear programs are not concerned."""


def whole_presolve(highs: Any) -> str:
    """HiGHS's option 'presolve' for integer programs; `highs` is a `highspy.Highs`."""
    return "off" if highs.version() in WRONG_PRESOLVE else "choose"


class Highs:
    """One program inside HiGHS, kept so that a changed objective starts from the last basis."""

    def __init__(self, program: LinearProgram) -> None:
        import highspy

        self._program = program
        self._api: Any = highspy
        self._highs: Any = highspy.Highs()
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        # A tensor of a few bytes beside a capacity of terabytes is small, not zero.
        self._highs.setOptionValue("small_matrix_value", 1e-12)
        if program.integer is not None:
            self._highs.setOptionValue("presolve", whole_presolve(self._highs))
        self._highs.passModel(_highs_lp(highspy, program))

    def set_cost(self, cost: Floats) -> None:
        """Another objective over the same columns."""
        self._highs.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)

    def set_row_upper(self, row: int, upper: float) -> None:
        """Another upper limit of one row."""
        self._highs.changeRowBounds(row, float(self._program.row_lower[row]), upper)

    def set_rows_upper(self, rows: NDArray[np.int64], upper: Floats) -> None:
        """Other upper limits of some rows."""
        lower = self._program.row_lower[rows]
        self._highs.changeRowsBounds(len(rows), rows.astype(np.int32), lower, upper)

    def hint(self, columns: Indices, values: Floats) -> None:
        """Values of some columns that an integer search should complete to a first solution."""
        self._highs.setSolution(len(columns), columns, values)

    def option(self, name: str, value: Any) -> None:
        """Set an option of HiGHS by its documented name."""
        self._highs.setOptionValue(name, value)

    def solve(self, time_limit_s: float) -> LinearAnswer:
        """Run from where the last run ended."""
        # HiGHS counts its time limit over all runs of an instance.
        self._highs.setOptionValue("time_limit", float(self._highs.getRunTime()) + max(0.0, time_limit_s))
        self._highs.run()
        solution, info, state = self._highs.getSolution(), self._highs.getInfo(), self._highs.getModelStatus()
        word = self._highs.modelStatusToString(state)
        codes = self._api.HighsModelStatus
        if state == codes.kInfeasible:
            return LinearAnswer(Status.INFEASIBLE, None, None, detail=word)
        feasible = info.primal_solution_status == self._api.SolutionStatus.kSolutionStatusFeasible
        values = np.array(solution.col_value, dtype=np.float64) if feasible else None
        duals = np.array(solution.row_dual, dtype=np.float64) if solution.dual_valid else None
        bound = float(info.mip_dual_bound) if self._program.integer is not None else None
        if state == codes.kOptimal:
            return LinearAnswer(Status.OPTIMAL, values, duals, bound, word)
        if state not in (codes.kTimeLimit, codes.kIterationLimit, codes.kInterrupt, codes.kSolutionLimit):
            return LinearAnswer(Status.ERROR, values, duals, bound, f"HiGHS says: {word}")
        return LinearAnswer(Status.FEASIBLE if feasible else Status.UNKNOWN, values, duals, bound, word)


def _highs_lp(api: Any, program: LinearProgram) -> Any:
    lp = api.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.cost), len(program.row_lower)
    lp.col_cost_ = program.cost
    lp.col_lower_, lp.col_upper_ = program.col_lower, program.col_upper
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = api.MatrixFormat.kRowwise
    lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = len(program.cost), len(program.row_lower)
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = program.starts, program.indices, program.values
    if program.integer is not None:
        kinds = (api.HighsVarType.kContinuous, api.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(whole)] for whole in program.integer]
    return lp


def solve_highs(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
    """Solve once by HiGHS."""
    return Highs(program).solve(time_limit_s)


def solve_glop(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
    """Solve once by GLOP, OR-Tools' simplex. Continuous columns only."""
    from ortools.linear_solver import pywraplp

    solver: Any = pywraplp.Solver.CreateSolver("GLOP")
    columns = [solver.NumVar(float(a), float(b), "") for a, b in zip(program.col_lower, program.col_upper, strict=True)]
    rows = [solver.Constraint(float(a), float(b)) for a, b in zip(program.row_lower, program.row_upper, strict=True)]
    for row, column, value in zip(program.rows_of_entries, program.indices, program.values, strict=True):
        rows[int(row)].SetCoefficient(columns[int(column)], float(value))
    for column, cost in zip(columns, program.cost, strict=True):
        solver.Objective().SetCoefficient(column, float(cost))
    solver.Objective().SetMinimization()
    solver.SetTimeLimit(max(1, int(1000 * min(time_limit_s, LONGEST_S))))
    state = solver.Solve()
    if state == pywraplp.Solver.INFEASIBLE:
        return LinearAnswer(Status.INFEASIBLE, None, None)
    if state not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
        status = Status.UNKNOWN if state == pywraplp.Solver.NOT_SOLVED else Status.ERROR
        return LinearAnswer(status, None, None, detail=f"GLOP ended in state {state}")
    values = np.array([column.solution_value() for column in columns])
    if state == pywraplp.Solver.FEASIBLE:
        return LinearAnswer(Status.FEASIBLE, values, None)
    return LinearAnswer(Status.OPTIMAL, values, np.array([row.dual_value() for row in rows]))


def solve_cbc(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
    """Solve once by CBC, through PuLP."""
    from . import cbc  # it uses what stands here

    return cbc.solve_cbc(program, time_limit_s)


ENGINES: dict[str, Engine] = {"highs": solve_highs, "glop": solve_glop, "cbc": solve_cbc}
