"""Packing by CP-SAT: addresses as integer variables, boxes as rectangles, for what first fit leaves above the bound."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..result import Status
from .compact import Compact, Ints

# Above this, sums of products inside CP-SAT could leave 64 bits; such sizes appear only with a gcd of a few bytes.
_LARGEST = 2**40


def solve_cpsat(
    c: Compact, hint: Ints, *, lowest: int, highest: int, time_limit_s: float, seed: int, workers: int
) -> tuple[Status, Ints | None, int]:
    """Search for bases with a peak (units) of `highest` or below, no lower than `lowest`, a proven bound.

    Equal limits ask for any packing within them, which is much faster than the search for the least. Returns a status,
    bases and a proven lower bound on the peak. OPTIMAL: the bases have the least peak at or above `lowest`; FEASIBLE:
    not proven least; INFEASIBLE: nothing is at `highest` or below; UNKNOWN: time ran out.
    """
    from ortools.sat.python import cp_model

    if highest > _LARGEST or time_limit_s <= 0:
        return Status.UNKNOWN, None, lowest
    model = cp_model.CpModel()
    placed = bases(model, c, highest)
    _no_overlap(model, c, _intervals(model, c, placed))
    _order_twins(model, c, placed)
    if lowest < highest:
        top = model.new_int_var(lowest, highest, "peak")
        for k in range(len(c.owner)):
            model.add(top >= placed[int(c.owner[k])] + int(c.hi[k]))
        model.minimize(top)
        for i, base in enumerate(placed):
            if c.fixed[i] < 0 and c.alignment[i] == 1:
                model.add_hint(base, int(hint[i]))

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed % 2**31
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Status.INFEASIBLE, None, highest + 1
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Status.UNKNOWN, None, lowest
    found = np.array([solver.value(base) for base in placed], dtype=c.hi.dtype)
    bound = max(lowest, int(np.ceil(solver.best_objective_bound - 1e-6))) if lowest < highest else lowest
    return (Status.OPTIMAL if status == cp_model.OPTIMAL else Status.FEASIBLE), found, bound


def bases(model: Any, c: Compact, limit: int) -> list[Any]:
    """base_i = alignment_i * n_i, or fixed, such that every box ends at `limit` at most."""
    made: list[Any] = []
    for i in range(len(c)):
        own = slice(int(c.begin[i]), int(c.begin[i + 1]))
        align, most = int(c.alignment[i]), limit - int(c.hi[own].max())
        if c.fixed[i] >= 0:
            made.append(model.new_constant(int(c.fixed[i])))
        elif align == 1:
            made.append(model.new_int_var(0, max(0, most), f"base{i}"))
        else:
            made.append(align * model.new_int_var(0, max(0, most // align), f"base{i}"))
    return made


def _intervals(model: Any, c: Compact, placed: list[Any]) -> list[Any]:
    """Box k is the address interval [base + lo, base + hi)."""
    return [
        model.new_fixed_size_interval_var(placed[int(c.owner[k])] + int(c.lo[k]), int(c.hi[k] - c.lo[k]), f"box{k}")
        for k in range(len(c.owner))
    ]


def _no_overlap(model: Any, c: Compact, intervals: list[Any]) -> None:
    """Rectangles (live sets x addresses) are disjoint; beside it, addresses are disjoint in every live set."""
    lives = [
        model.new_fixed_size_interval_var(int(c.first[k]), int(c.last[k] - c.first[k]), f"life{k}")
        for k in range(len(c.owner))
    ]
    model.add_no_overlap_2d(lives, intervals)
    for now in range(c.live_sets):
        live = np.flatnonzero((c.first <= now) & (now < c.last))
        if len(live) > 1:
            model.add_no_overlap([intervals[int(k)] for k in live])


def _order_twins(model: Any, c: Compact, placed: list[Any]) -> None:
    """Bodies that are alike in everything may be exchanged: their bases stand in the order of their indices."""
    seen: dict[tuple[Any, ...], int] = {}
    for i in range(len(c)):
        own = slice(int(c.begin[i]), int(c.begin[i + 1]))
        form = (int(c.alignment[i]), *(tuple(map(int, a[own])) for a in (c.first, c.last, c.lo, c.hi)))
        if c.fixed[i] >= 0:
            continue
        if form in seen:
            model.add(placed[seen[form]] <= placed[i])
        seen[form] = i
