"""A better order of a window by CP-SAT, for windows with too many downsets.

Variables: d[o,t], whether operator o has run by the end of step t; exactly t+1 operators have. Then
    o runs at t:            r[o,t] = d[o,t] - d[o,t-1]
    value v lives at t:     l[v,t] >= (begun by t) - (ended before t)
    bytes at t:             sum of l[v,t] bytes + sum of r[o,t] own bytes
"""

from __future__ import annotations

import math
from typing import Any

from .problem import Order, OrderingProblem, excess, peak

LARGEST_SUM = 2**55
"""Sums above this could leave the 64 bits of CP-SAT."""


def improve_by_cpsat(
    problem: OrderingProblem, *, limit_nbytes: int, above_nbytes: int | None, time_limit_s: float, seed: int
) -> Order | None:
    """An order with a lower peak than the program's; with `above_nbytes`, one of at most `limit_nbytes` with less
    `excess` above that level. None: there is none, or none was found in time. One thread: same seed, same search."""
    from ortools.sat.python import cp_model

    unit = math.gcd(*(v.nbytes for v in problem.values), *(o.own_nbytes for o in problem.operators)) or 1
    most = sum(v.nbytes for v in problem.values) + max((o.own_nbytes for o in problem.operators), default=0)
    longest = max((o.duration_ns for o in problem.operators), default=1)
    # Times only weigh steps against each other: three digits of them are enough, and what is found is scored exactly.
    times = [max(1, round(1000 * o.duration_ns / max(1, longest))) for o in problem.operators]
    if most // unit * sum(times) > LARGEST_SUM or time_limit_s <= 0:
        return None
    model: Any = cp_model.CpModel()
    ran = _turns(model, problem)
    held = [_bytes_at(model, problem, ran, t, unit) for t in range(problem.steps)]
    start = tuple(range(problem.steps))
    if above_nbytes is None:
        top = model.new_int_var(0, (limit_nbytes - 1) // unit, "peak")
        for nbytes in held:
            model.add(nbytes <= top)
        model.minimize(top)
    else:
        _minimise_excess(model, problem, ran, held, limit_nbytes // unit, above_nbytes // unit, times)
    for o in start:
        for t in start:
            model.add_hint(ran[o][t], int(o <= t))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed % 2**31
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    order = tuple(sorted(start, key=lambda o: sum(not solver.value(done) for done in ran[o])))
    if above_nbytes is None:
        return order if peak(problem, order) < peak(problem, start) else None
    better = excess(problem, order, above_nbytes) < excess(problem, start, above_nbytes)
    return order if better and peak(problem, order) <= limit_nbytes else None


def _turns(model: Any, problem: OrderingProblem) -> list[list[Any]]:
    """d[o,t] <= d[o,t+1]; sum over o of d[o,t] = t + 1; d[b,t] <= d[a,t-1] for a before b."""
    steps = range(problem.steps)
    ran = [[model.new_bool_var(f"d{o},{t}") for t in steps] for o in steps]
    for o in steps:
        for t in steps[1:]:
            model.add_implication(ran[o][t - 1], ran[o][t])
    for t in steps:
        model.add(sum(ran[o][t] for o in steps) == t + 1)
    for a, b in problem.precedence:
        model.add(ran[b][0] == 0)
        for t in steps[1:]:
            model.add_implication(ran[b][t], ran[a][t - 1])
    return ran


def _bytes_at(model: Any, problem: OrderingProblem, ran: list[list[Any]], t: int, unit: int) -> Any:
    """Bytes while step t runs, in units: l[v,t] >= begun - ended, with begun >= d[o,t], ended <= d[o,t-1]."""
    total: Any = 0
    for v, (value, users) in enumerate(zip(problem.values, problem.touchers, strict=True)):
        if not value.nbytes:
            continue
        lives = model.new_bool_var(f"l{v},{t}")
        total += value.nbytes // unit * lives
        last = [None] if value.kept else [ran[o][t - 1] if t else False for o in users]
        first = [None] if value.given else [ran[o][t] for o in users]
        for begun in first:
            for not_ended in last:
                clause = [lives]
                clause += [] if begun is None else [~begun]
                clause += [] if not_ended is None or not_ended is False else [not_ended]
                model.add_bool_or(clause)
    for o, operator in enumerate(problem.operators):
        if operator.own_nbytes:
            runs = ran[o][t] - ran[o][t - 1] if t else ran[o][t]
            total += operator.own_nbytes // unit * runs
    return total


def _minimise_excess(
    model: Any,
    problem: OrderingProblem,
    ran: list[list[Any]],
    held: list[Any],
    limit: int,
    above: int,
    times: list[int],
) -> None:
    """c[o] >= (bytes at t) - level where o runs at t; minimise the sum of c[o] times its nanoseconds."""
    cost = [model.new_int_var(0, max(0, limit - above), f"c{o}") for o in range(problem.steps)]
    for t, nbytes in enumerate(held):
        model.add(nbytes <= limit)
        for o in range(problem.steps):
            now = [ran[o][t]] + ([~ran[o][t - 1]] if t else [])
            model.add(nbytes - above <= cost[o]).only_enforce_if(now)
    model.minimize(sum(w * c for w, c in zip(times, cost, strict=True)))
