"""What the time of a plan goes into, and what a better machine would buy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..ir.errors import TensorstowError
from ..ir.files import PlanFile
from ..ir.graph import Graph
from ..ir.machine import Machine, Unit
from ..ir.plan import Plan
from ..ir.sizes import format_size
from ..ir.timeline import Timeline
from ..planner.bounds import Bound, bound_of_plan, find_bound
from ..planner.instance import make_instance

Progress = Callable[[str, float], None]
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Cost:
    """What storage `name` costs a pass: waiting for it, and the bytes that move for it; `resident` is the share of the
    fast tier's time x bytes that it occupies."""

    name: str
    kind: str
    nbytes: int
    wait_ns: int
    moved_nbytes: int
    resident: float


def costs(file: PlanFile, timeline: Timeline, tier: str, most: int) -> tuple[Cost, ...]:
    """The storages that cost a pass the most, those first that steps wait for the longest, then by bytes moved."""
    plan, steps = file.plan, max(1, len(file.plan.steps))
    waits: dict[str, int] = {}
    for event in timeline.steps:
        if event.waited_for is not None:
            name = plan.transfers[event.waited_for].storage
            waits[name] = waits.get(name, 0) + event.wait_ns
    moved: dict[str, int] = {}
    for t in plan.transfers:
        moved[t.storage] = moved.get(t.storage, 0) + t.nbytes
    held: dict[str, int] = {}
    for r in plan.residencies:
        if r.tier == tier:
            held[r.storage] = held.get(r.storage, 0) + r.nbytes * (r.end - r.start)
    arena = max(1, plan.arena_nbytes.get(tier, 0)) * steps
    found = [
        Cost(s.id, s.kind.value, s.nbytes, waits.get(s.id, 0), moved.get(s.id, 0), held.get(s.id, 0) / arena)
        for s in file.graph.storages
    ]
    return tuple(sorted(found, key=lambda c: (-c.wait_ns, -c.moved_nbytes, -c.resident))[:most])


@dataclass(frozen=True, slots=True)
class Upgrade:
    """With `change` the proven bound would be `bound_s`; `saved_s` less than with the machine as it is."""

    change: str
    bound_s: float
    saved_s: float


def upgrades(file: PlanFile, *, time_limit_s: float, progress: Progress) -> tuple[Upgrade, ...]:
    """What one more GiB of each tier, twice the rate of each link, and twice the arithmetic would buy: the bound that
    the plan is judged by, solved anew for each such machine, so that it is right beyond the first byte as well, which
    a dual price is not. Where a program has no answer within the limit the row is left out; all are where the bound
    of the machine as it is has none."""
    plan = file.plan
    changed = tuple(_changed(file.graph, file.machine, tuple(plan.arena_nbytes)))
    try:
        now = _bound(plan, file.graph, file.machine, time_limit_s)
    except TensorstowError:
        return ()
    found: list[Upgrade] = []
    for i, (what, graph, machine) in enumerate(changed):
        progress("what an upgrade would buy", i / len(changed))
        try:
            bound = _bound(plan, graph, machine, time_limit_s)
        except TensorstowError:
            continue
        # Bounds of different kinds say nothing of the change: one of them may only be the one that came in time.
        if bound.name == now.name or bound.seconds < now.seconds:
            found.append(Upgrade(what, bound.seconds, max(0.0, now.seconds - bound.seconds)))
    return tuple(sorted(found, key=lambda u: -u.saved_s))


def _bound(plan: Plan, graph: Graph, machine: Machine, time_limit_s: float) -> Bound:
    instance = make_instance(graph, machine, mode=plan.mode)
    own = find_bound(instance, time_limit_s=time_limit_s)
    return bound_of_plan(plan, instance, own, time_limit_s=time_limit_s)


def _changed(graph: Graph, machine: Machine, tiers: tuple[str, ...]) -> Iterator[tuple[str, Graph, Machine]]:
    for tier in machine.tiers:
        if tier.name in tiers:
            more = min(GIB, tier.capacity_nbytes)
            yield (
                f"{format_size(more)} more of {tier.name}",
                graph,
                machine.with_capacity({tier.name: tier.capacity_nbytes + more}),
            )
    for k in machine.links:
        faster = tuple(replace(o, bytes_per_s=2 * o.bytes_per_s) if o is k else o for o in machine.links)
        yield f"{k.name} twice as fast", graph, replace(machine, links=faster)
    yield "computing twice as fast", _halved(graph), replace(machine, units=tuple(_doubled(u) for u in machine.units))


def _halved(graph: Graph) -> Graph:
    """With measured operators that take half as long."""
    operators = tuple(
        op if op.measured_ns is None else replace(op, measured_ns=op.measured_ns // 2) for op in graph.operators
    )
    return replace(graph, operators=operators)


def _doubled(unit: Unit) -> Unit:
    """A unit of twice the rates; what launching an operator takes stays."""
    rates = tuple(
        replace(
            r,
            flops_per_s=None if r.flops_per_s is None else 2 * r.flops_per_s,
            bytes_per_s=None if r.bytes_per_s is None else 2 * r.bytes_per_s,
        )
        for r in unit.rates
    )
    flops = tuple((dtype, 2 * rate) for dtype, rate in unit.flops_per_s)
    return replace(unit, flops_per_s=flops, bytes_per_s=2 * unit.bytes_per_s, rates=rates)
