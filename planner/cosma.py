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
from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.errors import InfeasibleError, TimeLimitError
from ..ir.plan import Plan
from ..solvers.exact import Begin, End, Operator, Tensor, TrafficProblem, TrafficSolution, solve_traffic
from .cosma_parts import solve_parts
from .instance import Instance
from .place import place
from .realise import realise
from .stays import Decisions, make_stays
from .strategies import Effort, register
from .traffic import Search, around_the_end, searched
from .traffic_choice import pose, solve_choice
from .traffic_orders import candidate_orders, operator_pairs


@register
@dataclass(frozen=True, slots=True)
class Cosma:
    """COSMA: exact up to `exact_steps` operators, above that by parts of `part_steps` of the best simple order.

    The order that is found goes through the exact residency of `least-traffic`, one pass, as does the program's own
    ("COSMA FS" in the paper); the one that moves less is the plan, so a poor division costs nothing. Up to
    `offset_steps` operators, addresses are decided in the integer program where packing finds none for the optimum.
    `engine` is one of `solvers.exact`'s.
    """

    name: ClassVar[str] = "cosma"
    exact_steps: int = 10
    part_steps: int = 8
    offset_steps: int = 5
    engine: str = "highs"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the better order. TimeLimitError: no addresses were found for either."""
        half = replace(effort, time_limit_s=effort.time_limit_s / 2)
        problem = pose_pass(instance)
        best: Search | None = None
        other = self._reordered(instance, half)
        for posed in (instance, other) if other.order != instance.order else (instance,):
            best = _better(best, posed, half)
        if problem.steps <= self.offset_steps and (best is None or (best.moved or 0) > best.bound):
            plan = self._with_offsets(instance, problem, half)
            if plan is not None and (best is None or sum(plan.certificate.moved_nbytes.values()) < (best.moved or 0)):
                return plan
        if best is None:
            best = searched(instance, half, one_pass=True)  # raises what it raised before, with its numbers
        return realise(best.instance, best.placed, self.name)

    def _reordered(self, instance: Instance, effort: Effort) -> Instance:
        """The instance in the order of the exact optimum where it is small. Else parts in turn improve the best of the
        simple orders; the next round cuts half a part further on, until two rounds in a row gain nothing."""
        began = time.monotonic()
        length = instance.steps if instance.steps <= self.exact_steps else self.part_steps
        best, bound, failures, first = instance, _bound(instance, effort), 0, length
        for order in candidate_orders(instance.graph) if length < instance.steps else ():
            posed = _posed(instance, order)
            cost = _bound(posed, effort) if posed is not None else bound
            best, bound = (posed, cost) if posed is not None and cost < bound else (best, bound)
        while failures < (2 if length < instance.steps else 1):
            left = effort.time_limit_s - (time.monotonic() - began)
            try:
                solution = solve_parts(pose_pass(best), length, time_limit_s=left, engine=self.engine, first=first)
            except TimeLimitError:
                break
            posed = in_order(best, solution.order)
            cost = _bound(posed, effort)
            failures = 0 if cost < bound else failures + 1
            best, bound = (posed, cost) if cost < bound else (best, bound)
            first = length - length // 2 if first == length else length
        return best

    def _with_offsets(self, instance: Instance, problem: TrafficProblem, effort: Effort) -> Plan | None:
        """Addresses inside the integer program; None where it tells too few places apart, or has no answer."""
        try:
            whole = replace(problem, offsets=True)
            solution = solve_traffic(whole, time_limit_s=effort.time_limit_s, engine=self.engine).solution
        except ValueError:
            return None
        if solution is None:
            return None
        posed = in_order(instance, solution.order)
        decisions = to_decisions(instance, posed, solution)
        stays = make_stays(posed, decisions.evicted)
        placed = place(posed, stays, decisions, packing_time_s=effort.time_limit_s, seed=effort.seed)
        return None if placed is None else realise(posed, placed, self.name)


def _posed(instance: Instance, order: tuple[str, ...]) -> Instance | None:
    """The instance in another order; None where what arrives first or leaves last then does not fit."""
    try:
        return instance.reordered(order)
    except InfeasibleError:
        return None


def in_order(instance: Instance, order: tuple[int, ...]) -> Instance:
    """The instance posed anew in another order of its own steps."""
    if order == tuple(range(instance.steps)):
        return instance
    names = tuple(instance.order[o] for o in order)
    return instance.reordered(names)


def _better(best: Search | None, instance: Instance, effort: Effort) -> Search | None:
    """The better of what is known and what is found for an instance; None where neither has addresses."""
    if best is not None and _bound(instance, effort) >= (best.moved or 0):
        return best
    try:
        found = searched(instance, effort, one_pass=True)
    except TimeLimitError:
        return best
    return found if best is None or (found.moved or 0) < (best.moved or 0) else best


def _bound(instance: Instance, effort: Effort) -> int:
    """What one pass in this order moves at the least."""
    choice = pose(instance, instance.capacity_nbytes, kept_out=around_the_end(instance, True))
    return int(solve_choice(choice, time_limit_s=effort.time_limit_s / 4, seed=effort.seed).bound or 0)


def pose_pass(instance: Instance) -> TrafficProblem:
    """One pass of the instance as a problem of `solvers.exact`: items as tensors, operators by their step."""
    number = {item.storage: i for i, item in enumerate(instance.items)}
    graph = instance.graph
    arriving, leaving = set(graph.storages_of(graph.inputs)), set(graph.storages_of(graph.outputs))
    tensors: list[Tensor] = []
    for i, item in enumerate(instance.items):
        storage = graph.storage[item.storage]
        begins = Begin.BELOW if item.homed else Begin.ARRIVES if item.storage in arriving else Begin.MADE
        ends = End.FAST if item.storage in leaving else End.BELOW if item.homed and item.writes else End.FREE
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
    return TrafficProblem(tuple(operators), tuple(tensors), instance.capacity_nbytes, precedence=pairs)


def to_decisions(instance: Instance, posed: Instance, solution: TrafficSolution) -> Decisions:
    """The gaps of `posed`, the instance in the solution's order, in which items leave."""
    number = {item.storage: i for i, item in enumerate(instance.items)}
    evicted: set[tuple[int, int]] = set()
    for gap in posed.gaps:
        i = number[posed.items[gap.item].storage]
        inside = range(gap.start + 1, min(gap.end, posed.steps - 1) + 1)
        stays = all(i in solution.present[t] and i not in solution.loads[t] for t in inside)
        if gap.end >= posed.steps or not stays:
            evicted.add((gap.item, gap.before))
    return Decisions(frozenset(evicted), {}, prefetch=True)
