"""Lower bounds on what must be loaded: the interval linear program of caching.

Between two consecutive uses of an object, rounds a < b of one cache, its copy is kept (x = 1) or loaded again (x = 0):

    minimise    sum of cost_i (1 - x_i), and the cost of first uses
    subject to  sum over intervals with a < t < b of size_i x_i <= capacity - size of the set of round t,  for each t
                0 <= x <= 1.

Every policy that loads on demand and keeps the current set gives a feasible x, so the optimum is a lower bound on the
cost of loads. With equal sizes the matrix is an interval matrix, totally unimodular: the optimum is whole, with equal
costs it is Belady's, with unequal costs that of weighted caching. With unequal sizes it is a relaxation. The sums are
kept by differences, A_t = A_(t-1) + what begins - what ends, so the matrix has two entries for an interval.

Long traces are cut into windows of rounds. An interval that crosses into a window takes space there from its start and
is charged where it ends, one that leaves is charged later: the windows' bounds add up to one of the whole.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..linear import Highs, LinearProgram, safe_bound
from ..result import Status
from .offline import NEVER, next_uses
from .problem import NONE, Floats, Ints, Requests


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Pauses between uses in one cache: object `what` is used in rounds `start` and next in `end`; int64 each.

    `first` lists the objects of uses that no earlier one serves.
    """

    what: Ints
    start: Ints
    end: Ints
    first: Ints


@dataclass(frozen=True, slots=True)
class LoadBound:
    """No policy that loads on demand pays less than `cost` for all loads. `whole`: one window, so that with equal sizes
    it is the optimum. `status` is OPTIMAL, or FEASIBLE where time ran out and part of the trace counts first uses only.
    """

    cost: float
    windows: int
    status: Status
    seconds: float

    @property
    def whole(self) -> bool:
        """Whether each cache's trace was one window."""
        return self.windows == 1


def intervals_of(requests: Requests, cache: int) -> Intervals:
    """The intervals of one cache. Uses on two sides of a reset make none."""
    ids = requests.ids[:, cache]
    following = next_uses(requests)[:, cache]
    rounds, ranks = np.nonzero(ids != NONE)
    what, end = ids[rounds, ranks].astype(np.int64), following[rounds, ranks]
    kept = end < NEVER
    served = set(zip(what[kept].tolist(), end[kept].tolist(), strict=True))
    pairs = zip(what.tolist(), rounds.tolist(), strict=True)
    first = np.array([o for o, t in pairs if (o, t) not in served], dtype=np.int64)
    return Intervals(what[kept], rounds[kept].astype(np.int64), end[kept], first)


def load_bound(
    requests: Requests,
    capacity: int | Ints,
    *,
    costs: NDArray[np.integer] | None = None,
    window: int = 2000,
    time_limit_s: float = 60.0,
) -> LoadBound:
    """A lower bound on the cost of all loads of a trace.

    `costs` is what loading an object costs, [caches, objects]; its size if it is None. `window` is in rounds.
    """
    began = time.monotonic()
    limits = requests.capacities(capacity)
    prices = requests.sizes if costs is None else costs
    total, status = 0.0, Status.OPTIMAL
    count = max(1, math.ceil(requests.rounds / window))
    for cache in range(requests.caches):
        found = intervals_of(requests, cache)
        total += float(prices[cache][found.first].sum())
        ids = requests.ids[:, cache]
        sets = np.where(ids == NONE, 0, requests.sizes[cache][ids]).sum(axis=1)
        for n in range(count):
            span = (n * window, min((n + 1) * window, requests.rounds))
            left = time_limit_s - (time.monotonic() - began)
            if left <= 0:
                status = Status.FEASIBLE
                break
            program, constant = _window_program(
                found,
                requests.sizes[cache],
                np.asarray(prices[cache], dtype=np.float64),
                int(limits[cache]) - sets,
                span,
            )
            if program is None:
                total += constant
                continue
            answer = Highs(program).solve(left)
            if answer.duals is None:
                status = Status.FEASIBLE
                continue
            total += max(0.0, constant + safe_bound(program, answer.duals))
    return LoadBound(total, count, status, time.monotonic() - began)


def _window_program(
    found: Intervals, sizes: Ints, prices: Floats, room: Ints, span: tuple[int, int]
) -> tuple[LinearProgram | None, float]:
    """The program of rounds [span[0], span[1]), minimising minus the cost saved, and the cost if nothing is kept.

    Columns: x of each interval that ends in the window and spans a round of it, then A of each round. Intervals that
    span no round are kept for nothing.
    """
    low, high = span
    mine = (found.end >= low) & (found.end < high)
    # The first and the last round of the window that the interval spans.
    enter, leave = np.maximum(found.start + 1, low), found.end
    mine &= enter < leave
    what, enter, leave = found.what[mine], enter[mine] - low, leave[mine] - low
    constant = float(prices[what].sum())
    n, rounds = len(what), high - low
    if not n:
        return None, constant
    scale = float(max(1, sizes.max()))
    weight = sizes[what] / scale
    # Row t: A_t - A_(t-1) - sum of what enters at t + sum of what leaves at t = 0.
    rows = np.concatenate([np.arange(rounds), np.arange(1, rounds), enter, leave])
    columns = np.concatenate([n + np.arange(rounds), n + np.arange(rounds - 1), np.arange(n), np.arange(n)])
    values = np.concatenate([np.ones(rounds), -np.ones(rounds - 1), -weight, weight])
    order = np.lexsort((columns, rows))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=rounds))]).astype(np.int32)
    # Rounding a quotient may cut off what fits exactly: rows are a little wider than the division says.
    upper = room[low:high] / scale * (1 + 1e-12)
    program = LinearProgram(
        cost=np.concatenate([-prices[what], np.zeros(rounds)]),
        col_lower=np.zeros(n + rounds),
        col_upper=np.concatenate([np.ones(n), upper]),
        row_lower=np.zeros(rounds),
        row_upper=np.zeros(rounds),
        starts=starts,
        indices=columns[order].astype(np.int32),
        values=values[order],
    )
    return program, constant
