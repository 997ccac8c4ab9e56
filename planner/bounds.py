"""What no plan is below: every bound by its name, with the plans that it holds for. DESIGN 4.5."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from ..ir.codec import digest
from ..ir.collecting import without_collecting
from ..ir.graph import Graph
from ..ir.machine import Machine
from ..ir.plan import Plan
from ..solvers.bounds import Flow, Traffic, Value, order_free_traffic, whole_operand_traffic
from .bounds_links import all_links_s, lent_s, two_links_s
from .bounds_tiled import Tiled, tiled_operators
from .costs import duration_ns
from .instance import Instance
from .items import extent
from .levels_bound import tiered_bound
from .recompute_bound import recompute_bound
from .validate import predecessors


@dataclass(frozen=True, slots=True)
class Scope:
    """What a plan may do beyond running each operator once, in one order, on one unit, over the links between the
    instance's tiers; or what the plans that a bound holds for may do."""

    other_orders: bool = False
    repeats: bool = False
    other_tiers: bool = False
    other_units: bool = False

    def covers(self, needed: Scope) -> bool:
        """Whether all that `needed` does is allowed here."""
        wanted = (needed.other_orders, needed.repeats, needed.other_tiers, needed.other_units)
        given = (self.other_orders, self.repeats, self.other_tiers, self.other_units)
        return all(g or not w for g, w in zip(given, wanted, strict=True))


ANY_ORDER = Scope(other_orders=True)
ANY_ORDER_AND_TIERS = Scope(other_orders=True, other_tiers=True)
ANY_REPEATS = Scope(other_orders=True, repeats=True)
ANY_REPEATS_AND_TIERS = Scope(other_orders=True, repeats=True, other_tiers=True)
ANY = Scope(True, True, True, True)


@dataclass(frozen=True, slots=True)
class Bound:
    """No plan of the class that `kind` names takes less than `seconds` a pass.

    `nbytes`: where the bound is one of bytes, the least of them by what they are: a link, or the room in a tier.
    `scope` is the same class for programs.
    """

    seconds: float
    kind: str
    scope: Scope = Scope()
    nbytes: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The first words of `kind`."""
        return self.kind.partition(":")[0]


Provider = Callable[[Instance, float], Iterable[Bound]]
_PROVIDERS: dict[str, Provider] = {}


def register_bounds(name: str, provider: Provider) -> None:
    """Let `find_bounds` ask `provider(instance, time_limit_s)` too: how a strategy's module brings bounds for classes
    of plans that the ones here say little of. ValueError for a name that is taken."""
    if name in _PROVIDERS:
        raise ValueError(f"a provider of bounds called '{name}' is registered twice")
    _PROVIDERS[name] = provider


@without_collecting()
def find_bounds(instance: Instance, *, time_limit_s: float) -> tuple[Bound, ...]:
    """Every bound that is known, in time and in bytes. The residency LP, which takes up to the limit, comes last."""
    graph, machine = instance.graph, instance.machine
    found = [*_compute(instance), *_working_set(instance), *_any_order(instance)]
    found += operator_bounds(graph, machine)
    for provider in _PROVIDERS.values():
        found += provider(instance, time_limit_s)
    return (*found, *_of_this_order(instance, time_limit_s))


def find_bound(instance: Instance, *, time_limit_s: float, scope: Scope = Scope()) -> Bound:
    """The largest bound in time that holds for the instance's order, or for all that `scope` allows."""
    return largest(find_bounds(instance, time_limit_s=time_limit_s), scope)


def largest(bounds: Iterable[Bound], scope: Scope = Scope()) -> Bound:
    """The largest bound in time of those that hold for all that `scope` allows. Of bounds that are equal but for
    rounding the first, which is the simpler."""
    best: Bound | None = None
    for bound in bounds:
        if bound.scope.covers(scope) and (best is None or bound.seconds > best.seconds * (1 + ROUNDING)):
            best = bound
    assert best is not None, "computing alone bounds every plan"
    return best


ROUNDING = 1e-6
"""Relative; seconds nearer than this to one another are equal."""


def scope_of(plan: Plan, instance: Instance) -> Scope:
    """What `plan` does that a bound for `instance` must allow."""
    order = tuple(s.op for s in plan.steps)
    tiers = [t.name for t in (instance.fast, *instance.middle, instance.home)]
    chain = {link for pair in pairwise(tiers) for link in (pair, pair[::-1])}
    return Scope(
        other_orders=order != instance.order,
        repeats=len(set(order)) < len(order),
        other_tiers=plan.home_tier != instance.home.name
        or any((t.origin, t.target) not in chain for t in plan.transfers),
        other_units=any(s.unit != instance.unit.name for s in plan.steps),
    )


def bound_of_plan(plan: Plan, instance: Instance, given: Bound, *, time_limit_s: float) -> Bound:
    """The bound that `plan` is judged by: `given`, the one of the instance's order, where the plan keeps that order;
    the LP of the plan's own order where it has another; else the largest that holds for all it does."""
    needed = scope_of(plan, instance)
    if needed == Scope():
        return given
    if needed == ANY_ORDER:
        order = tuple(s.op for s in plan.steps)
        own = instance.reordered(order)
        return find_bound(own, time_limit_s=time_limit_s)
    otherwise = find_bound(instance, time_limit_s=time_limit_s, scope=needed)
    first_calls = tuple(dict.fromkeys(s.op for s in plan.steps))
    if first_calls == instance.order and not (needed.other_tiers or needed.other_units or instance.middle):
        joint = Bound(*recompute_bound(instance, time_limit_s=time_limit_s), scope=needed)
        return max(otherwise, joint, key=lambda b: b.seconds)
    return otherwise


def common_bound(own: Iterable[Bound], otherwise: Bound) -> Bound:
    """A bound for all of several plans, each with its own: the least of them. `otherwise` where there is no plan."""
    distinct = {b.kind: b for b in sorted(own, key=lambda b: -b.seconds)}
    if not distinct:
        return otherwise
    least = min(distinct.values(), key=lambda b: b.seconds)
    if len(distinct) == 1:
        return least
    return replace(least, kind=f"least of the {len(distinct)} bounds of the plans shown: {least.kind}")


def order_name(instance: Instance) -> str:
    """'this operator order', the graph's own; another one by the beginning of its digest."""
    if instance.order == tuple(o.id for o in instance.graph.operators):
        return "this operator order"
    return f"operator order {digest(instance.order)[:8]}"


def _compute(instance: Instance) -> Iterator[Bound]:
    """The durations of all operators: on the unit of the instance, and each on whichever unit is fastest for it."""
    seconds = sum(instance.durations_ns) / 1e9
    yield Bound(seconds, "compute: every operator once, one after another", replace(ANY, other_units=False))
    operators, units = instance.graph.operators, instance.machine.units
    if len(units) > 1:
        fastest = sum(min(duration_ns(op, u) for u in units) for op in operators) / 1e9
        yield Bound(fastest, "compute on any unit: every operator once on its fastest, one after another", ANY)
    else:
        yield Bound(seconds, "compute on any unit: every operator once, one after another", ANY)


def _working_set(instance: Instance) -> Iterator[Bound]:
    """The operands and results of the largest operator, and the largest workspace: no order needs less room."""
    graph = instance.graph
    largest = max((extent([graph.storage[s] for s in graph.touches(op)]) for op in graph.operators), default=0)
    kind = f"working set: the largest operator's operands, results and workspace in '{instance.fast.name}', any order"
    scope = replace(ANY, other_units=False)
    yield Bound(0.0, kind, scope, ((instance.fast.name, largest + instance.workspace_nbytes),))


def _of_this_order(instance: Instance, time_limit_s: float) -> Iterator[Bound]:
    """The residency LP, which includes the transfers that the order makes compulsory."""
    if not instance.gaps:
        return
    if instance.middle:
        joint = tiered_bound(instance, time_limit_s)
        if joint is not None:
            yield Bound(*joint)
    result = instance.relax(instance.capacity_nbytes, time_limit_s=time_limit_s)
    if result.bound is not None:
        kind = f"residency LP: any plan of {order_name(instance)}, {_tiers(instance)}, any store times"
        yield Bound(result.bound / 1e9, kind)


def _below(instance: Instance) -> str:
    """The tier that the compute tier is filled from."""
    return (*instance.middle, instance.home)[0].name


def _tiers(instance: Instance) -> str:
    """'two tiers'; where there are more, the link of which the bound speaks: it takes the tier below to hold all."""
    return f"{_below(instance)}->{instance.fast.name} alone" if instance.middle else "two tiers"


def _any_order(instance: Instance) -> Iterator[Bound]:
    """Compulsory traffic over all orders: over the links between the two upper tiers, and over all links together that
    lead into the fast tier, or into it and the tiers next below it taken as one."""
    flow = _flow(instance)
    fast, below, machine = instance.fast.name, _below(instance), instance.machine
    load, store = machine.link[below, fast], machine.link.get((fast, below))
    for repeats in (False, True):
        traffic = order_free_traffic(flow, instance.capacity_nbytes, repeats=repeats)
        orders = "any order, operators repeated at will" if repeats else "any order"
        nbytes = ((load.name, traffic.loaded), *(((store.name, traffic.stored),) if store else ()))
        kind = f"compulsory traffic: {orders}, {_tiers(instance)}"
        scope = ANY_REPEATS if repeats else ANY_ORDER
        yield Bound(two_links_s(traffic, load, store), kind, scope, nbytes)
        yield from _contended(instance, traffic, orders, scope)
        scope = ANY_REPEATS_AND_TIERS if repeats else ANY_ORDER_AND_TIERS
        yield Bound(all_links_s(traffic, machine, {fast}), f"compulsory traffic: {orders}, any tiers", scope, nbytes)
        held, inside = instance.capacity_nbytes, {fast}
        for tier in instance.middle:
            # The argument speaks of one memory above and one below: here the former is all tiers down to this one.
            held, inside = held + tier.usable_nbytes, {*inside, tier.name}
            deeper = order_free_traffic(flow, held, repeats=repeats)
            kind = f"compulsory traffic: {orders}, from below '{tier.name}'"
            nbytes = ((f"from below {tier.name}", deeper.loaded), (f"to below {tier.name}", deeper.stored))
            yield Bound(all_links_s(deeper, machine, inside), kind, scope, nbytes)
    whole = whole_operand_traffic(flow, instance.capacity_nbytes)
    kind = "whole operands: weights need a place in one piece; any order, operators repeated at will, "
    nbytes = ((load.name, whole.loaded),)
    yield Bound(two_links_s(whole, load, None), kind + _tiers(instance), ANY_REPEATS, nbytes)
    yield from _contended(instance, whole, "whole operands, operators repeated at will", ANY_REPEATS)
    yield Bound(all_links_s(whole, machine, {fast}), kind + "any tiers", ANY_REPEATS_AND_TIERS, nbytes)


def _contended(instance: Instance, traffic: Traffic, orders: str, scope: Scope) -> Iterator[Bound]:
    """Computing, and what it takes longer while these bytes move between the two upper tiers; none where that is 0."""
    fast, below, link = instance.fast.name, _below(instance), instance.machine.link
    seconds = lent_s(traffic, link[below, fast], link.get((fast, below)))
    if seconds:
        kind = f"contention: computing goes on more slowly while compulsory bytes move; {orders}, {_tiers(instance)}"
        yield Bound(sum(instance.durations_ns) / 1e9 + seconds, kind, scope)


def _flow(instance: Instance) -> Flow:
    """The graph as `solvers.bounds` sees it; bytes without padding, as no plan moves that."""
    graph = instance.graph
    index = {op.id: i for i, op in enumerate(graph.operators)}
    after: list[list[int]] = [[] for _ in graph.operators]
    for i, before in enumerate(predecessors(graph)):
        for j in before:
            after[j].append(i)
    readers: dict[str, set[int]] = {}
    writers: dict[str, set[int]] = {}
    for op in graph.operators:
        for users, storages in ((readers, graph.reads(op)), (writers, graph.writes(op))):
            for s in storages:
                users.setdefault(s, set()).add(index[op.id])
    given, kept = set(graph.storages_of(graph.inputs)), set(graph.storages_of(graph.outputs))
    values = tuple(
        Value(
            s.nbytes, frozenset(writers.get(s.id, ())), frozenset(readers.get(s.id, ())),
            below=s.homed, given=s.id in given, kept=s.id in kept,
        )
        for s in graph.storages
    )  # fmt: skip
    return Flow(tuple(tuple(a) for a in after), values)


def operator_bounds(graph: Graph, machine: Machine) -> list[Bound]:
    """I/O lower bounds of the operators that do not fit the compute tier of the machine's first unit with their
    operands, whether they are split there already or must be."""
    fast = machine.tier[machine.units[0].tier]
    return [_operator_bound(t, machine, fast.name) for t in tiled_operators(graph, fast.usable_nbytes)]


def _operator_bound(tiled: Tiled, machine: Machine, fast: str) -> Bound:
    nbytes = ((f"into {fast}", tiled.traffic.loaded), (f"into and out of {fast}", tiled.traffic.moved))
    kind = f"operator I/O: {tiled.what} through '{fast}' in any tiling ({tiled.source}), each operator once"
    return Bound(all_links_s(tiled.traffic, machine, {fast}), kind, ANY_ORDER_AND_TIERS, nbytes)
