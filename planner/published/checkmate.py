"""Checkmate: which results to keep and which to make again, by stages, without any transfer.

Source: Jain et al. 2020 (arXiv 1910.02653); the program and its rounding stand in `solvers.residency.recompute_stages`.
Exact for small graphs; larger ones by their approximation (section 5): the linear relaxation, rounded in two phases,
solved again for a smaller budget (their epsilon) where the rounding does not fit. Both grow with the square of the
number of operators: beyond some hundred there is no answer in time, which it says.

Adapted: nodes are operators of the whole step, forward, backward and update, in the instance's order; those that may
not be repeated run once; a node that makes several values keeps or drops each on its own. Weights, optimizer states and
graph inputs stay, in all stages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import InfeasibleError, TimeLimitError
from ...ir.plan import Plan
from ...ir.sizes import format_size
from ...solvers.residency.recompute_stages import StageProblem, StageSolution, solve_stages
from ...solvers.result import Status
from ..instance import Instance
from ..one_way import store_link
from ..place import place
from ..realise import realise
from ..recompute_orders import Flow
from ..stays import Decisions, live_peak, make_stays
from ..strategies import Effort, register
from .checkpointing import recomputable, too_small
from .common import load_link

BUDGET_CUTS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares of the memory for results that are left to rounding and addresses, one after another."""


@register
@dataclass(frozen=True, slots=True)
class Checkmate:
    """`exact_steps`: up to how many operators the exact program is solved; `rounded_steps`: the relaxation."""

    name: ClassVar[str] = "checkmate"
    exact_steps: int = 40
    rounded_steps: int = 150

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the program under the largest budget whose result fits with addresses."""
        return plan_by_stages(instance, effort, self.name, self.exact_steps, self.rounded_steps, paging=False)


def plan_by_stages(
    instance: Instance, effort: Effort, name: str, exact_steps: int, rounded_steps: int, *, paging: bool
) -> Plan:
    """The plan of the stage program. InfeasibleError: what must stay does not fit, or the exact program has no
    solution; TimeLimitError: too many operators, or nothing that fits was found in time."""
    flow, steps, began = recomputable(instance, name), instance.steps, time.monotonic()
    fixed = sum(i.nbytes for i in instance.items if i.homed or not i.writes)
    room = instance.capacity_nbytes - fixed
    least = _largest_made(instance)
    if room < least:
        raise too_small(instance, name, fixed + least)
    if steps > rounded_steps:
        raise TimeLimitError(
            f"strategy '{name}' solves a program that grows with the square of the operators; "
            f"'{instance.graph.name}' has {steps}, more than the {rounded_steps} it can do in time"
        )
    for cut in BUDGET_CUTS:
        left = effort.time_limit_s - (time.monotonic() - began)
        if left <= 0:
            break
        problem = stage_problem(instance, flow, room - int(cut * (room - least)), paging=paging)
        engine = instance.engine
        result = solve_stages(problem, time_limit_s=left / 2, exact=steps <= exact_steps, engine=engine)
        if result.status == Status.UNKNOWN and steps <= exact_steps:
            result = solve_stages(problem, time_limit_s=left / 4, exact=False, engine=engine)
        if result.status == Status.INFEASIBLE and cut == 0.0:
            raise InfeasibleError(
                f"strategy '{name}' keeps weights and states, and no choice of what else stays and what is made again "
                f"fits '{instance.graph.name}' into {format_size(instance.fast.usable_nbytes)} of tier "
                f"'{instance.fast.name}'; give it more memory or take another strategy"
            )
        plan = None if result.solution is None else _realised(instance, result.solution, name, effort, paging=paging)
        if plan is not None:
            return plan
    raise TimeLimitError(
        f"strategy '{name}' found nothing that fits {format_size(instance.fast.usable_nbytes)} of tier "
        f"'{instance.fast.name}' in {effort.time_limit_s:g} s; give it more memory or more time"
    )


def _largest_made(instance: Instance) -> int:
    """Bytes of the values that some operator touches at once."""
    total = [0] * instance.steps
    for i in made_items(instance):
        for t in instance.items[i].touches:
            total[t] += instance.items[i].nbytes
    return max(total, default=0)


def made_items(instance: Instance) -> list[int]:
    """Items that are made in a pass; the stage program's values, in this order."""
    return [i for i, item in enumerate(instance.items) if not item.homed and item.writes]


def stage_problem(instance: Instance, flow: Flow, capacity_nbytes: int, *, paging: bool) -> StageProblem:
    """The instance by stages: a node for each operator, and a last one that reads the graph's outputs; a value for each
    storage that is made, by the operator that writes it first."""
    steps = instance.steps
    reads, nbytes, makers = [set[int]() for _ in range(steps + 1)], list[int](), list[int]()
    outputs = set(instance.graph.storages_of(instance.graph.outputs))
    for item in (instance.items[i] for i in made_items(instance)):
        for t in item.touches:
            if t > item.writes[0]:
                reads[t].add(len(nbytes))
        if item.storage in outputs:
            reads[steps].add(len(nbytes))
        nbytes.append(item.nbytes)
        makers.append(item.writes[0])
    load = load_link(instance)
    store = store_link(instance)
    return StageProblem(
        durations_ns=(*instance.durations_ns, 0),
        nbytes=tuple(nbytes),
        makers=tuple(makers),
        reads=tuple(tuple(sorted(r)) for r in reads),
        again_until=(*(_again_until(flow, t) for t in range(steps)), steps),
        capacity_nbytes=capacity_nbytes,
        load_ns=1e9 / load.bytes_per_s if paging and store else None,
        store_ns=1e9 / store.bytes_per_s if paging and store else None,
    )


def _again_until(flow: Flow, t: int) -> int:
    """The last stage in which the operator of step t may run again and find what it read the first time."""
    op = flow.order[t]
    if op not in flow.repeatable:
        return t
    changed = [w for s in flow.graph.reads(flow.graph.operator[op]) for w in flow.changes.get(s, ()) if w >= t]
    return min(changed, default=len(flow.order))


def _realised(instance: Instance, solution: StageSolution, name: str, effort: Effort, *, paging: bool) -> Plan | None:
    """The plan of what runs and is kept; None where it does not fit."""
    calls = [(t, i) for t, nodes in enumerate(solution.calls) for i in nodes if i < instance.steps]
    order = tuple(instance.order[i] for _, i in calls)
    posed = instance.reordered(order)
    stage = [min(t, instance.steps) for t, _ in calls]
    evicted = _paged(posed, instance, solution, stage) if paging else frozenset[tuple[int, int]]()
    stays = make_stays(posed, evicted)
    if live_peak(posed, stays) > posed.capacity_nbytes:
        return None
    decisions = Decisions(evicted, {}, prefetch=paging)
    placed = place(posed, stays, decisions, packing_time_s=effort.time_limit_s / 8, seed=effort.seed)
    return None if placed is None else realise(posed, placed, name)


def _paged(
    posed: Instance, instance: Instance, solution: StageSolution, stage: list[int]
) -> frozenset[tuple[int, int]]:
    """Gaps over the beginning of a stage into which the value is not kept: it was not made again, so it is loaded."""
    value = {instance.items[i].storage: u for u, i in enumerate(made_items(instance))}
    found: set[tuple[int, int]] = set()
    for gap in posed.gaps:
        item = posed.items[gap.item]
        if item.homed or not item.writes:
            continue
        if any(value[item.storage] not in solution.kept[t] for t in range(stage[gap.start] + 1, stage[gap.end] + 1)):
            found.add((gap.item, gap.before))
    return frozenset(found)
