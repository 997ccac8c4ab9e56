"""Orders of the operators beside the program's, each posed, scored and planned by `Stow`; the simulator's best stays.

Orders come from `solvers.ordering`. They are ranked by the live bytes that do not fit, then by the residency LP of
each, a lower bound for every plan of that order: an order whose bound is not below that of the program's order is not
planned. The program's order is planned first, and what is left of the time goes to the order that has the best plan.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..ir.errors import InfeasibleError, TensorstowError, TimeLimitError
from ..ir.graph import Graph
from ..ir.machine import Machine
from ..ir.plan import Plan
from ..ir.sizes import format_size
from ..solvers.ordering import Order, OrderingProblem, excess, peak, portfolio
from ..solvers.ordering.portfolio import WINDOWS
from .instance import Instance, make_instance
from .items import extent
from .search import Search
from .stow import Stow
from .strategies import Effort, register
from .traffic_orders import ordering_problem

SETTLED = 1.001
"""A plan this near to computing alone cannot gain by another order."""

GAINING = 0.995
"""An order whose bound is not below this share of that of the program's order is not worth the time of planning it."""

FIRST_SHARE, FIRST_MOST = 0.3, 0.6
"""Shares of the time limit for the program's order where others may follow: once it has a plan, and at most."""


@dataclass(frozen=True, slots=True)
class _AnyOrder:
    """`windows`: of the list schedules, in operators. `plans`: how many other orders are planned in full, time
    permitting. `bounds`: how many are scored by their residency LP before. `search_share`: the part of the time limit
    that the search for orders may take. `most_steps`: above so many only the program's order is planned."""

    name: ClassVar[str] = ""
    reorders: ClassVar[bool] = True
    windows: tuple[int, ...] = WINDOWS
    plans: int = 3
    bounds: int = 6
    search_share: float = 0.1
    most_steps: int = 5_000

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The best simulated plan over the orders that were tried; the errors of `Stow` where none has a plan."""
        search = _Search(self, instance, effort)
        search.run()
        if search.best is None:
            raise search.error or TimeLimitError(f"'{self.name}' found no plan in {effort.time_limit_s:g} s")
        return search.best


@register
@dataclass(frozen=True, slots=True)
class StowBest(_AnyOrder):
    """Our strategy: the best plan in program order and in other orders that promise more. On graphs of many thousands
    of operators the search for orders takes longer than it has been seen to be worth, and is left to `stow-order`."""

    name: ClassVar[str] = "stow"


@register
@dataclass(frozen=True, slots=True)
class StowOrder(_AnyOrder):
    """`stow` with more time for the search for orders, whatever the number of operators."""

    name: ClassVar[str] = "stow-order"
    search_share: float = 0.2
    most_steps: int = 1 << 62


@dataclass
class _Search:
    options: _AnyOrder
    instance: Instance
    effort: Effort
    best: Plan | None = None
    found: Search | None = None
    bound_s: float = float("inf")
    error: TensorstowError | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that remain."""
        return self.effort.time_limit_s - (time.monotonic() - self.began)

    def run(self) -> None:
        """The order given; then others, the most promising first; then more of the search that found the best."""
        limit_s = self.effort.time_limit_s
        problem = order_problem(self.instance) if self._free() else None
        if problem is None or problem.fixed:
            self._plan(self.instance, limit_s, FIRST_SHARE)
        else:
            self._plan(self.instance, limit_s * FIRST_MOST, FIRST_SHARE / FIRST_MOST)
            if not self._settled() and self.left_s > 0:
                self._others(problem)
        if self.found is not None and not self._settled() and self.left_s > 0:
            Stow().go_on(self.found, self.left_s)
            self._take(self.found)

    def _others(self, problem: OrderingProblem) -> None:
        others = self._bounded(self._posed(problem))
        for bound_s, posed in others[: self.options.plans]:
            late = self.best is not None and self.left_s <= 0
            if late or self._settled() or bound_s >= self._worth_s():
                return
            self._plan(posed, max(0.1, self.left_s / 2), 1.0)

    def _free(self) -> bool:
        """Whether other orders are looked for: not where operators are called again, which a rule of its own orders."""
        steps = self.instance.steps
        return steps <= self.options.most_steps and len(set(self.instance.order)) == steps

    def _worth_s(self) -> float:
        """Seconds that an order must be able to undercut to be planned: those that the program's order needs at the
        least. A plan that is far above what its order allows gains more by more time than by another order."""
        return float("inf") if self.best is None else GAINING * min(self.best.certificate.simulated_s, self.bound_s)

    def _settled(self) -> bool:
        compute_s = sum(self.instance.durations_ns) / 1e9
        return self.best is not None and self.best.certificate.simulated_s <= SETTLED * compute_s

    def _posed(self, problem: OrderingProblem) -> list[Instance]:
        """Instances of other orders, those with the fewest live bytes above the capacity first; of equal ones, and
        where all live bytes fit, those with the fewest live bytes over time, which leaves the most to weights."""
        program = tuple(range(problem.steps))
        capacity = self.instance.capacity_nbytes
        level = capacity if peak(problem, program) > capacity else 0
        found = portfolio(
            problem,
            windows=self.options.windows,
            above_nbytes=level,
            time_limit_s=min(self.left_s, self.options.search_share * self.effort.time_limit_s),
            seed=self.effort.seed,
        )
        orders = sorted(found.values(), key=lambda o: (excess(problem, o, level), peak(problem, o), excess(problem, o)))
        posed = (in_order(self.instance, order) for order in orders if order != program)
        return [p for p in posed if p is not None]

    def _bounded(self, posed: Sequence[Instance]) -> list[tuple[float, Instance]]:
        """(bound in seconds, instance) by the LP of each order, the least first, while a third of the time is left."""
        found = list[tuple[float, Instance]]()
        for other in posed[: self.options.bounds]:
            if found and self.left_s < self.effort.time_limit_s / 3:
                break
            result = other.relax(other.capacity_nbytes, time_limit_s=max(0.1, self.left_s / 2))
            if result.bound is not None:
                found.append((result.bound / 1e9, other))
        return sorted(found, key=lambda pair: pair[0])

    def _plan(self, instance: Instance, limit_s: float, search_share: float) -> None:
        """Let `Stow` plan an order."""
        try:
            search = Stow(search_share=search_share).search(instance, replace(self.effort, time_limit_s=limit_s))
        except (InfeasibleError, TimeLimitError) as error:
            self.error = self.error or error
            return
        if instance is self.instance:
            self.bound_s = search.bound_s
        self._take(search)

    def _take(self, search: Search) -> None:
        """Keep the plan if it is faster, or as fast and moves less, and the search that has found it."""
        plan = search.best
        if plan is not None and (self.best is None or _cost(plan) < _cost(self.best)):
            self.best, self.found = replace(plan, strategy=self.options.name), search


def _cost(plan: Plan) -> tuple[float, int]:
    return plan.certificate.simulated_s, sum(plan.certificate.moved_nbytes.values())


def order_problem(instance: Instance) -> OrderingProblem:
    """The instance's steps as operators to be ordered; a storage that is made anew is a value for each time."""
    return ordering_problem(instance.graph, instance.order, _lives(instance), instance.durations_ns)


def _lives(instance: Instance) -> list[tuple[str, int, list[int]]]:
    """(storage, bytes, steps whose operators touch it) of each item; what the boundary of the pass adds is left out."""
    touched = [set(instance.graph.touches(instance.graph.operator[o])) for o in instance.order]
    return [(i.storage, i.nbytes, [t for t in i.touches if i.storage in touched[t]]) for i in instance.items]


def in_order(instance: Instance, order: Order) -> Instance | None:
    """The instance posed in another order of its steps. Where all inputs beside the first operator, or all outputs
    beside the last, then exceed the capacity, others are put first and last; None where that does not help either."""
    for better in (None, tight_ends):
        names = tuple(instance.order[t] for t in (better(instance, order) if better else order))
        try:
            return instance.reordered(names)
        except InfeasibleError:
            continue
    return None


def tight_ends(instance: Instance, order: Order) -> Order:
    """`order` (steps of `instance`) with the operator first that needs least beside all inputs, and the one last that
    needs least beside all outputs.

    All other steps hold an operator's operands and results whatever the order, and any operator that waits for none may
    be first, any that none waits for last: so no order has a smaller largest working set than this one.
    """
    steps = instance.steps
    if steps < 2:
        return order
    problem = order_problem(instance)
    boundary = instance.graph.inputs, instance.graph.outputs
    beside = [_beside(instance, set(instance.graph.storages_of(ids)), last) for last, ids in enumerate(boundary)]
    sources = sorted((t for t in range(steps) if not problem.before[t]), key=lambda t: (beside[0][t], t))
    sinks = sorted((t for t in range(steps) if not problem.after[t]), key=lambda t: (beside[1][t], -t))
    # An operator that could be both must not be: of the two best of either there is a pair that is best.
    pairs = [(f, k) for f in sources[:2] for k in sinks[:2] if f != k]
    first, last = min(pairs, key=lambda p: max(beside[0][p[0]], beside[1][p[1]]))
    return (first, *(t for t in order if t not in (first, last)), last)


def _beside(instance: Instance, storages: set[str], last: int) -> list[int]:
    """Bytes of addresses for each step's operator together with these storages, as they are first made, or last."""
    life: dict[str, int] = {}
    for i, item in enumerate(instance.items):
        if item.storage in storages and (last or item.storage not in life):
            life[item.storage] = i
    chosen = set(life.values())
    together = [[instance.graph.storage[instance.items[i].storage] for i in chosen] for _ in range(instance.steps)]
    for i, (storage, _, touches) in enumerate(_lives(instance)):
        for t in touches if i not in chosen else ():
            together[t].append(instance.graph.storage[storage])
    return [extent(storages) for storages in together]


def feasible_instance(graph: Graph, machine: Machine, *, mode: str = "inference") -> Instance:
    """The graph posed in program order if that fits, else in the order whose largest working set is least.

    InfeasibleError: no order fits; it names the smallest budget over all orders.
    """
    try:
        return make_instance(graph, machine, mode=mode)
    except InfeasibleError as error:
        of_program = error
    fast = machine.tier[machine.units[0].tier]
    needed = of_program.smallest_nbytes or 0
    roomy = make_instance(graph, machine.with_capacity({fast.name: needed}), mode=mode)
    names = tuple(roomy.order[t] for t in tight_ends(roomy, tuple(range(roomy.steps))))
    try:
        return make_instance(graph, machine, mode=mode, order=names)
    except InfeasibleError as error:
        least = min(needed, error.smallest_nbytes or needed)
        text = str(error if least < needed else of_program)
        raise InfeasibleError(
            f"{text}; no order of the operators needs less (the program's needs {format_size(needed)})",
            smallest_nbytes=least,
        ) from error
