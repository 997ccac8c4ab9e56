"""Fewest off-chip bytes instead of least time: which whole items leave in which gaps, proven optimal.

For an accelerator with a scratchpad the bytes that cross its edge are energy, whatever hides them. The problem, for the
instance's order and its periodic passes (a weight that stays from pass to pass is never loaded again):

    min  sum_g p_g e_g + sum_i p_i z_i      e_g: the item of gap g is away in it and loaded at its end
    s.t. sum over g around t of s_g e_g >= base_t + sum over g around t of s_g - capacity      for every step t
         z_i >= e_g      for the gaps g of a dirty item i up to its next write in place;  z_i: it is stored, once

p are bytes as they move, s are bytes as placed (padded). Rows are the same but for the gaps that begin or end between
them (consecutive ones), so the relaxation is nearly integral and branch and bound proves the optimum in seconds.

The class of plans that the bound speaks of: this order, two tiers, whole items, which leave after a use and come back
before the next. Plans that split an item may move less: `fluid_nbytes` bounds those too. Addresses are not in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..solvers.builder import ProgramBuilder
from ..solvers.engines import AUTO, linear_engine, solve_whole, whole_engines
from ..solvers.exact.digits import unit_of
from ..solvers.linear import ENGINES, Highs, LinearAnswer, LinearProgram, safe_bound
from ..solvers.result import Result, Status
from .instance import Instance
from .items import ItemGap
from .one_way import bound_nbytes, removable_gaps

LARGEST_UNITS = 1 << 30
"""Sums up to here are HiGHS's to compare: its floats tell single units apart. Larger ones go to CP-SAT's integers."""

MOST_UNITS = 1 << 50
"""What a sum inside CP-SAT must stay below: its objective is a float, and past 2^53 it was seen to call what is not
the optimum one."""

ENGINE_DOUBT = 1e-7
"""What an engine's bound may owe to its tolerances, for each column, in units of the objective."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The integer program of one instance. Columns: the gaps in which items can leave, then the dirty items.

    Each row is (gaps, least bytes away, bytes of each); `gap_nbytes` move at the end of each gap, `store_nbytes` per
    dirty item once.
    """

    gaps: tuple[tuple[int, int], ...]
    rows: tuple[tuple[tuple[int, ...], int, tuple[int, ...]], ...]
    gap_nbytes: tuple[int, ...]
    store_nbytes: tuple[int, ...]
    store_of: tuple[int | None, ...]

    def moved(self, away: Sequence[bool]) -> int:
        """Bytes that a choice moves."""
        stored = {s for s, out in zip(self.store_of, away, strict=True) if out and s is not None}
        return sum(n for n, out in zip(self.gap_nbytes, away, strict=True) if out) + sum(
            self.store_nbytes[s] for s in stored
        )

    def holds(self, away: Sequence[bool]) -> bool:
        """Whether every row is met, in exact integers."""
        return all(sum(s for g, s in zip(gaps, sizes, strict=True) if away[g]) >= n for gaps, n, sizes in self.rows)


def pose(
    instance: Instance, capacity_nbytes: int, *, kept_out: Iterable[tuple[int, int]] = (), padded: bool = True
) -> Choice:
    """The choices of `instance` under a capacity. Gaps in `kept_out` are away in any case; without `padded` items take
    the bytes that they move, which relaxes every way of splitting them. A step whose operands, with what cannot leave,
    are above the capacity may hold just those."""
    payload = [instance.graph.storage[i.storage].nbytes for i in instance.items]
    room = [i.nbytes for i in instance.items] if padded else payload
    away = frozenset(kept_out)
    movable = removable_gaps(instance)
    base = bound_nbytes(instance, room)
    around: list[list[int]] = [[] for _ in base]
    for g, gap in enumerate(movable):
        for t in range(gap.start + 1, gap.end):
            around[t % instance.steps].append(g)
    sizes = [room[gap.item] for gap in movable]
    needed: dict[tuple[int, ...], int] = {}
    for t, gaps in enumerate(around):
        least = base[t] + sum(sizes[g] for g in gaps) - max(capacity_nbytes, base[t])
        if least > 0:
            needed[tuple(gaps)] = max(least, needed.get(tuple(gaps), 0))
    forced = [
        ((g,), max(1, sizes[g]), (max(1, sizes[g]),)) for g, n in enumerate(movable) if (n.item, n.before) in away
    ]
    version = [_version(instance, gap) for gap in movable]
    number = {v: s for s, v in enumerate(sorted({v for v in version if v is not None}))}
    return Choice(
        gaps=tuple((gap.item, gap.before) for gap in movable),
        rows=tuple((gaps, least, tuple(sizes[g] for g in gaps)) for gaps, least in needed.items()) + tuple(forced),
        gap_nbytes=tuple(payload[gap.item] for gap in movable),
        store_nbytes=tuple(payload[item] for item, _ in number),
        store_of=tuple(None if v is None else number[v] for v in version),
    )


def _version(instance: Instance, gap: ItemGap) -> tuple[int, int] | None:
    """What is stored if the item leaves in this gap: the item as its latest write before the gap left it (-1: as it
    came). It is stored once, in the first gap after that write in which it leaves. None: a copy lies below anyway."""
    item = instance.items[gap.item]
    if item.homed and not item.writes:
        return None
    latest = max((w for w in item.writes if w <= gap.start), default=None)
    if latest is None:
        latest = max(item.writes) if item.homed else -1  # that of the pass before
    return gap.item, latest


def solve_choice(choice: Choice, *, time_limit_s: float, seed: int = 0, engine: str = AUTO) -> Result[tuple[bool, ...]]:
    """The gaps to leave in, by `engine` (one of `engines.NAMES`; HiGHS if it may be any), or by CP-SAT where sums are
    beyond the floats of that one or it has no proof.

    Objective and bound are bytes. OPTIMAL: both are equal. A bound from branch and bound is taken off by what
    tolerances could have added, then raised to the next multiple of the bytes' greatest common divisor.
    """
    began = time.monotonic()
    if any(sum(sizes) < least for _, least, sizes in choice.rows):
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "counting")
    if not choice.rows:
        return Result(Status.OPTIMAL, (False,) * len(choice.gaps), 0, 0, time.monotonic() - began, "counting")
    unit = unit_of((*choice.gap_nbytes, *choice.store_nbytes))
    largest = max(sum(choice.gap_nbytes) // unit, max(sum(sizes) for _, _, sizes in choice.rows) // _row_unit(choice))
    found: Result[tuple[bool, ...]] | None = None
    if largest <= LARGEST_UNITS:
        found = _in_floats(choice, unit, 0.7 * time_limit_s, engine)
    if found is None or found.status is not Status.OPTIMAL:
        left = time_limit_s - (time.monotonic() - began)
        found = _by_cpsat(choice, unit, left, seed, found)
    return replace(found, seconds=time.monotonic() - began)


def _row_unit(choice: Choice) -> int:
    return unit_of([s for _, _, sizes in choice.rows for s in sizes])


def _program(choice: Choice, unit: int) -> LinearProgram:
    """The rows and columns above. Bytes of a row are divided by their gcd, what is needed rounded up, and no
    coefficient is larger than what is needed: the same whole choices, a tighter relaxation."""
    builder = ProgramBuilder()
    builder.add_columns(len(choice.gaps), 1.0)
    stores = builder.add_columns(len(choice.store_nbytes), 1.0)
    for gaps, least, sizes in choice.rows:
        own = unit_of(sizes)
        needed = -(-least // own)
        row = builder.add_rows(1, float(needed), np.inf)
        values = np.array([min(s // own, needed) for s in sizes], dtype=np.float64)
        builder.put(np.repeat(row, len(gaps)), np.array(gaps, dtype=np.int64), values)
    for g, s in enumerate(choice.store_of):
        if s is not None:
            row = builder.add_rows(1, 0.0, np.inf)
            builder.put(np.repeat(row, 2), np.array([stores[s], g], dtype=np.int64), np.array([1.0, -1.0]))
    cost = [n // unit for n in (*choice.gap_nbytes, *choice.store_nbytes)]
    return builder.program(np.array(cost, dtype=np.float64))


def _relaxed(program: LinearProgram, unit: int, time_limit_s: float, engine: str) -> int:
    """A bound in bytes by weak duality, which no tolerance of an engine can make wrong."""
    answer = ENGINES[linear_engine(engine)](program, time_limit_s)
    if answer.duals is None:
        return 0
    return max(0, math.ceil(safe_bound(program, answer.duals))) * unit


def _in_floats(choice: Choice, unit: int, time_limit_s: float, engine: str) -> Result[tuple[bool, ...]]:
    """By HiGHS or CBC; of what CP-SAT is asked for the bound of the relaxation alone."""
    began = time.monotonic()
    program = _program(choice, unit)
    bound = _relaxed(program, unit, time_limit_s, engine)
    name = whole_engines(engine)[0]
    method = f"MIP by {name}"
    if name == "cpsat":
        return Result(Status.UNKNOWN, None, None, bound, time.monotonic() - began, method)
    whole = replace(program, integer=np.ones(len(program.cost), dtype=np.bool_))
    left_s = time_limit_s - (time.monotonic() - began)
    answer = _by_highs(whole, left_s) if name == "highs" else solve_whole(whole, name, left_s)
    if answer.bound is not None and math.isfinite(answer.bound):
        doubt = ENGINE_DOUBT * len(program.cost) + 1e-9 * abs(answer.bound)
        bound = max(bound, math.ceil(answer.bound - doubt) * unit)
    seconds = time.monotonic() - began
    away = tuple(bool(v > 0.5) for v in answer.values[: len(choice.gaps)]) if answer.values is not None else None
    if away is None or not choice.holds(away):
        return Result(Status.UNKNOWN, None, None, bound, seconds, method, answer.detail)
    moved = choice.moved(away)
    status = Status.OPTIMAL if moved <= bound else Status.FEASIBLE
    return Result(status, away, moved, min(bound, moved), seconds, method, answer.detail)


def _by_highs(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
    highs = Highs(program)
    highs.option("mip_rel_gap", 0.0)
    highs.option("mip_abs_gap", 0.0)
    highs.option("mip_feasibility_tolerance", 1e-9)
    return highs.solve(time_limit_s)


def _by_cpsat(
    choice: Choice, unit: int, time_limit_s: float, seed: int, known: Result[tuple[bool, ...]] | None
) -> Result[tuple[bool, ...]]:
    """The same in integers of 64 bits, from a known solution."""
    from ortools.sat.python import cp_model

    if time_limit_s <= 0 and known is not None:
        return known
    began = time.monotonic()
    total = (sum(choice.gap_nbytes) + sum(choice.store_nbytes)) // unit
    widest = max(sum(sizes) // unit_of(sizes) for _, _, sizes in choice.rows)
    if max(total, widest) >= MOST_UNITS:
        detail = (
            f"sizes add up to {max(total, widest)} times their common divisor, past {MOST_UNITS} none is told apart"
        )
        return known if known is not None else Result(Status.ERROR, None, None, None, 0.0, "CP-SAT", detail)
    api: Any = cp_model
    model = api.CpModel()
    away = [model.new_bool_var(f"e{g}") for g in range(len(choice.gaps))]
    stored = [model.new_bool_var(f"z{s}") for s in range(len(choice.store_nbytes))]
    for gaps, least, sizes in choice.rows:
        own = unit_of(sizes)
        model.add(sum(size // own * away[g] for g, size in zip(gaps, sizes, strict=True)) >= -(-least // own))
    for g, s in enumerate(choice.store_of):
        if s is not None:
            model.add_implication(away[g], stored[s])
    moved = sum(n // unit * e for n, e in zip(choice.gap_nbytes, away, strict=True))
    moved += sum(n // unit * z for n, z in zip(choice.store_nbytes, stored, strict=True))
    bound = known.bound if known is not None and known.bound is not None else 0
    model.add(moved >= int(bound) // unit)
    if known is not None and known.solution is not None:
        for variable, value in zip(away, known.solution, strict=True):
            model.add_hint(variable, value)
    solver = api.CpSolver()
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = seed % 2**31
    solver.parameters.max_time_in_seconds = max(0.1, time_limit_s - (time.monotonic() - began))
    model.minimize(moved)
    state = solver.solve(model)
    seconds = time.monotonic() - began
    if state not in (api.OPTIMAL, api.FEASIBLE):
        status = Status.INFEASIBLE if state == api.INFEASIBLE else Status.UNKNOWN
        return known if known is not None else Result(status, None, None, None, seconds, "CP-SAT")
    chosen = tuple(bool(solver.value(e)) for e in away)
    cost = choice.moved(chosen)
    if state == api.OPTIMAL:
        return Result(Status.OPTIMAL, chosen, cost, cost, seconds, "CP-SAT")
    proven = max(int(bound), math.ceil(solver.best_objective_bound * (1 - 1e-12) - 1e-6) * unit)
    return Result(Status.FEASIBLE, chosen, cost, min(proven, cost), seconds, "CP-SAT")


def fluid_nbytes(instance: Instance, *, time_limit_s: float = 60.0) -> int:
    """A lower bound on the bytes of any plan of this order on two tiers, split items included: the relaxation with
    every item taking no more room than the bytes it moves, by weak duality."""
    choice = pose(instance, instance.capacity_nbytes, padded=False)
    if not choice.rows:
        return 0
    # Rounding up to units and cutting coefficients is sound for whole items only.
    builder = ProgramBuilder()
    builder.add_columns(len(choice.gaps), 1.0)
    stores = builder.add_columns(len(choice.store_nbytes), 1.0)
    for gaps, least, sizes in choice.rows:
        row = builder.add_rows(1, 1.0, np.inf)
        builder.put(np.repeat(row, len(gaps)), np.array(gaps, dtype=np.int64), np.array(sizes, dtype=float) / least)
    for g, s in enumerate(choice.store_of):
        if s is not None:
            row = builder.add_rows(1, 0.0, np.inf)
            builder.put(np.repeat(row, 2), np.array([stores[s], g], dtype=np.int64), np.array([1.0, -1.0]))
    program = builder.program(np.array((*choice.gap_nbytes, *choice.store_nbytes), dtype=np.float64))
    answer = ENGINES[linear_engine(instance.engine)](program, time_limit_s)
    return 0 if answer.duals is None else max(0, math.floor(safe_bound(program, answer.duals)))
