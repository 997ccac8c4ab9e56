"""COSMA re-implemented: operator order, residency and addresses of one pass, exactly where small, in parts where not.

Li, Gupta and Malik, arXiv 2311.18246. Their integer program (section III) decides the schedule (Eq. 1 to 4), what is
created, preserved, spilled and retrieved in each step (Eq. 5 to 10), addresses without overlap (Eq. 11, 12), and
minimises the bytes spilled and retrieved. Ours is `solvers.exact`. For large graphs their section IV divides the
schedule and conquers part by part. Here parts are runs of an order that come one after another:

    state 0 = inputs on chip, weights below;   for part p = 1, 2, ...:
    min  bytes moved in p + sum over tensors that later parts need and that are not on chip at p's end of their bytes
    over all orders and residencies of p, from the state in which part p - 1 ended

The second term is the load that a later part must make in any case, so that part p does not drop for nothing what
others need; what is on chip at the end counts for nothing, which is where the division may lose bytes.

One pass against periodic passes: COSMA plans one inference. Its weights begin below and are loaded in every pass; our
instances repeat, and a weight may stay for ever. So here the gap of a weight round the end of the pass is always one in
which it leaves, each weight is loaded once a pass at least, and the plan moves in the steady state what COSMA counts
for its one pass. (A weight used in both the last and the first step has no such gap and cannot leave in between.)
Inputs arrive on chip and outputs leave from there at no charge, as in all our instances.

Differences: a tensor may be spilled once per version and retrieved any number of times, at any address. Parts decide
the order; residency is then solved exactly over the whole pass, and addresses are found by packing all stays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.errors import InfeasibleError, TimeLimitError
from ..ir.plan import Plan
from ..solvers.engines import AUTO
from ..solvers.exact import Begin, End, Operator, Tensor, TrafficProblem, TrafficSolution, solve_traffic
from ..solvers.exact.solve import ENGINES
from ..solvers.result import Result
from .cosma_parts import solve_parts
from .instance import Instance
from .one_way import bound_nbytes, removable_gaps, store_link
from .place import place
from .realise import realise
from .stays import Decisions, Placed, Stay, make_stays
from .strategies import Effort, register
from .traffic import around_the_end, search
from .traffic_choice import pose, solve_choice
from .traffic_orders import candidate_orders, operator_pairs

OWN_SHARE = 0.25
"""Of the time, for the program's own order: there is a plan, whatever the division takes."""

DIVISION_SHARE = 2 / 3
"""Of what is left then, for other orders; the rest is for the residency and the addresses of the best of them."""


@register
@dataclass(frozen=True, slots=True)
class Cosma:
    """COSMA: exact up to `exact_steps` operators, above that by parts of `part_steps` of the best simple order.

    The order that is found goes through the exact residency of `least-traffic`, one pass, as does the program's own
    ("COSMA FS" in the paper); the one that moves less is the plan, so a poor division costs nothing. Up to
    `offset_steps` operators the integer program decides addresses too, where packing finds none for the optimum; if
    packing finds none for what it decides either, its own stand. All of it ends with the time limit. `engine` is one
    of `solvers.exact`'s; "auto" is the instance's where that is one, else HiGHS.
    """

    name: ClassVar[str] = "cosma"
    exact_steps: int = 10
    part_steps: int = 8
    offset_steps: int = 5
    engine: str = AUTO

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the better order. TimeLimitError: no addresses were found for either."""
        clock = _Clock(effort)
        problem = pose_pass(instance)
        best, failure = search(instance, clock.share(OWN_SHARE), one_pass=True)
        other = self._reordered(instance, clock.share(DIVISION_SHARE))
        if other.order != instance.order and (best is None or _bound(other, clock) < (best.moved or 0)):
            share = clock.share(1 / 2 if problem.steps <= self.offset_steps else 1.0)
            found, _ = search(other, share, one_pass=True)
            best = found if best is None or (found is not None and (found.moved or 0) < (best.moved or 0)) else best
        if problem.steps <= self.offset_steps and (best is None or (best.moved or 0) > best.bound):
            plan = self._with_offsets(instance, problem, clock.share(1.0))
            if plan is not None and (best is None or sum(plan.certificate.moved_nbytes.values()) < (best.moved or 0)):
                return plan
        if best is None and clock.left_s > 0:
            best, failure = search(instance, clock.share(1.0), one_pass=True)
        if best is None:
            assert failure is not None, "the program's order has a plan, or says why not"
            raise failure
        return realise(best.instance, best.placed, self.name)

    def _engine(self, instance: Instance) -> str:
        if self.engine != AUTO:
            return self.engine
        return instance.engine if instance.engine in ENGINES else "highs"

    def _reordered(self, instance: Instance, effort: Effort) -> Instance:
        """The instance in the order of the exact optimum where it is small. Else parts in turn improve the best of the
        simple orders; the next round cuts half a part further on, until two rounds in a row gain nothing."""
        clock = _Clock(effort)
        length = instance.steps if instance.steps <= self.exact_steps else self.part_steps
        best, least, failures, first = instance, _least(instance, clock), 0, length
        for order in candidate_orders(instance.graph) if length < instance.steps else ():
            best, least = _lesser(best, least, _posed(instance, order), clock)
        while failures < (2 if length < instance.steps else 1):
            try:
                limit_s = 0.75 * clock.left_s
                problem, engine = pose_pass(best), self._engine(instance)
                solution = solve_parts(problem, length, time_limit_s=limit_s, engine=engine, first=first)
            except TimeLimitError:
                break
            before = best
            best, least = _lesser(best, least, in_order(best, solution.order), clock)
            failures = failures + 1 if best is before else 0
            first = length - length // 2 if first == length else length
        return best

    def _with_offsets(self, instance: Instance, problem: TrafficProblem, effort: Effort) -> Plan | None:
        """Order, residency and addresses in one integer program; None where it tells too few places apart, or has no
        answer that is a plan."""
        clock = _Clock(effort)
        try:
            whole = replace(problem, offsets=True)
            limit_s, engine = 0.75 * clock.left_s, self._engine(instance)
            solution = solve_traffic(whole, time_limit_s=limit_s, engine=engine).solution
        except ValueError:
            return None
        posed = None if solution is None else in_order(instance, solution.order)
        if solution is None or posed is None:
            return None
        decisions = to_decisions(instance, posed, solution)
        stays = make_stays(posed, decisions.evicted)
        # Packed anew, transfers may begin earlier; where that finds no addresses, those of the program are some.
        placed = place(posed, stays, decisions, packing_time_s=max(0.5, clock.left_s), seed=effort.seed)
        placed = placed or own_addresses(instance, posed, stays, solution)
        return None if placed is None else realise(posed, placed, self.name)


class _Clock:
    """What is left of one time limit, for all that is done within it."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.deadline = time.monotonic() + effort.time_limit_s

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.deadline - time.monotonic())

    def share(self, part: float) -> Effort:
        """A part of them."""
        return replace(self.effort, time_limit_s=part * self.left_s)


def _posed(instance: Instance, order: tuple[str, ...]) -> Instance | None:
    """The instance in another order; None where what arrives first or leaves last then does not fit."""
    try:
        return instance.reordered(order)
    except InfeasibleError:
        return None


def in_order(instance: Instance, order: tuple[int, ...]) -> Instance | None:
    """The instance posed anew in another order of its own steps; None where that does not fit: the integer program
    counts bytes, and here places begin at multiples of their alignments."""
    if order == tuple(range(instance.steps)):
        return instance
    return _posed(instance, tuple(instance.order[o] for o in order))


def _choice(instance: Instance, clock: _Clock) -> Result[tuple[bool, ...]]:
    choice = pose(instance, instance.capacity_nbytes, kept_out=around_the_end(instance, True))
    seed = clock.effort.seed
    return solve_choice(choice, time_limit_s=clock.left_s / 4, seed=seed, engine=instance.engine)


def _bound(instance: Instance, clock: _Clock) -> int:
    """What one pass in this order moves at the least."""
    return int(_choice(instance, clock).bound or 0)


def _least(instance: Instance, clock: _Clock) -> int | None:
    """What one pass in this order may move, addresses left out; None where what cannot leave is too much, or where time
    is over before that is known."""
    fits = max(bound_nbytes(instance), default=0) <= instance.capacity_nbytes
    found = _choice(instance, clock) if fits and clock.left_s > 0 else None
    return None if found is None or found.objective is None else int(found.objective)


def _lesser(best: Instance, least: int | None, other: Instance | None, clock: _Clock) -> tuple[Instance, int | None]:
    """The order that moves less, and how much; the first where nothing is known of the other."""
    cost = None if other is None else _least(other, clock)
    if other is None or cost is None or (least is not None and cost >= least):
        return best, least
    return other, cost


def pose_pass(instance: Instance) -> TrafficProblem:
    """One pass of the instance as a problem of `solvers.exact`: items as tensors, operators by their step."""
    number = {item.storage: i for i, item in enumerate(instance.items)}
    graph, one_way = instance.graph, store_link(instance) is None
    arriving, leaving = set(graph.storages_of(graph.inputs)), set(graph.storages_of(graph.outputs))
    tensors: list[Tensor] = []
    for i, item in enumerate(instance.items):
        storage = graph.storage[item.storage]
        begins = Begin.BELOW if item.homed else Begin.ARRIVES if item.storage in arriving else Begin.MADE
        changed = item.homed and bool(item.writes)
        ends = End.BELOW if changed else End.FREE
        if item.storage in leaving:
            ends = End.BOTH if changed else End.FAST
        if changed and one_way:  # it stays from pass to pass
            begins, ends = Begin.FAST, End.FAST
        tensors.append(Tensor(storage.nbytes, begins, ends, item.nbytes, instance.alignment_of(i)))
    step = {name: t for t, name in enumerate(instance.order)}
    ids = [op.id for op in graph.operators]
    operators = [
        Operator(
            tuple(number[s] for s in graph.reads(graph.operator[o]) if s in number),
            tuple(number[s] for s in graph.writes(graph.operator[o]) if s in number),
        )
        for o in instance.order
    ]
    pairs = tuple(sorted((step[ids[a]], step[ids[b]]) for a, b in operator_pairs(graph)))
    capacity = instance.capacity_nbytes
    return TrafficProblem(tuple(operators), tuple(tensors), capacity, precedence=pairs, one_way=one_way)


def to_decisions(instance: Instance, posed: Instance, solution: TrafficSolution) -> Decisions:
    """The gaps of `posed`, the instance in the solution's order, in which items leave."""
    number = {item.storage: i for i, item in enumerate(instance.items)}
    evicted: set[tuple[int, int]] = set()
    for gap in removable_gaps(posed):
        i = number[posed.items[gap.item].storage]
        inside = range(gap.start + 1, min(gap.end, posed.steps - 1) + 1)
        stays = all(i in solution.present[t] and i not in solution.loads[t] for t in inside)
        if gap.end >= posed.steps or not stays:
            evicted.add((gap.item, gap.before))
    return Decisions(frozenset(evicted), {}, prefetch=True)


def own_addresses(
    instance: Instance, posed: Instance, stays: Sequence[Stay], solution: TrafficSolution
) -> list[Placed] | None:
    """The stays of `posed` where the solution puts them, transfers while operators wait; None where it moves one
    between two uses that follow each other, or decided no addresses."""
    if solution.offsets is None:
        return None
    number = {item.storage: i for i, item in enumerate(instance.items)}
    pairs = zip(solution.present, solution.offsets, strict=True)
    at = [dict(zip(present, offsets, strict=True)) for present, offsets in pairs]
    placed: list[Placed] = []
    for stay in stays:
        i = number[posed.items[stay.item].storage]
        places = {at[t % posed.steps].get(i) for t in range(stay.first, stay.last + 1)}
        offset = places.pop()
        if places or offset is None:
            return None
        placed.append(Placed(stay, offset, stay.first, posed.steps if stay.always else stay.last + 1))
    return placed
