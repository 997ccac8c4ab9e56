"""`solve_residency`: the fluid optimum of a residency problem, with a bound that no tolerance can make wrong."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np

from ..engines import AUTO, linear_engine
from ..linear import ENGINES, Floats, Highs, LinearAnswer, safe_bound
from ..result import Result, Status
from .bounds import compulsory_bound, round_down
from .model import Model, build
from .problem import ResidencyProblem, ResidencySolution

# Relative; a solution within this of its bound is called optimal. Engines work to about 1e-7.
_TOLERANCE = 1e-6

FINE_SIZE = 6_000
"""Up to so many steps and gaps together the program of every step is solved: about five seconds of one core."""


def solve_residency(
    problem: ResidencyProblem, *, time_limit_s: float = 30.0, engine: str = AUTO
) -> Result[ResidencySolution]:
    """The least time of a pass, by linear programming, and the solution that moves the fewest bytes in that time.

    Objective and bound are nanoseconds a pass: the durations and all waiting. The bound holds for every timeline of
    this order on these two tiers, with tensors split at will, loads and stores started at any time, as long as no item
    is stored before its first gap begins; it is formed from the duals by weak duality and keeps within rounding.

    Among solutions of that time the fewest bytes are moved; ties are broken so that what stays is spread evenly over
    the order and few items are divided. `engine` is one of `engines.NAMES`.

    Above `FINE_SIZE` it is `coarse_solve.solve_coarse` that answers: the bound holds all the same, the solution is a
    timeline that keeps every limit but may take a little longer than the least.

    INFEASIBLE: a step's base exceeds the capacity, or bytes must move over a link without a rate. UNKNOWN: time ran
    out before there was a solution. ERROR: the engine broke down; `detail` says how.

    Raises:
        ValueError: an unknown engine.
    """
    return Relaxer(problem, engine=engine).solve(problem.capacity_nbytes, time_limit_s=time_limit_s)


class Relaxer:
    """`solve_residency` of one problem under several capacities: each program starts where the last one ended, which
    takes about a half of the time that it takes alone (HiGHS only; other engines begin anew)."""

    def __init__(self, problem: ResidencyProblem, *, engine: str = AUTO) -> None:
        """Raises ValueError for an unknown engine."""
        self.problem, self.engine = problem, linear_engine(engine)
        self._model: Model | None = None
        self._highs: Highs | None = None

    def solve(self, capacity_nbytes: int, *, time_limit_s: float) -> Result[ResidencySolution]:
        """The answer for another capacity than the problem's own."""
        problem = replace(self.problem, capacity_nbytes=capacity_nbytes)
        if len(problem.durations_ns) + len(problem.gaps) > FINE_SIZE:
            from .coarse_solve import solve_coarse  # it uses what stands below

            return solve_coarse(problem, time_limit_s=time_limit_s, engine=self.engine)
        began = time.monotonic()
        early = trivial(problem, f"LP by {self.engine}", began)
        if early is not None:
            return early
        try:
            model = self._posed(problem)
            first, second = self._two_stages(model, problem, began + time_limit_s)
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            self._model = self._highs = None
            model = build(problem)
            first, second = LinearAnswer(Status.ERROR, None, None, detail=f"{self.engine} broke down: {error}"), None
        return _result(problem, model, first, second, began, self.engine)

    def _posed(self, problem: ResidencyProblem) -> Model:
        """The program of the problem: the first one's, under another capacity. What limits its columns holds for
        smaller capacities only, so for a larger one it is built again."""
        if self._model is None or problem.capacity_nbytes > self.problem.capacity_nbytes:
            self.problem, self._model = problem, build(problem)
            self._highs = Highs(self._model.program) if self.engine == "highs" else None
            return self._model
        room = (problem.capacity_nbytes - np.array(problem.base_nbytes)) / self._model.byte_unit
        row_upper = self._model.program.row_upper.copy()
        for rows in self._model.capacity_rows:
            row_upper[rows] = room
        model = replace(self._model, program=replace(self._model.program, row_upper=row_upper))
        if self._highs is not None:
            changed = np.concatenate([*model.capacity_rows, [model.ceiling]])
            self._highs.set_rows_upper(changed, row_upper[changed])
            self._highs.set_cost(model.program.cost)
        return model

    def _two_stages(
        self, model: Model, problem: ResidencyProblem, deadline: float
    ) -> tuple[LinearAnswer, LinearAnswer | None]:
        """First the least waiting; then, no more than that, the fewest bytes. The second only if time is left."""
        program, highs, solve = model.program, self._highs, ENGINES[self.engine]
        left_s = deadline - time.monotonic()
        first = highs.solve(left_s) if highs else solve(program, left_s)
        if first.status != Status.OPTIMAL or first.values is None or time.monotonic() >= deadline:
            return first, None
        waiting = float(first.values[model.column["q"]].sum())
        ceiling = waiting + 1e-7 * (len(problem.durations_ns) + waiting)
        cost = _moved_cost(model, problem)
        if highs:
            highs.set_row_upper(model.ceiling, ceiling)
            highs.set_cost(cost)
            return first, highs.solve(deadline - time.monotonic())
        row_upper = program.row_upper.copy()
        row_upper[model.ceiling] = ceiling
        return first, solve(replace(program, cost=cost, row_upper=row_upper), deadline - time.monotonic())


def _result(
    problem: ResidencyProblem,
    model: Model,
    first: LinearAnswer,
    second: LinearAnswer | None,
    began: float,
    engine: str,
) -> Result[ResidencySolution]:
    """What the two answers say of the problem."""
    seconds, method = time.monotonic() - began, f"LP by {engine}"
    bound = max(compulsory_bound(problem), _bound_ns(problem, model, first.duals))
    if first.status == Status.INFEASIBLE:
        return Result(first.status, None, None, None, seconds, method, f"{engine}: {first.detail or 'infeasible'}")
    chosen = second if second is not None and second.values is not None else first
    if chosen.values is None:
        return Result(first.status, None, None, bound, seconds, method, first.detail)
    solution = read_solution(problem, model, chosen.values, first.duals)
    objective = float(sum(problem.durations_ns)) + math.fsum(solution.stall_ns)
    # Both are right to the engine's tolerance; an objective below the bound is the tolerance, not a better answer.
    objective = max(objective, bound)
    proven = objective <= bound * (1 + _TOLERANCE)
    status = Status.OPTIMAL if proven else (Status.ERROR if first.status == Status.ERROR else Status.FEASIBLE)
    return Result(status, solution, objective, bound, seconds, method, "" if proven else first.detail)


def trivial(problem: ResidencyProblem, method: str, began: float) -> Result[ResidencySolution] | None:
    """The answer where no program is needed: no steps, a step that cannot fit, a link that does not exist."""
    for t, base in enumerate(problem.base_nbytes):
        if base > problem.capacity_nbytes:
            worst = max(problem.base_nbytes)
            detail = (
                f"step {t} needs {base} bytes, the capacity is {problem.capacity_nbytes}; "
                f"the smallest that is enough is {worst}"
            )
            return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, method, detail)
    least = compulsory_bound(problem)
    if math.isinf(least):
        detail = "bytes must move over a link whose rate is 0"
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, method, detail)
    if problem.durations_ns and any(gap.nbytes for gap in problem.gaps):
        return None
    none, nothing = (0.0,) * len(problem.durations_ns), (0.0,) * len(problem.gaps)
    solution = ResidencySolution(nothing, nothing, nothing, none, none, none, none, none, none, none, none)
    return Result(Status.OPTIMAL, solution, least, least, time.monotonic() - began, method)


def _moved_cost(model: Model, problem: ResidencyProblem) -> Floats:
    """Bytes moved, each gap's dearer by up to a thousandth: equal gaps differ, so that few of them are divided.

    The extra follows the van der Corput sequence along the order: the cheapest half to drop is every second gap.
    """
    cost = np.zeros(len(model.program.cost))
    size = np.array([gap.nbytes / model.byte_unit for gap in problem.gaps])
    ranks = {g: k for k, g in enumerate(sorted(model.gaps, key=lambda g: (problem.gaps[g].start, g)))}
    extra = np.array([1.0 + 1e-3 * van_der_corput(ranks.get(g, 0)) for g in range(len(problem.gaps))])
    cost[model.column["e"]] = (size * extra)[list(model.gaps)]
    cost[model.column["z"]] = (size * extra)[list(model.dirty)]
    cost[model.column["y"]] = (size * extra)[list(model.early)]
    return cost / max(1.0, float(cost.max()))


def van_der_corput(index: int) -> float:
    """The binary digits of `index` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ..., spread evenly at every length."""
    value, weight = 0.0, 0.5
    while index:
        value += weight * (index & 1)
        index >>= 1
        weight /= 2
    return value


def _bound_ns(problem: ResidencyProblem, model: Model, duals: Floats | None) -> float:
    """Durations, which are exact, and the least waiting as the duals prove it."""
    least = safe_bound(model.program, duals) if duals is not None and len(duals) else 0.0
    waiting = Fraction(max(0.0, least)) * Fraction(model.ns_unit)
    return round_down(sum(problem.durations_ns) + waiting)


def read_solution(problem: ResidencyProblem, model: Model, values: Floats, duals: Floats | None) -> ResidencySolution:
    """Columns back in bytes and nanoseconds; fractions clipped to [0, 1], what is below zero by tolerance to zero."""
    values = np.maximum(values, 0.0)
    steps, column = len(problem.durations_ns), model.column

    def fractions(name: str, gaps: tuple[int, ...]) -> tuple[float, ...]:
        full = np.zeros(len(problem.gaps))
        full[list(gaps)] = np.minimum(values[column[name]], 1.0)
        return tuple(full.tolist())

    def nbytes(name: str) -> tuple[float, ...]:
        return tuple((values[column[name]] * model.byte_unit).tolist()) if len(column[name]) else (0.0,) * steps

    prices = np.zeros(steps)
    if duals is not None and len(duals):
        prices = (
            -(duals[model.capacity_rows[0]] + duals[model.capacity_rows[1]]) * model.ns_unit * 1e-9 / model.byte_unit
        )
    return ResidencySolution(
        absent=fractions("e", model.gaps),
        stored=fractions("z", model.dirty),
        ahead=fractions("y", model.early),
        stall_ns=tuple((values[column["q"]] * model.ns_unit).tolist()),
        loaded_waiting=nbytes("l"),
        loaded_running=nbytes("L"),
        stored_waiting=nbytes("w"),
        stored_running=nbytes("W"),
        ahead_waiting=nbytes("u"),
        ahead_running=nbytes("U"),
        memory_price=tuple(np.maximum(prices, 0.0).tolist()),
    )
