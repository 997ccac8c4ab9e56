"""`solve_coarse`: residency of many steps, by the program of `coarse`; its bound is one for every step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from ..linear import ENGINES, Floats, Highs, LinearAnswer, safe_bound
from ..result import Result, Status
from .bounds import compulsory_bound, round_down
from .coarse import CoarseModel, build_coarse
from .coarse_groups import Gaps, Group, Ints, gap_arrays
from .coarse_timeline import Fractions, Timeline, fit, follow, kept_nbytes
from .lp import trivial, van_der_corput
from .problem import ResidencyProblem, ResidencySolution

# Relative; a solution within this of its bound is called optimal. Engines work to about 1e-7.
_TOLERANCE = 1e-6
MACRO_STEPS = 400
"""Parts of a pass to begin with: four hundred lose about a thousandth against eight hundred, in a third of the time."""
_FINER = 3
"""By how much the parts are multiplied where bound and timeline are far apart and there is time."""
_GOOD_ENOUGH = 5e-3
"""Relative; nearer to its bound than this a timeline is not worth finer parts."""
_ROUGHLY = 1e-4
"""Relative; how exact the program for the timeline is solved: its fractions are rounded, its bound is not used."""


def solve_coarse(
    problem: ResidencyProblem, *, macro_steps: int = MACRO_STEPS, time_limit_s: float = 30.0, engine: str = "highs"
) -> Result[ResidencySolution]:
    """As `lp.solve_residency`, for so many steps that their program is out of reach.

    The pass is divided into `macro_steps` parts that compute and load about evenly, and memory is looked at before and
    after the step of each where most is alive. Objective and bound are nanoseconds a pass. The bound holds for the
    whole problem (`coarse`) and loses little where a part moves little of the capacity; where much is lost and time is
    left, the parts are made smaller. The solution is a timeline of
    all steps that keeps every limit: fractions handed back to gaps, raised where a step between the parts overflows,
    and followed greedily; so the objective is one that is reached, and the status FEASIBLE unless it meets the bound.
    `memory_price` is that of the step that stands for each part, zero elsewhere. ERROR: the engine broke down before
    there was a solution; `detail` says how, and the bound is the compulsory one.

    Raises:
        ValueError: an unknown engine, or no parts.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; choose one of {', '.join(sorted(ENGINES))}")
    if macro_steps < 1:
        raise ValueError(f"{macro_steps} macro-steps; a pass needs at least 1")
    began, method = time.monotonic(), f"coarse LP by {engine}"
    early = trivial(problem, method, began)
    if early is not None:
        return early
    gaps = gap_arrays(problem)
    best, bound, parts = _Attempt(Status.UNKNOWN, None, math.inf), compulsory_bound(problem), macro_steps
    while True:
        started = time.monotonic()
        attempt = _attempt(problem, gaps, watched(problem, gaps, parts), engine, began + time_limit_s)
        if attempt.status == Status.INFEASIBLE:
            detail = f"{engine}: {attempt.detail or 'infeasible'}"
            return Result(attempt.status, None, None, None, time.monotonic() - began, method, detail)
        bound = max(bound, attempt.bound_ns)
        best = attempt if best.solution is None or attempt.objective < best.objective else best
        now = time.monotonic()
        late = now - began + (now - started) * _FINER**2 > time_limit_s / 2
        done = parts >= len(problem.durations_ns) or late or attempt.status == Status.ERROR
        if done or best.objective <= bound * (1 + _GOOD_ENOUGH):
            break
        parts *= _FINER
    seconds = time.monotonic() - began
    if best.solution is None:
        return Result(best.status, None, None, bound, seconds, method, best.detail)
    objective = max(best.objective, bound)
    status = Status.OPTIMAL if objective <= bound * (1 + _TOLERANCE) else Status.FEASIBLE
    return Result(status, best.solution, objective, bound, seconds, method)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One watch: the timeline and its time in nanoseconds, and the bound."""

    status: Status
    solution: ResidencySolution | None
    objective: float
    bound_ns: float = 0.0
    detail: str = ""


def _attempt(problem: ResidencyProblem, gaps: Gaps, watch: Ints, engine: str, deadline: float) -> _Attempt:
    """The least waiting, for the bound; and again with room left for what a phase may load, for the timeline.

    Within a phase the first program lets bytes arrive after the step that reads them. A timeline that is filled to the
    brim cannot make up for that and waits in every phase; with one phase's loads ahead it does not.
    """
    try:
        model = build_coarse(problem, gaps, watch)
        first, second = _two_programs(problem, model, engine, deadline)
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        return _Attempt(Status.ERROR, None, math.inf, detail=f"{engine} broke down: {error}")
    bound = _bound_ns(problem, model, first.duals)
    chosen = second if second is not None and second.values is not None else first
    if chosen.values is None:
        return _Attempt(first.status, None, math.inf, bound, first.detail)
    fractions = _hand_back(gaps, model, np.maximum(chosen.values, 0.0))
    fit(problem, gaps, fractions)
    found = follow(problem, gaps, fractions)
    prices = np.zeros(len(problem.durations_ns))
    if first.duals is not None and len(first.duals):
        price = -first.duals[model.memory_rows] * model.ns_unit * 1e-9 / model.byte_unit
        np.add.at(prices, watch // 2, np.maximum(price, 0.0))
    objective = float(sum(problem.durations_ns)) + math.fsum(found.stall_ns)
    return _Attempt(first.status, _as_solution(fractions, found, prices), objective, bound)


def _two_programs(
    problem: ResidencyProblem, model: CoarseModel, engine: str, deadline: float
) -> tuple[LinearAnswer, LinearAnswer | None]:
    program = model.program
    highs = Highs(program) if engine == "highs" else None
    first = highs.solve(deadline - time.monotonic()) if highs else ENGINES[engine](program, deadline - time.monotonic())
    if first.status != Status.OPTIMAL or time.monotonic() >= deadline:
        return first, None
    longest_ns = model.ns_unit * float(model.durations.max())
    ahead = problem.load_bytes_per_s * 1e-9 * longest_ns / model.byte_unit
    room = program.row_upper[model.memory_rows]
    row_upper = program.row_upper.copy()
    row_upper[model.memory_rows] = np.maximum(room - ahead, 0.5 * room)
    cost = program.cost + _moved_cost(problem, model)
    if highs:
        highs.set_rows_upper(model.memory_rows, row_upper[model.memory_rows])
        highs.set_cost(cost)
        highs.option("solver", "ipm")
        highs.option("run_crossover", "off")
        highs.option("ipm_optimality_tolerance", _ROUGHLY)
        return first, highs.solve(deadline - time.monotonic())
    return first, ENGINES[engine](replace(program, cost=cost, row_upper=row_upper), deadline - time.monotonic())


def watched(problem: ResidencyProblem, gaps: Gaps, macro_steps: int) -> Ints:
    """Instants to look at memory in: start and end of the step of each part where most is alive, and the pass's end.

    Parts are consecutive steps with about equal sums of what they compute and of what may have to be loaded for them,
    each as a share of the pass.
    """
    steps = len(problem.durations_ns)
    alive = np.array(problem.base_nbytes, dtype=np.float64) + kept_nbytes(problem, gaps, np.zeros(len(gaps.nbytes)))
    loads = np.bincount(gaps.end % steps, weights=gaps.nbytes, minlength=steps)
    durations = np.array(problem.durations_ns, dtype=np.float64)
    weight = durations / max(durations.sum(), 1.0) + loads / max(loads.sum(), 1.0) + 1e-3 / steps
    part = np.minimum((np.cumsum(weight) - weight / 2) / weight.sum() * macro_steps, macro_steps - 1).astype(np.int64)
    order = np.lexsort((-np.arange(steps), alive, part))
    highest = order[np.flatnonzero(np.diff(part[order], append=part[order[-1]] + 1))]
    return np.unique(np.concatenate([2 * highest, 2 * highest + 1, [2 * steps - 1]]))


def _bound_ns(problem: ResidencyProblem, model: CoarseModel, duals: Floats | None) -> float:
    """Durations, which are exact, and the least waiting as the duals prove it."""
    least = safe_bound(model.program, duals) if duals is not None and len(duals) else 0.0
    return round_down(sum(problem.durations_ns) + Fraction(max(0.0, least)) * Fraction(model.ns_unit))


def _moved_cost(problem: ResidencyProblem, model: CoarseModel) -> Floats:
    """A thousandth of the time that bytes take to move, each group's dearer by up to a thousandth in the sequence of
    van der Corput along the order, so that of equal groups few are divided."""
    cost = np.zeros(len(model.program.cost))
    rate = max(problem.load_bytes_per_s, problem.store_bytes_per_s) * 1e-9 * model.ns_unit
    order = sorted(range(len(model.groups)), key=lambda g: model.groups[g].spans[:1])
    for rank, g in enumerate(order):
        group, weight = model.groups[g], 1e-3 * (1.0 + 1e-3 * van_der_corput(rank)) / rate
        cost[model.absent[g]] = np.array(group.nbytes) * weight
        for columns in (model.stored[g], model.ahead[g]):
            cost[columns] = group.moved_nbytes * weight
    return cost


def _as_solution(fractions: Fractions, found: Timeline, prices: Floats) -> ResidencySolution:
    return ResidencySolution(
        absent=tuple(fractions.absent.tolist()),
        stored=tuple(fractions.stored.tolist()),
        ahead=tuple(fractions.ahead.tolist()),
        stall_ns=tuple(found.stall_ns),
        loaded_waiting=tuple(found.loads[0]),
        loaded_running=tuple(found.loads[1]),
        stored_waiting=tuple(found.stores[0]),
        stored_running=tuple(found.stores[1]),
        ahead_waiting=tuple(found.aheads[0]),
        ahead_running=tuple(found.aheads[1]),
        memory_price=tuple(prices.tolist()),
    )


def _hand_back(gaps: Gaps, model: CoarseModel, values: Floats) -> Fractions:
    """Fractions of single gaps: of a group so many members are absent as its fraction says, at most one in part.

    Members stand in the order of van der Corput, so that those absent are spread over the group. What a group drops is
    the first e of its bytes, what it has stored always the first of them, too: so nothing is dropped unstored.
    """
    found = Fractions(*(np.zeros(len(gaps.nbytes)) for _ in range(3)))
    found.absent[gaps.start < 0] = 1.0
    chain_of = {chain[k]: (chain, k) for chain in gaps.chains for k in range(len(chain))}
    for g, group in enumerate(model.groups):
        if not group.members:
            continue
        lows, highs = _places(gaps, group)
        ahead = iter(values[model.ahead[g]].tolist())
        stored, before = 0.0, [-1] * len(group.members)
        for k, absent in enumerate(np.minimum(values[model.absent[g]], 1.0).tolist()):
            own = np.array([member[k] for member in group.members])
            found.absent[own] = _share(lows, highs, 0.0, absent)
            if not group.dirty:
                continue
            if group.aheads[k]:
                upto = min(1.0, stored + next(ahead))
                origins = [b if b >= 0 else chain_of[m][0][0] for b, m in zip(before, own.tolist(), strict=True)]
                found.ahead[origins] += _share(lows, highs, stored, upto)
                stored = upto
            if absent > stored:
                found.stored[own] = _share(lows, highs, stored, absent)
                stored = absent
            before = own.tolist()
    return found


def _places(gaps: Gaps, group: Group) -> tuple[Floats, Floats]:
    """From where to where each member's bytes are among those of the group, as fractions."""
    count = len(group.members)
    if count == 1:
        return np.zeros(1), np.ones(1)
    sizes = gaps.nbytes[[member[0] for member in group.members]]
    order = np.argsort([van_der_corput(rank) for rank in range(count)], kind="stable")
    highs = np.empty(count)
    highs[order] = np.cumsum(sizes[order]) / sizes.sum()
    lows = np.empty(count)
    lows[order] = np.concatenate([[0.0], highs[order][:-1]])
    return lows, highs


def _share(lows: Floats, highs: Floats, begin: float, end: float) -> Floats:
    """How much of each place lies in [begin, end)."""
    inside = np.minimum(highs, end) - np.maximum(lows, begin)
    return np.clip(inside / (highs - lows), 0.0, 1.0)
