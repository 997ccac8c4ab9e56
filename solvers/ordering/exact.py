"""The best order of all, by dynamic programming over the sets of operators that may have run (downsets).

What is live depends on which operators have run and not on their order, so a set is a state, and an order is a path
from nothing to everything. Best first: a state is settled with its least cost when it is taken from the queue. Works
where there are few such sets: small graphs, and long ones that are nowhere wide.

*What may run at once.* Let operator o be ready after the set D, and free at least what it adds. Adding less and freeing
more with every other operator that runs before, it does so after any X that contains D too. Take any order that goes on
from D and move o to its front. An operator p that ran after X without o now runs with
    live(X) + new(o, X) - freed(o, X) + new(p, X + o) = live(X) + new(p, X) + new(o, X + p) - freed(o, X)
bytes, and new(o, X + p) <= new(o, D) <= freed(o, D) <= freed(o, X): no more than before. So if o itself costs nothing
at D (it stays within the peak reached so far, or below the level above which bytes count), only o need be tried.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush

from ..result import Result, Status
from .problem import Order, OrderingProblem, excess, peak

DEFAULT_STATES = 50_000


def solve_exact(
    problem: OrderingProblem, *, start: Order | None = None, states: int = DEFAULT_STATES, time_limit_s: float = 10.0
) -> Result[Order]:
    """The order with the least peak; objective and bound in bytes. `start`: a known order, the program's by default.

    OPTIMAL: proven. FEASIBLE: more than `states` sets were met or time ran out; the better of `start` and nothing is
    answered, with the largest peak that every order was shown to reach.
    """
    began = time.monotonic()
    start = start if start is not None else tuple(range(problem.steps))
    known, least = peak(problem, start), problem.working_set_nbytes
    if known <= least or problem.fixed:
        return _result(Status.OPTIMAL, start, known, known, began)
    found = _Sets(problem, limit=known - 1, above=None).search(states, began + time_limit_s)
    if found.order is not None:
        return _result(Status.OPTIMAL, found.order, found.cost, found.cost, began)
    if found.exhausted:
        return _result(Status.OPTIMAL, start, known, known, began)
    return _result(Status.FEASIBLE, start, known, min(known, max(least, found.cost)), began)


def solve_excess(
    problem: OrderingProblem,
    *,
    limit_nbytes: int,
    above_nbytes: int = 0,
    start: Order | None = None,
    states: int = DEFAULT_STATES,
    time_limit_s: float = 10.0,
) -> Result[Order]:
    """Of the orders that hold `limit_nbytes` at most, the one with the least `excess` above a level: bytes times
    nanoseconds. INFEASIBLE: no order stays within the limit. UNKNOWN: too many sets, and `start` is above it."""
    began = time.monotonic()
    start = start if start is not None else tuple(range(problem.steps))
    within = peak(problem, start) <= limit_nbytes
    known = excess(problem, start, above_nbytes)
    if problem.fixed or (within and known == 0):
        if not within:
            return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "downsets")
        return _result(Status.OPTIMAL, start, known, known, began)
    found = _Sets(problem, limit_nbytes, above_nbytes).search(states, began + time_limit_s)
    if found.order is not None:
        return _result(Status.OPTIMAL, found.order, found.cost, found.cost, began)
    if found.exhausted:
        assert not within, "an order within the limit is a path"
        return Result(Status.INFEASIBLE, None, None, None, time.monotonic() - began, "downsets")
    if within:
        return _result(Status.FEASIBLE, start, known, min(known, found.cost), began)
    return Result(Status.UNKNOWN, None, None, found.cost, time.monotonic() - began, "downsets")


def _result(status: Status, order: Order, objective: int, bound: int, began: float) -> Result[Order]:
    return Result(status, order, objective, bound, time.monotonic() - began, "downsets")


class _Found:
    """An order and its cost; or the least cost of what was not settled, and whether nothing is left."""

    __slots__ = ("cost", "exhausted", "order")

    def __init__(self, order: Order | None, cost: int, exhausted: bool) -> None:
        self.order, self.cost, self.exhausted = order, cost, exhausted


class _Sets:
    """The search: no step above `limit` bytes; the cost of a path is its peak, or with `above` the sum of what its
    steps hold above that, times their nanoseconds."""

    def __init__(self, problem: OrderingProblem, limit: int, above: int | None) -> None:
        self.problem, self.limit, self.above = problem, limit, above
        self.before = [sum(1 << a for a in before) for before in problem.before]
        self.users = [sum(1 << o for o in touchers) for touchers in problem.touchers]

    def search(self, states: int, deadline: float) -> _Found:
        problem, everything = self.problem, (1 << self.problem.steps) - 1
        live_at = {0: sum(v.nbytes for v in problem.values if v.given)}
        ready_at = {0: tuple(o for o in range(problem.steps) if not problem.before[o])}
        cost_of, came = {0: 0}, dict[int, tuple[int, int]]()
        # Of equal costs the set of most operators first: an answer soon, and few others settled before it.
        queue, settled = [(0, 0, 0)], set[int]()
        while queue:
            cost, _, done = heappop(queue)
            if done in settled:
                continue
            if done == everything:
                return _Found(_path(came, everything), cost, False)
            settled.add(done)
            if len(cost_of) > states or (not len(settled) % 256 and time.monotonic() > deadline):
                return _Found(None, cost, False)
            live, ready = live_at.pop(done), ready_at.pop(done)
            for o, during, after in self._moves(done, live, ready, cost):
                then = done | 1 << o
                if self.above is None:
                    new = max(cost, during)
                else:
                    new = cost + max(0, during - self.above) * problem.operators[o].duration_ns
                if then not in settled and (then not in cost_of or new < cost_of[then]):
                    cost_of[then], came[then] = new, (done, o)
                    if then not in live_at:
                        live_at[then] = after
                        unlocked = (b for b in problem.after[o] if not self.before[b] & ~then)
                        ready_at[then] = (*(p for p in ready if p != o), *unlocked)
                    heappush(queue, (new, -then.bit_count(), then))
        return _Found(None, self.limit + 1, True)

    def _moves(self, done: int, live: int, ready: tuple[int, ...], cost: int) -> list[tuple[int, int, int]]:
        """(operator, bytes while it runs, bytes after it) of what may run next; only one where that loses nothing."""
        free = cost if self.above is None else self.above
        moves = list[tuple[int, int, int]]()
        for o in ready:
            adds = frees = 0
            for v in self.problem.operators[o].touches:
                value, users = self.problem.values[v], self.users[v]
                if not value.given and not users & done:
                    adds += value.nbytes
                if not value.kept and not users & ~done & ~(1 << o):
                    frees += value.nbytes
            during = live + adds + self.problem.operators[o].own_nbytes
            if during > self.limit:
                continue
            if adds <= frees and during <= free:
                return [(o, during, live + adds - frees)]
            moves.append((o, during, live + adds - frees))
        return moves


def _path(came: dict[int, tuple[int, int]], done: int) -> Order:
    order = list[int]()
    while done:
        done, o = came[done]
        order.append(o)
    return tuple(reversed(order))
