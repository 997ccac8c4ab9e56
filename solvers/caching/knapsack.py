"""Where each object should live: the multiple-choice knapsack over tiers.

Each item takes one of its options; an option costs so much (nanoseconds per token, say) and takes bytes of one tier or
of several. Minimise the total cost with no tier overfull: which experts in HBM, which in DRAM and fetched, which in
DRAM and computed by the processor beside it, which on the SSD; a KV cache or activations are items of one option, or of
one for each tier that may hold them.

The linear relaxation, solved by prices: with lambda_r for a byte of tier r, the items decide apart, each taking what
costs least, price included, so that sum_i min_o (cost + lambda . bytes) - lambda . capacity is a lower bound for every
lambda >= 0. The best lambda is the dual optimum of the linear program, and of its solution only as many items as there
are tiers are split between options. These are rounded, and swaps improve what is left; where no rounding fits, branch
and bound says whether anything does. A tier is filled up in multiples of the greatest common divisor of what options
take of it, so with objects of one size no capacity is counted that none of them could use.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..linear import Highs, LinearProgram
from ..result import Result, Status
from .problem import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Items with options. `costs` is float64 [items, options], infinite where an item has no such option; `nbytes` is
    int64 [items, options, tiers], what the option takes; `capacity` int64 [tiers]."""

    costs: Floats
    nbytes: Ints
    capacity: Ints

    def __post_init__(self) -> None:
        """Raises ValueError for shapes that disagree, for negative bytes, and for an item without an option."""
        items, options = self.costs.shape
        if self.nbytes.shape != (items, options, len(self.capacity)):
            raise ValueError(f"costs {self.costs.shape} and bytes {self.nbytes.shape} are not of the same options")
        if self.nbytes.size and int(self.nbytes.min()) < 0:
            raise ValueError(f"an option takes {self.nbytes.min()} bytes")
        for i in np.flatnonzero(~np.isfinite(self.costs).any(axis=1)).tolist():
            raise ValueError(f"item {i} has no option")

    def used(self, choice: NDArray[np.int64]) -> Ints:
        """Bytes of each tier that a choice of options takes."""
        return self.nbytes[np.arange(len(choice)), choice].sum(axis=0)

    def cost(self, choice: NDArray[np.int64]) -> float:
        """What a choice of options costs."""
        return float(self.costs[np.arange(len(choice)), choice].sum())


def place(problem: Placement, *, time_limit_s: float = 10.0) -> Result[NDArray[np.int64]]:
    """Choose an option for each item: int64 [items], within all capacities.

    The objective is the total cost, the bound proven. OPTIMAL where both agree to 1e-9 of the bound; else FEASIBLE.
    INFEASIBLE where no choice fits; UNKNOWN where time ran out before that was known.
    """
    began = time.monotonic()
    given, problem = problem, replace(problem, capacity=_fillable(problem))
    program, where = _program(problem)
    answer = Highs(program).solve(time_limit_s)
    if answer.status is Status.INFEASIBLE:
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "linear program", _excess(given))
    if answer.values is None or answer.duals is None:
        return Result(answer.status, None, None, None, time.monotonic() - began, "linear program", answer.detail)
    items = len(problem.costs)
    prices = np.maximum(0.0, -answer.duals[items:]) / _units(problem)
    bound = _bound_at(problem, prices)
    choice = _round(problem, answer.values, where, prices)
    if choice is None:
        status, choice = _searched(problem, program, where, began + time_limit_s)
        if choice is None:
            detail = "no choice fits in all tiers at once" if status is Status.INFEASIBLE else "no rounding fits"
            return Result(status, None, None, bound, time.monotonic() - began, "branch and bound", detail)
    choice = _improve(problem, choice, prices, began + time_limit_s)
    cost = problem.cost(choice)
    status = Status.OPTIMAL if cost - bound <= 1e-9 * max(1.0, abs(bound)) else Status.FEASIBLE
    return Result(status, choice, cost, min(bound, cost), time.monotonic() - began, "prices, rounding and swaps")


def _fillable(problem: Placement) -> Ints:
    """Of each capacity, what sums of bytes that options take can reach."""
    there = np.isfinite(problem.costs)
    steps = np.array([np.gcd.reduce(problem.nbytes[there, r]) for r in range(len(problem.capacity))], dtype=np.int64)
    return np.where(steps > 0, problem.capacity // np.maximum(1, steps) * steps, problem.capacity)


def _searched(
    problem: Placement, program: LinearProgram, where: tuple[Ints, Ints], deadline: float
) -> tuple[Status, NDArray[np.int64] | None]:
    """Any choice that fits, by the whole numbers of the program: FEASIBLE; or INFEASIBLE or UNKNOWN, and None."""
    whole = replace(program, integer=np.ones(len(program.cost), dtype=np.bool_))
    answer = Highs(whole).solve(deadline - time.monotonic())
    if answer.values is None:
        return (Status.INFEASIBLE if answer.status is Status.INFEASIBLE else Status.UNKNOWN), None
    share = np.zeros(problem.costs.shape)
    share[where] = answer.values
    choice = _repair(problem, share.argmax(axis=1).astype(np.int64))  # an engine's tolerance may be bytes too many
    return (Status.UNKNOWN if choice is None else Status.FEASIBLE), choice


def _units(problem: Placement) -> Floats:
    """Bytes that count as one in the rows of the program, by tier: its capacity."""
    return np.maximum(1, problem.capacity).astype(np.float64)


def _program(problem: Placement) -> tuple[LinearProgram, tuple[Ints, Ints]]:
    """sum of x over options = 1 for each item; sum of bytes x <= capacity for each tier. One column a finite option."""
    which, option = np.nonzero(np.isfinite(problem.costs))
    items, tiers, count = len(problem.costs), len(problem.capacity), len(which)
    taken = problem.nbytes[which, option] / _units(problem)
    column, tier = np.nonzero(taken)
    rows = np.concatenate([which, items + tier])
    columns = np.concatenate([np.arange(count), column])
    values = np.concatenate([np.ones(count), taken[column, tier]])
    order = np.lexsort((columns, rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=items + tiers))])
    limit = np.where(problem.capacity > 0, 1.0, 0.0)
    program = LinearProgram(
        problem.costs[which, option].astype(np.float64),
        np.zeros(count),
        np.ones(count),
        np.concatenate([np.ones(items), np.full(tiers, -np.inf)]),
        np.concatenate([np.ones(items), limit]),
        starts.astype(np.int32),
        columns[order].astype(np.int32),
        values[order],
    )
    return program, (which.astype(np.int64), option.astype(np.int64))


def _excess(problem: Placement) -> str:
    """Why nothing fits, for one tier alone where that is so."""
    free = np.where(np.isfinite(problem.costs)[:, :, None], problem.nbytes, np.iinfo(np.int64).max)
    least = free.min(axis=1).sum(axis=0)
    for tier in np.flatnonzero(least > problem.capacity).tolist():
        return f"tier {tier} needs {least[tier]} bytes at least and has {problem.capacity[tier]}"
    return "no mixture of options fits in all tiers at once"


def _priced(problem: Placement, prices: Floats) -> Floats:
    return problem.costs + problem.nbytes @ prices


def _bound_at(problem: Placement, prices: Floats) -> float:
    """The Lagrangian bound, minus what rounding in its sums may have added."""
    priced = _priced(problem, prices).min(axis=1)
    paid = float(problem.capacity @ prices)
    slack = 64 * np.finfo(np.float64).eps * (float(np.abs(priced).sum()) + abs(paid))
    return float(priced.sum()) - paid - slack


def _round(problem: Placement, values: Floats, where: tuple[Ints, Ints], prices: Floats) -> NDArray[np.int64] | None:
    """Items that the program leaves whole stay so; the split ones, the largest first, take what costs least and fits.

    Where nothing fits any more, items are moved to options that relieve the tier that is over, at the least cost a
    byte.
    """
    which, option = where
    share = np.zeros(problem.costs.shape)
    share[which, option] = values
    choice = share.argmax(axis=1).astype(np.int64)
    split = np.flatnonzero(share.max(axis=1) < 1 - 1e-7)
    whole = np.ones(len(choice), dtype=np.bool_)
    whole[split] = False
    rows = np.arange(len(choice))
    used = problem.nbytes[rows[whole], choice[whole]].sum(axis=0)
    priced = _priced(problem, prices)
    for item in split[np.argsort(-problem.nbytes[split].max(axis=(1, 2)), kind="stable")].tolist():
        fits = np.isfinite(problem.costs[item]) & np.all(used + problem.nbytes[item] <= problem.capacity, axis=1)
        options = np.flatnonzero(fits) if bool(fits.any()) else np.flatnonzero(np.isfinite(problem.costs[item]))
        choice[item] = options[int(np.argmin(priced[item, options]))]
        used = used + problem.nbytes[item, choice[item]]
    return _repair(problem, choice)


def _repair(problem: Placement, choice: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Move items until no tier is over; None where no single move helps."""
    rows = np.arange(len(choice))
    for _ in range(len(choice)):
        used = problem.used(choice)
        over = np.maximum(0, used - problem.capacity)
        if not bool(over.any()):
            return choice
        now = problem.nbytes[rows, choice][:, None, :]
        after = np.maximum(0, used + problem.nbytes - now - problem.capacity).sum(axis=2)
        gain = over.sum() - after
        extra = problem.costs - problem.costs[rows, choice][:, None]
        rate = np.where((gain > 0) & np.isfinite(extra), extra / np.maximum(1, gain), np.inf)
        item, option = (int(x) for x in np.unravel_index(int(np.argmin(rate)), rate.shape))
        if not np.isfinite(rate[item, option]):
            return None
        choice[item] = option
    return None


def _improve(problem: Placement, choice: NDArray[np.int64], prices: Floats, deadline: float) -> NDArray[np.int64]:
    """Take single moves, then exchanges with one other item, as long as they fit and save."""
    rows = np.arange(len(choice))
    while time.monotonic() < deadline:
        room = problem.capacity - problem.used(choice)
        now = problem.nbytes[rows, choice][:, None, :]
        fits = np.all(problem.nbytes - now <= room, axis=2)
        saved = np.where(fits, problem.costs[rows, choice][:, None] - problem.costs, -np.inf)
        best = int(np.argmax(saved))
        if saved.flat[best] <= 1e-12 * max(1.0, abs(problem.cost(choice))):
            better = _exchange(problem, choice, prices, room)
            if better is None:
                return choice
            choice = better
            continue
        item, option = (int(x) for x in np.unravel_index(best, saved.shape))
        choice[item] = option
    return choice


def _exchange(
    problem: Placement, choice: NDArray[np.int64], prices: Floats, room: Ints, tried: int = 64
) -> NDArray[np.int64] | None:
    """One item to a dearer option, another to a cheaper one, for less in sum; None where none of those tried saves.

    Tried are the moves that lose least at the prices, `tried` of them, against all others.
    """
    rows = np.arange(len(choice))
    now = problem.nbytes[rows, choice]
    priced = _priced(problem, prices)
    loss = priced - priced[rows, choice][:, None]
    loss[rows, choice] = np.inf
    for flat in np.argsort(loss, axis=None)[:tried].tolist():
        item, option = (int(x) for x in np.unravel_index(flat, loss.shape))
        if not np.isfinite(problem.costs[item, option]):
            continue
        left = room - problem.nbytes[item, option] + now[item]
        extra = problem.costs[item, option] - problem.costs[item, choice[item]]
        fits = np.all(problem.nbytes - now[:, None, :] <= left, axis=2)
        fits[item] = False
        saved = np.where(fits, problem.costs[rows, choice][:, None] - problem.costs, -np.inf)
        other, to = (int(x) for x in np.unravel_index(int(np.argmax(saved)), saved.shape))
        if saved[other, to] - extra > 1e-12 * max(1.0, abs(problem.cost(choice))):
            found = choice.copy()
            found[item], found[other] = option, to
            return found
    return None
