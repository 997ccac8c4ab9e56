"""`solve_traffic`: the integer program through an engine of PuLP, and its answer replayed in exact integers."""

from __future__ import annotations

import time
import warnings
from typing import Any

from ..linear import LONGEST_S, whole_presolve
from ..result import Result, Status
from .check import check_traffic, moved_nbytes
from .model import Model, build
from .problem import Begin, End, TrafficProblem, TrafficSolution

ENGINES = ("cbc", "highs")
MOST_VARIABLES = 300_000
"""PuLP takes some two kilobytes for each, an engine several times as much; beyond this the program is not built."""

MOST_TERMS = 2_000_000
"""Entries of all rows together: PuLP takes some three microseconds for each, and no clock stops it."""

TOLERANCE = 1e-9
"""How far from a whole number an engine may leave a variable; see `digits.BASE`."""


def solve_traffic(
    problem: TrafficProblem, *, time_limit_s: float = 60.0, engine: str = "cbc"
) -> Result[TrafficSolution]:
    """The fewest off-chip bytes of `problem`, proven; for small cases (with free order up to some ten operators, with
    addresses up to some five; with a fixed order some fifty). Objective and bound are bytes, exact integers.

    OPTIMAL: the engine proved every digit of the objective. FEASIBLE: time ran out; the bound is what any pass must
    move. INFEASIBLE: proven. UNKNOWN: time ran out without an answer. ERROR: the engine broke down, or the program is
    too large to be built, or the answer did not stand the replay; `detail` says which. ValueError: no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"no engine is called '{engine}'; there are: {', '.join(ENGINES)}")
    began = time.monotonic()
    hopeless = _hopeless(problem)
    if hopeless:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "working sets", hopeless)
    for size, most, what in (
        (_variables(problem), MOST_VARIABLES, "variables"),
        (_terms(problem), MOST_TERMS, "entries in its rows"),
    ):
        if size > most:
            detail = f"the program has {size} {what}, at most {most} are built; fix the order, or solve parts"
            return Result(Status.ERROR, None, None, _compulsory(problem), 0.0, f"PuLP with {engine}", detail)
    with warnings.catch_warnings():
        # PuLP 3 announces the names of PuLP 4 on every call; those that serve both do not exist.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _solve(problem, time_limit_s, engine, began)


def _hopeless(problem: TrafficProblem) -> str:
    """Why no pass exists, as far as working sets tell; empty if they do not."""
    for t, o in enumerate(problem.order if problem.order is not None else range(problem.steps)):
        needed = set(problem.operators[o].touches)
        if problem.order is not None:
            needed |= {i for i, tensor in enumerate(problem.tensors) if t == 0 and tensor.begins is Begin.ARRIVES}
            last = t == problem.steps - 1
            needed |= {i for i, tensor in enumerate(problem.tensors) if last and tensor.ends in (End.FAST, End.BOTH)}
        room = sum(problem.tensors[i].room for i in needed)
        if room > problem.capacity_nbytes:
            return f"operator {o} needs {room} bytes on chip, the capacity is {problem.capacity_nbytes}"
    return ""


def _told_by_working_sets(problem: TrafficProblem) -> bool:
    """Whether a pass exists wherever working sets do not tell that none does: with a fixed order and without addresses
    all that is not needed can leave after each step and come back."""
    return problem.order is not None and not problem.offsets and not problem.one_way


def _variables(problem: TrafficProblem) -> int:
    """How many variables the program has, about."""
    steps, tensors = problem.steps, len(problem.tensors)
    order = 0 if problem.order is not None else steps * steps
    return order + steps * tensors * (5 + (tensors if problem.offsets else 0))


def _terms(problem: TrafficProblem) -> int:
    """How many entries its rows have, about: a pair of operators has two sums over their steps for each step, a tensor
    some twenty entries for each step and one for each that touches or changes it, two tensors ten where addresses are
    decided."""
    steps, tensors = problem.steps, len(problem.tensors)
    pairs = 0 if problem.order is not None else (2 + len(problem.before)) * steps * steps
    uses = sum(len(o.touches) + len(o.outputs) for o in problem.operators)
    return pairs + steps * (20 * tensors + uses + (5 * tensors * tensors if problem.offsets else 0))


def _solve(problem: TrafficProblem, time_limit_s: float, engine: str, began: float) -> Result[TrafficSolution]:
    import pulp

    api: Any = pulp
    method = f"PuLP with {engine}"

    def result(status: Status, detail: str = "", solution: TrafficSolution | None = None) -> Result[TrafficSolution]:
        objective = moved_nbytes(problem, solution) if solution else None
        bound = None if status is Status.INFEASIBLE else objective if status is Status.OPTIMAL else _compulsory(problem)
        return Result(status, solution, objective, bound, time.monotonic() - began, method, detail)

    model = build(api, problem)
    if not problem.steps:
        empty = TrafficSolution((), (), ((),), ((),), _held_at_once(problem), () if problem.offsets else None)
        wrong = check_traffic(problem, empty)
        return result(Status.INFEASIBLE, wrong[0]) if wrong else result(Status.OPTIMAL, solution=empty)
    solution: TrafficSolution | None = None
    for number, digit in enumerate(model.objective):
        left = time_limit_s - (time.monotonic() - began)
        status, detail = _run(api, model, digit, engine, left)
        if status in (Status.OPTIMAL, Status.FEASIBLE):
            solution = _read(model)
            wrong = check_traffic(problem, solution)
            if wrong:
                return result(Status.ERROR, f"the engine's answer does not hold: {wrong[0]}")
        if status is Status.INFEASIBLE and (number or _told_by_working_sets(problem)):
            return result(Status.ERROR, f"{engine} calls infeasible what has a solution; try the other engine")
        if status is not Status.OPTIMAL:
            if solution is None or status is Status.ERROR:
                return result(status, detail)
            return result(Status.FEASIBLE, detail or "time ran out", solution)
        model.program += digit == round(api.value(digit) or 0)
    return result(Status.OPTIMAL, solution=solution)


def _run(api: Any, model: Model, objective: Any, engine: str, time_limit_s: float) -> tuple[Status, str]:
    """One run under one objective."""
    if time_limit_s <= 0:
        return Status.UNKNOWN, "time ran out before the engine began"
    model.program.setObjective(objective)
    try:
        model.program.solve(_engine(api, engine, time_limit_s))
    except (api.PulpSolverError, MemoryError, OSError) as error:
        return Status.ERROR, f"{engine} broke down: {type(error).__name__}: {error}"
    state = model.program.sol_status
    if state == api.LpSolutionOptimal:
        return Status.OPTIMAL, ""
    if state == api.LpSolutionIntegerFeasible:
        return Status.FEASIBLE, "time ran out"
    if state == api.LpSolutionInfeasible or model.program.status == api.LpStatusInfeasible:
        return Status.INFEASIBLE, "proven by the engine"
    return Status.UNKNOWN, f"{engine} ended with '{api.LpStatus[model.program.status]}'"


def _engine(api: Any, engine: str, time_limit_s: float) -> Any:
    if engine == "highs":
        import highspy

        return api.HiGHS(
            msg=False,
            timeLimit=time_limit_s,
            gapRel=0.0,
            gapAbs=0.0,
            threads=1,
            mip_feasibility_tolerance=TOLERANCE,
            presolve=whole_presolve(highspy.Highs()),
            primal_feasibility_tolerance=TOLERANCE,
        )
    options = [f"integerTolerance {TOLERANCE}", f"primalTolerance {TOLERANCE}", "allowableGap 0", "ratioGap 0"]
    limit_s = min(time_limit_s, LONGEST_S)
    return api.PULP_CBC_CMD(msg=False, timeLimit=limit_s, gapRel=0.0, gapAbs=0.0, options=options)


def _read(model: Model) -> TrafficSolution:
    """The engine's values as a solution, without what is on chip, loaded or stored to no purpose."""
    problem, steps = model.problem, model.problem.steps

    def on(variable: Any) -> bool:
        value = variable if isinstance(variable, int) else variable.value()
        return value is not None and value > 0.5

    order = tuple(next(o for o in range(steps) if on(model.x[o, t])) for t in range(steps))
    useful: dict[tuple[int, int], bool] = {}
    loads: list[list[int]] = [[] for _ in range(steps + 1)]
    stores: list[list[int]] = [[] for _ in range(steps + 1)]
    held = [i for i in range(len(problem.tensors)) if on(model.k[i, steps]) and _wanted(model, i, on)]
    for i in range(len(problem.tensors)):
        for t in range(steps + 1):
            if on(model.stores[i, t]):
                stores[t].append(i)
        # Backwards: a presence is of use in a step that touches the tensor, or before one, or before a store.
        ahead = i in held
        for t in reversed(range(steps)):
            arrives = t == 0 and problem.tensors[i].begins is Begin.ARRIVES
            needed = arrives or i in problem.operators[order[t]].touches
            useful[i, t] = on(model.r[i, t]) and (needed or ahead or on(model.stores[i, t + 1]))
            kept = useful[i, t] and on(model.k[i, t])
            if useful[i, t] and on(model.loads[i, t]) and not kept:
                loads[t].append(i)
            ahead = kept
    present = tuple(tuple(i for i in range(len(problem.tensors)) if useful[i, t]) for t in range(steps))
    addresses = None
    if problem.offsets:
        addresses = tuple(tuple(_address(model, i, t) for i in now) for t, now in enumerate(present))
    return TrafficSolution(order, present, _frozen(loads), _frozen(stores), tuple(held), addresses)


def _wanted(model: Model, i: int, on: Any) -> bool:
    """Whether being on chip at the end is of use: as demanded, or to the next pass."""
    demanded = model.problem.tensors[i].ends in (End.FAST, End.BOTH, End.ALIVE)
    return demanded or (model.problem.wraps(i) and on(model.k[i, 0]))


def _address(model: Model, i: int, t: int) -> int:
    variable = model.addresses.get((i, t), 0)
    return variable if isinstance(variable, int) else round(variable.value() or 0)


def _frozen(moves: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(m) for m in moves)


def _held_at_once(problem: TrafficProblem) -> tuple[int, ...]:
    """What a pass without steps leaves on chip."""
    return tuple(i for i, t in enumerate(problem.tensors) if t.begins in (Begin.FAST, Begin.BOTH))


def _compulsory(problem: TrafficProblem) -> int:
    """Bytes that every pass moves: what is used and begins below is loaded (unless passes share it), what is made or
    changed and must end below is stored (unless the next pass may begin with it on chip)."""
    used = {i for operator in problem.operators for i in operator.touches}
    loads = [i for i in used if problem.tensors[i].begins is Begin.BELOW and not problem.cyclic]
    fresh = (Begin.MADE, Begin.ARRIVES, Begin.FAST)
    stores = [
        i
        for i, t in enumerate(problem.tensors)
        if t.ends in (End.BELOW, End.BOTH) and (t.begins in fresh or problem.writers[i]) and not problem.wraps(i)
    ]
    return sum(problem.tensors[i].nbytes for i in (*loads, *stores))
