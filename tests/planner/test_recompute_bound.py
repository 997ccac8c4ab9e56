"""The joint bound of residency and recomputation is below every plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.plan import Plan
from tensorstow.ir.simulate import DeadlockError
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.place import place
from tensorstow.planner.realise import realise
from tensorstow.planner.recompute import StowRecompute
from tensorstow.planner.recompute_bound import flow_of, recompute_bound
from tensorstow.planner.recompute_choice import checkpoints, price_cuts
from tensorstow.planner.recompute_orders import made_anew, recompute_order
from tensorstow.planner.recompute_resident import held_nbytes
from tensorstow.planner.recompute_score import order_problem
from tensorstow.planner.stays import Decisions, make_stays
from tensorstow.solvers.residency.recompute import solve_recompute

from ..graphs import KIB, machine, training
from .recompute_cases import EFFORT, budget, waiting


def some_orders(instance: Instance, extra: int) -> Iterator[tuple[str, ...]]:
    """The order with up to `extra` calls more, anywhere after their first ones, where they read the same bytes."""
    flow = flow_of(instance)
    anew = sorted(made_anew(instance.graph))
    places = [(t, op) for op in anew for t in range(flow.step[op] + 1, len(flow.order) + 1) if flow.unchanged(op, t)]
    for count in range(extra + 1):
        for chosen in combinations(places, count):
            order: list[str] = []
            for t in range(len(flow.order) + 1):
                order += [op for at, op in chosen if at == t]
                order += flow.order[t : t + 1]
            yield tuple(order)


def some_plans(instance: Instance, extra: int, evictions: int) -> Iterator[Plan]:
    for order in some_orders(instance, extra):
        try:
            posed = make_instance(instance.graph, instance.machine, order=order)
        except InfeasibleError:  # the last call is an extra one, beside which not all outputs have room
            continue
        gaps = [(g.item, g.before) for g in posed.gaps]
        for count in range(evictions + 1):
            for evicted in combinations(gaps, count):
                decisions = Decisions(frozenset(evicted), {}, prefetch=True)
                placed = place(posed, make_stays(posed, decisions.evicted), decisions, packing_time_s=1)
                if placed is not None:
                    yield realise(posed, placed, "all")


CASES = [(0.0, 1e8), (0.3, 1e9), (0.5, 3e7), (0.7, 1e9)]
GRAPHS = [waiting(), training([4 * KIB], activation=16 * KIB, ns=9000)]


def hold_the_bound(graph: Graph, room: float, rate: float, extra: int, evictions: int) -> None:
    instance = make_instance(graph, budget(graph, room, rate))
    bound = max(recompute_bound(instance, windows=windows)[0] for windows in (2, 3, 100))
    assert bound >= sum(instance.durations_ns) / 1e9 * (1 - 1e-9)
    plans = list(some_plans(instance, extra, evictions))
    assert all(plan.certificate.simulated_s >= bound * (1 - 1e-9) for plan in plans)
    assert plans or room == 0.0


@pytest.mark.parametrize(("room", "rate"), CASES)
@pytest.mark.parametrize("graph", GRAPHS, ids=["skip", "step"])
def test_no_plan_with_an_extra_call_is_below_the_bound(graph: Graph, room: float, rate: float) -> None:
    hold_the_bound(graph, room, rate, extra=1, evictions=1)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "rate"), CASES)
@pytest.mark.parametrize("graph", GRAPHS, ids=["skip", "step"])
def test_no_plan_with_two_extra_calls_is_below_the_bound(graph: Graph, room: float, rate: float) -> None:
    hold_the_bound(graph, room, rate, extra=2, evictions=2)


def test_the_bound_is_met_where_recomputing_is_all_that_helps() -> None:
    """Nothing of `a` fits beside b and c, and the link is far too slow: one more call of `make`, no less."""
    graph = waiting()
    box = machine(192 * KIB + 64, bytes_per_s=1e6)
    instance = make_instance(graph, box)
    seconds, kind = recompute_bound(instance)
    assert 6e-6 * (1 - 1e-3) <= seconds <= 6e-6 and "any recomputation" in kind
    plan = StowRecompute().plan(instance, EFFORT)
    assert not check(plan, graph, box)
    assert plan.certificate.simulated_s == pytest.approx(6e-6)
    assert [s.op for s in plan.steps].count("make") == 2


def test_more_memory_and_faster_links_never_raise_the_bound() -> None:
    graph = training([4 * KIB] * 3, activation=32 * KIB, ns=20_000)
    by_room = [recompute_bound(make_instance(graph, budget(graph, room, 1e9)))[0] for room in (0.0, 0.3, 0.6, 1.0)]
    assert all(a >= b * (1 - 1e-6) for a, b in pairwise(by_room))
    assert by_room[0] > by_room[-1] * 1.01
    by_rate = [recompute_bound(make_instance(graph, budget(graph, 0.2, rate)))[0] for rate in (1e8, 1e9, 1e11)]
    assert by_rate[0] > by_rate[1] * 1.01 and by_rate[1] >= by_rate[2] * (1 - 1e-6)


@st.composite
def steps(draw: st.DrawFn) -> Graph:
    """Random programs with long waits: operators read a recent value, any earlier one, and maybe weights; some update
    a state in place."""
    count = draw(st.integers(3, 8))
    storages = [Storage("x", draw(st.integers(1, 8)) * KIB, StorageKind.INPUT)]
    storages.append(Storage("w", draw(st.integers(1, 16)) * KIB, StorageKind.WEIGHT, blob="w"))
    states = ("s", "t")
    storages += [Storage(s, draw(st.integers(1, 24)) * KIB, StorageKind.OPTIMIZER_STATE, blob=s) for s in states]
    newest, versions = {s: s for s in states}, list[tuple[str, str]]()
    operators: list[Operator] = []
    values = ["x"]
    for i in range(count):
        reads = {values[-1], draw(st.sampled_from(values))}
        weights = ("w",) if draw(st.booleans()) else ()
        made = [f"v{i}{k}" for k in range(draw(st.integers(1, 2)))]
        storages += [Storage(v, draw(st.integers(1, 40)) * KIB, StorageKind.ACTIVATION) for v in made]
        ns = draw(st.integers(100, 50_000))
        inputs, outputs = [*sorted(reads), *weights], list(made)
        for s in draw(st.sampled_from([(), (), *((s,) for s in states), states])):
            inputs.append(newest[s])
            newest[s] = f"{s}@{i}"
            outputs.append(newest[s])
            versions.append((newest[s], s))
        operators.append(Operator(f"op{i}", "Any", tuple(inputs), tuple(outputs), measured_ns=ns))
        values += made
    size = {s.id: s.nbytes for s in storages}
    views = [*((s, s) for s in size), *versions]
    tensors = tuple(Tensor(t, "uint8", (size[s],), s, size[s]) for t, s in views)
    return Graph("random", tuple(storages), tensors, tuple(operators), ("x",), (values[-1],))


@settings(deadline=None, max_examples=10)
@given(steps(), st.floats(0.0, 1.0), st.sampled_from([3e7, 1e9, 3e10]), st.integers(2, 9))
def test_accepted_plans_are_above_the_bound(graph: Graph, room: float, rate: float, windows: int) -> None:
    box = budget(graph, room, rate)
    instance = make_instance(graph, box)
    flow = flow_of(instance)
    fine, coarse = (recompute_bound(instance, windows=w)[0] for w in (100, windows))
    sets = [*price_cuts(flow, (-2, 0, 2)), frozenset(flow.repeatable), *checkpoints(flow, 2)]
    for chosen in [frozenset[str](), *sets]:
        posed = make_instance(graph, box, order=recompute_order(flow, chosen))
        if posed.padded == instance.padded:  # one of the two may fit without padding alone
            assert held_nbytes(instance, flow, chosen) == posed.peak_of_all()
        own = solve_recompute(order_problem(posed), windows=windows).bound or 0.0
        nothing = Decisions(frozenset(), {}, prefetch=False)
        every = frozenset((g.item, g.before) for g in posed.gaps)
        some = frozenset(g for k, g in enumerate(sorted(every)) if k % 2)
        for decisions in (nothing, *(Decisions(gaps, {}, prefetch=True) for gaps in (every, some, every - some))):
            stays = make_stays(posed, decisions.evicted)
            placed = place(posed, stays, decisions, packing_time_s=1)
            if placed is None:
                continue
            with suppress(DeadlockError):  # too many transfers for one lane's order: no plan at all
                plan = realise(posed, placed, "candidate")
                if check(plan, graph, box):
                    continue  # no plan
                assert plan.certificate.simulated_s >= max(fine, coarse, own / 1e9) * (1 - 1e-9)
