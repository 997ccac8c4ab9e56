"""Several memories: each body goes to one of the banks that it may use, at an offset there.

Without capacities the highest peak is minimised; with them, any packing that stays within all is as good as another.
Bodies are dealt out by first fit over all banks; then each bank is packed by itself, bodies move from the bank that is
too high to others, and CP-SAT chooses banks and offsets together where the problem is small enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..result import Result, Status
from . import cpsat, greedy
from .banks_problem import BanksPacking, BanksProblem, check_banks, members_of
from .compact import Compact, Ints, compact, live_bytes
from .problem import PackingProblem
from .solve import pack

_CPSAT_BOXES = 600


def pack_banks(problem: BanksProblem, *, time_limit_s: float = 10.0, seed: int = 0) -> Result[BanksPacking]:
    """Banks and offsets. Objective and bound are the highest peak over all banks, in bytes.

    Where every bank has a capacity, the first packing within all of them is the answer. OPTIMAL: proven least, or at
    the bound. FEASIBLE: within all capacities. INFEASIBLE: proven. UNKNOWN: none found.
    """
    began = time.monotonic()
    deadline = began + time_limit_s
    crooked = _crooked(problem.bodies)
    if crooked:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "fixed offsets", crooked)
    whole = compact(problem.bodies)
    bound = _bound(problem, whole)
    refused = _refused(problem, whole)
    if refused:
        return Result(Status.INFEASIBLE, None, None, bound, time.monotonic() - began, "load bound", refused)
    limited = all(capacity is not None for capacity in problem.capacities)
    goal = math.inf if limited else bound
    best, method = None, ""
    for name, order in greedy.order_by(whole).items() if len(whole) else ():
        dealt = _deal(problem, whole, order)
        if dealt is not None and (best is None or max(dealt.peaks) < max(best.peaks)):
            best, method = dealt, f"first-fit by {name}"
        if (best is not None and max(best.peaks) <= goal) or time.monotonic() >= deadline:
            break
    if not len(whole):
        best, method = _empty(problem), "empty"
    if best is not None and max(best.peaks) > goal:
        lower = _repack(problem, best, min(deadline, time.monotonic() + 0.4 * time_limit_s), seed)
        if max(lower.peaks) < max(best.peaks):
            best, method = lower, "each bank packed by itself"
    proven = Status.UNKNOWN
    if (best is None or max(best.peaks) > goal) and len(whole.owner) <= _CPSAT_BOXES:
        top = None if best is None else max(best.peaks)
        proven, found, bound = _together(problem, whole, bound, top, limited, deadline - time.monotonic(), seed)
        if found is not None:
            best, method = found, "CP-SAT"
    seconds = time.monotonic() - began
    if best is None:
        infeasible = proven == Status.INFEASIBLE
        detail = f"nothing found in {len(problem.capacities)} banks of {problem.capacities}"
        status = Status.INFEASIBLE if infeasible else Status.UNKNOWN
        return Result(status, None, None, bound, seconds, "CP-SAT" if infeasible else "first-fit", detail)
    wrong = check_banks(problem, best)
    assert not wrong, wrong[0]
    peak = max(best.peaks)
    return Result(Status.OPTIMAL if peak <= bound else Status.FEASIBLE, best, peak, bound, seconds, method)


def _crooked(problem: PackingProblem) -> str:
    """A fixed body off its alignment; empty if there is none. In which bank it lies makes no difference."""
    for i, body in enumerate(problem.bodies):
        if (body.fixed or 0) % body.alignment:
            return f"body {problem.name(i)} at {body.fixed} is not aligned to {body.alignment}"
    return ""


def _live(c: Compact) -> list[int]:
    """Plain live bytes of each live set; padding depends on who lies with whom, so none is counted."""
    return live_bytes(replace(c, alignment=np.ones_like(c.alignment)))


def _bound(problem: BanksProblem, c: Compact) -> int:
    """Some bank holds at least its share of every live set, and every body by itself.

    Bank b holds capacity_b at most, so what exceeds the smaller banks' capacities is shared by the others.
    """
    loads = [n * c.unit for n in _live(c)]
    least = max([0, *(int(c.hi[k]) + max(0, int(c.fixed[c.owner[k]])) for k in range(len(c.owner)))]) * c.unit
    load, banks = max(loads, default=0), len(problem.capacities)
    limits = sorted(n for n in problem.capacities if n is not None)
    share = -(-load // banks)
    while limits and limits[0] < share and banks > 1:
        load, banks = load - limits.pop(0), banks - 1
        share = -(-load // banks)
    return max(least, share)


def _refused(problem: BanksProblem, c: Compact) -> str:
    """Why nothing can fit, from loads alone; empty if they do not say."""
    if any(n is None for n in problem.capacities):
        return ""
    capacity = sum(n for n in problem.capacities if n is not None)
    load = max(_live(c), default=0) * c.unit
    if load > capacity:
        return f"{load} bytes are live at one instant, the banks hold {capacity} together"
    for i in c.bodies:
        body = problem.bodies.bodies[i]
        nbytes = max(b.hi for b in body.boxes) + (body.fixed or 0)
        room = max(problem.capacities[b] or 0 for b in problem.choices(i))
        if nbytes > room:
            return f"body {problem.bodies.name(i)} reaches {nbytes} bytes, the largest bank it may go to holds {room}"
    return ""


def _empty(problem: BanksProblem) -> BanksPacking:
    banks = tuple(problem.choices(i)[0] for i in range(len(problem.bodies.bodies)))
    offsets = tuple(body.fixed or 0 for body in problem.bodies.bodies)
    return BanksPacking(banks, offsets, tuple(0 for _ in problem.capacities))


def _deal(problem: BanksProblem, c: Compact, order: Ints) -> BanksPacking | None:
    """First fit over all banks: each body where it ends lowest. None where one finds no room, or fixed ones collide."""
    meets = greedy.conflicts(c)
    ends = [np.zeros(len(c.owner), dtype=c.hi.dtype) for _ in problem.capacities]
    starts = [np.zeros(len(c.owner), dtype=c.hi.dtype) for _ in problem.capacities]
    bank = [-1] * len(c)
    bases = [0] * len(c)
    for i in sorted(order.tolist(), key=lambda i: c.fixed[i] < 0):
        own = slice(int(c.begin[i]), int(c.begin[i + 1]))
        top = int(c.hi[own].max())
        found: list[tuple[int, int, int]] = []
        for b in problem.choices(c.bodies[i]):
            wanted = max(0, int(c.fixed[i]))
            base = greedy.lowest_base(c, i, starts[b], ends[b], meets, wanted)
            capacity = problem.capacities[b]
            if (c.fixed[i] < 0 or base == wanted) and (capacity is None or (base + top) * c.unit <= capacity):
                found.append((base + top, b, base))
        if not found:
            return None
        _, bank[i], bases[i] = min(found)
        starts[bank[i]][own] = bases[i] + c.lo[own]
        ends[bank[i]][own] = bases[i] + c.hi[own]
    return _assemble(problem, c, bank, bases)


def _assemble(problem: BanksProblem, c: Compact, bank: Sequence[int], bases: Sequence[int]) -> BanksPacking:
    start = _empty(problem)
    banks, offsets = list(start.banks), list(start.offsets)
    peaks = [0] * len(problem.capacities)
    for i, index in enumerate(c.bodies):
        banks[index], offsets[index] = bank[i], bases[i] * c.unit
        top = int(c.hi[int(c.begin[i]) : int(c.begin[i + 1])].max())
        peaks[bank[i]] = max(peaks[bank[i]], (bases[i] + top) * c.unit)
    return BanksPacking(tuple(banks), tuple(offsets), tuple(peaks))


def _repack(problem: BanksProblem, packing: BanksPacking, deadline: float, seed: int) -> BanksPacking:
    """Each bank's bodies packed anew, the highest bank first; none gets higher."""
    offsets, peaks = list(packing.offsets), list(packing.peaks)
    for bank in sorted(range(len(peaks)), key=lambda b: -peaks[b]):
        members = [i for i, b in enumerate(packing.banks) if b == bank]
        left = max(0.0, deadline - time.monotonic()) / len(peaks)
        start = [offsets[i] for i in members]
        found = pack(members_of(problem, members, None), time_limit_s=left, seed=seed, start=start).solution
        if found is not None and found.peak < peaks[bank]:
            peaks[bank] = found.peak
            for i, offset in zip(members, found.offsets, strict=True):
                offsets[i] = offset
    return BanksPacking(packing.banks, tuple(offsets), tuple(peaks))


def _together(
    problem: BanksProblem, c: Compact, bound: int, top: int | None, limited: bool, time_limit_s: float, seed: int
) -> tuple[Status, BanksPacking | None, int]:
    """CP-SAT: x_ib = 1 where body i is in bank b; rectangles of a bank are disjoint. The highest peak is minimised,
    unless all banks are `limited`."""
    from ortools.sat.python import cp_model

    highest = (top if top is not None else max(n if n is not None else sum_of(c) for n in problem.capacities)) // c.unit
    if highest > 2**40 or time_limit_s <= 0:
        return Status.UNKNOWN, None, bound
    model = cp_model.CpModel()
    bases = cpsat.bases(model, c, highest)
    inside: dict[tuple[int, int], Any] = {}
    for i, index in enumerate(c.bodies):
        for b in problem.choices(index):
            inside[i, b] = model.new_bool_var(f"in{i}_{b}")
        model.add_exactly_one(inside[i, b] for b in problem.choices(index))
    if not limited:
        peak = model.new_int_var(min(highest, -(-bound // c.unit)), highest, "peak")
        for k, i in enumerate(c.owner.tolist()):
            model.add(peak >= bases[i] + int(c.hi[k]))
        model.minimize(peak)
    for b, capacity in enumerate(problem.capacities):
        _one_bank(model, c, b, None if capacity is None else capacity // c.unit, bases, inside)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = seed % 2**31
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Status.INFEASIBLE, None, bound
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Status.UNKNOWN, None, bound
    bank = [next(b for b in problem.choices(i) if solver.value(inside[k, b])) for k, i in enumerate(c.bodies)]
    packing = _assemble(problem, c, bank, [int(solver.value(base)) for base in bases])
    if limited:
        return Status.FEASIBLE, packing, bound
    proven = max(packing.peaks) if status == cp_model.OPTIMAL else int(np.ceil(solver.best_objective_bound)) * c.unit
    return Status.FEASIBLE, packing, max(bound, proven)


def _one_bank(
    model: Any, c: Compact, bank: int, capacity: int | None, bases: list[Any], inside: dict[Any, Any]
) -> None:
    """Boxes in the bank are disjoint rectangles (live sets x addresses), within its capacity."""
    lives: list[Any] = []
    addresses: list[Any] = []
    for k, i in enumerate(c.owner.tolist()):
        if (i, bank) not in inside:
            continue
        here = inside[i, bank]
        lo, size = int(c.lo[k]), int(c.hi[k] - c.lo[k])
        first, span = int(c.first[k]), int(c.last[k] - c.first[k])
        lives.append(model.new_optional_fixed_size_interval_var(first, span, here, f"life{k}_{bank}"))
        addresses.append(model.new_optional_fixed_size_interval_var(bases[i] + lo, size, here, f"box{k}_{bank}"))
        if capacity is not None:
            model.add(bases[i] + int(c.hi[k]) <= capacity).only_enforce_if(here)
    model.add_no_overlap_2d(lives, addresses)


def sum_of(c: Compact) -> int:
    """An address that no first fit exceeds, in bytes: all sizes and one alignment step each above what is fixed."""
    highest = max([0, *(int(f) for f in c.fixed)])
    return c.unit * (highest + sum(int(n) for n in c.hi) + sum(int(a) for a in c.alignment))
