"""Other orders: all hazards are kept, plans pass the checker, none is worse than `stow` in the program's order."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.planner import order as ordering
from tensorstow.planner.bounds import find_bound
from tensorstow.planner.build import plan_graph, run_strategy
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.order import StowBest, StowOrder, feasible_instance, in_order, order_problem, tight_ends
from tensorstow.planner.search import Search
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort
from tensorstow.planner.traffic_orders import graph_problem, operator_pairs, step_pairs
from tensorstow.solvers.ordering import check_order, list_order, live_profile, simple_orders

from ..graphs import KIB, chain, machine, training

EFFORT = Effort(5.0)
ROOMY = 1 << 40


def random_graph(seed: int, count: int, *, in_place: bool = True) -> Graph:
    """Branches, shared and written weights, values written in place, several inputs and outputs."""
    rng = random.Random(seed)
    storages: list[Storage] = []
    tensors: list[Tensor] = []

    def add(name: str, nbytes: int, kind: StorageKind) -> str:
        storages.append(Storage(name, nbytes, kind, blob=name if kind is StorageKind.WEIGHT else None))
        tensors.append(Tensor(name, "uint8", (nbytes,), name, nbytes))
        return name

    def version(of: str, name: str) -> str:
        old = next(t for t in tensors if t.id == of)
        tensors.append(replace(old, id=name))
        return name

    inputs = tuple(add(f"x{i}", rng.randint(1, 20) * KIB, StorageKind.INPUT) for i in range(rng.randint(1, 2)))
    weights = [add(f"w{i}", rng.randint(1, 40) * KIB, StorageKind.WEIGHT) for i in range(rng.randint(0, 4))]
    values, operators = list(inputs), list[Operator]()
    for o in range(count):
        reads = rng.sample(values, min(len(values), rng.randint(1, 3)))
        used = rng.sample(weights, min(len(weights), rng.randint(0, 1)))
        outputs = [add(f"v{o}", rng.randint(1, 40) * KIB, StorageKind.ACTIVATION)]
        if in_place and rng.random() < 0.25:
            victim = rng.choice(reads + used)
            outputs.append(version(victim, f"{victim}'{o}"))
            pool = weights if victim in weights else values
            pool[pool.index(victim)] = outputs[1]  # an old version is not read again
        values.append(outputs[0])
        operators.append(Operator(f"op{o}", "Any", (*reads, *used), tuple(outputs), measured_ns=rng.randint(1, 50_000)))
    outputs = rng.sample(values[len(inputs) :], min(count, rng.randint(1, 2)))
    return Graph("random", tuple(storages), tuple(tensors), tuple(operators), inputs, tuple(outputs))


def tight(graph: Graph, share: float, order: tuple[str, ...] | None = None) -> Instance:
    """On a machine whose capacity is this share of the way from the least to what all of it takes."""
    roomy = make_instance(graph, machine(ROOMY), order=order)
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return make_instance(graph, machine(least + int(share * (most - least))), order=order)


def contents(graph: Graph, order: tuple[str, ...]) -> dict[str, object]:
    """What every operator reads, as the history of each storage: who wrote it, having read what, and so on."""
    held: dict[str, object] = {}
    read: dict[str, list[object]] = {}
    for name in order:
        op = graph.operator[name]
        seen = tuple(hash((s, held.get(s))) for s in graph.touches(op))
        read.setdefault(name, []).append(seen)
        for s in graph.writes(op):
            held[s] = hash((name, seen))
    return {**{name: sorted(map(str, seen)) for name, seen in read.items()}, "end": held}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 14))
def test_every_order_computes_the_same(seed: int, count: int) -> None:
    graph = random_graph(seed, count)
    ids = tuple(op.id for op in graph.operators)
    wanted = contents(graph, ids)
    problem = order_problem(make_instance(graph, machine(ROOMY)))
    for order in simple_orders(problem).values():
        assert not check_order(problem, order)
        assert contents(graph, tuple(ids[o] for o in order)) == wanted


@pytest.mark.parametrize("seed", range(12))
def test_the_pairs_are_those_that_matter(seed: int) -> None:
    """An order of a small graph keeps the pairs exactly if it keeps every conflicting pair, from the definition."""
    graph = random_graph(seed, 6)
    ids = [op.id for op in graph.operators]
    conflicts: set[tuple[int, int]] = set()
    for b, late in enumerate(graph.operators):
        for a, early in enumerate(graph.operators[:b]):
            shared = set(graph.touches(early)) & set(graph.touches(late))
            if shared & (set(graph.writes(early)) | set(graph.writes(late))):
                conflicts.add((a, b))
    pairs = operator_pairs(graph)
    assert pairs <= conflicts
    for order in permutations(range(len(ids))):
        keeps = all(order.index(a) < order.index(b) for a, b in pairs)
        assert keeps == all(order.index(a) < order.index(b) for a, b in conflicts)


def test_random_operators_draw_in_turn() -> None:
    graph = chain([KIB] * 3)
    apart = tuple(
        Operator(f"r{i}", "RandomNormal", (), (out,), measured_ns=1) for i, out in enumerate(("a0", "a1", "y"))
    )
    assert step_pairs(replace(graph, operators=apart), ("r0", "r1", "r2")) == {(0, 1), (1, 2)}


def test_repeated_operators_keep_their_turns() -> None:
    """op0 is called again: who read its first result still does, and the second one comes after."""
    storages = tuple(Storage(n, KIB, StorageKind.ACTIVATION) for n in "abcd")
    storages = (Storage("x", KIB, StorageKind.INPUT), *storages)
    tensors = tuple(Tensor(s.id, "uint8", (KIB,), s.id, KIB) for s in storages)
    operators = tuple(
        Operator(out, "Any", reads, (out,), measured_ns=1)
        for out, reads in (("a", ("x",)), ("b", ("a",)), ("c", ("x",)), ("d", ("a", "b", "c")))
    )
    graph = Graph("again", storages, tensors, operators, ("x",), ("d",))
    order = ("a", "b", "c", "a", "d")
    problem = order_problem(make_instance(graph, machine(ROOMY), order=order))
    assert {(0, 1), (0, 3), (1, 3), (3, 4)} <= set(problem.precedence)
    assert (2, 3) not in problem.precedence
    assert sum(1 for v in problem.values if not v.given) == 5  # a twice
    for found in simple_orders(problem).values():
        assert contents(graph, tuple(order[t] for t in found)) == contents(graph, order)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 12))
def test_live_bytes_are_those_of_the_instance(seed: int, count: int) -> None:
    """What an order holds: the operands of each step, and what is not at home and lives across it."""
    graph = random_graph(seed, count)
    given = make_instance(graph, machine(ROOMY))
    problem = order_problem(given)
    posed = in_order(given, list_order(problem))
    assert posed is not None
    expected = [0] * posed.steps
    ends = set(graph.inputs) | set(graph.outputs)
    boundary = set(graph.storages_of(tuple(ends)))
    for item in posed.items:
        touching = [t for t in item.touches if item.storage in graph.touches(graph.operator[posed.order[t]])]
        steps = touching if item.homed else range(item.touches[0], item.touches[-1] + 1)
        if not touching:
            assert item.storage in boundary
            continue
        for t in steps:
            expected[t] += item.nbytes
    assert live_profile(problem, list_order(problem)) == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_ends_are_as_tight_as_in_any_order(seed: int, count: int) -> None:
    graph = random_graph(seed, count)
    instance = make_instance(graph, machine(ROOMY))
    problem = order_problem(instance)
    sets = {
        max(make_instance(graph, machine(ROOMY), order=tuple(instance.order[t] for t in order)).base_nbytes)
        for order in permutations(range(count))
        if not check_order(problem, order)
    }
    best = tight_ends(instance, tuple(range(count)))
    assert not check_order(problem, best)
    names = tuple(instance.order[t] for t in best)
    assert max(make_instance(graph, machine(ROOMY), order=names).base_nbytes) == min(sets)


def late_input() -> Graph:
    """Two inputs; the program begins with the operator that needs most beside them."""
    sizes = {"x": 8, "z": 8, "a": 40, "b": 4, "c": 4, "y": 4}
    kinds = {"x": StorageKind.INPUT, "z": StorageKind.INPUT}
    storages = tuple(Storage(n, k * KIB, kinds.get(n, StorageKind.ACTIVATION)) for n, k in sizes.items())
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    reads = {"a": ("x",), "b": ("a",), "c": ("z",), "y": ("b", "c")}
    operators = tuple(Operator(o, "Any", r, (o,), measured_ns=1000) for o, r in reads.items())
    return Graph("late input", storages, tensors, operators, ("x", "z"), ("y",))


def test_a_smaller_budget_becomes_reachable() -> None:
    graph = late_input()
    with pytest.raises(InfeasibleError) as caught:
        make_instance(graph, machine(48 * KIB))
    assert caught.value.smallest_nbytes == 56 * KIB
    instance = feasible_instance(graph, machine(48 * KIB))
    assert instance.order[0] == "c"
    plan = run_strategy(StowOrder(), instance, find_bound(instance, time_limit_s=10), EFFORT)
    assert not check(plan, graph, instance.machine)
    with pytest.raises(
        InfeasibleError, match=r"no order of the operators needs less \(the program's needs 56"
    ) as lower:
        feasible_instance(graph, machine(48 * KIB - 1))
    assert lower.value.smallest_nbytes == 48 * KIB
    assert feasible_instance(graph, machine(56 * KIB)).order == ("a", "b", "c", "y")


@pytest.mark.parametrize("seed", range(100, 110))
def test_plans_pass_the_checker_and_are_no_slower_than_stow(seed: int) -> None:
    """With so much time that no limit is met, both are the same at every run."""
    instance = tight(random_graph(seed, 2 + seed % 7), 0.2 * (seed % 5))
    alone = Stow().plan(instance, Effort(600.0))
    bound = find_bound(instance, time_limit_s=60)
    plan = run_strategy(StowOrder(plans=1, bounds=2, search_share=0.001), instance, bound, Effort(600.0))
    assert not check(plan, instance.graph, instance.machine)
    assert plan.certificate.simulated_s <= alone.certificate.simulated_s
    assert plan.strategy == "stow-order"


def branching() -> Graph:
    """Three wide branches, all begun before any ends: depth first holds one of them, the program three."""
    wide = 32 * KIB
    storages = [Storage("x", KIB, StorageKind.INPUT), Storage("y", KIB, StorageKind.OUTPUT)]
    storages += [Storage(n, wide, StorageKind.ACTIVATION) for n in "abc"]
    storages += [Storage(f"{n}s", KIB, StorageKind.ACTIVATION) for n in "abc"]
    operators = [Operator(n, "Any", ("x",), (n,), measured_ns=100) for n in "abc"]
    operators += [Operator(f"{n}s", "Any", (n,), (f"{n}s",), measured_ns=100) for n in "abc"]
    operators.append(Operator("y", "Any", ("as", "bs", "cs"), ("y",), measured_ns=100))
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    return Graph("branches", tuple(storages), tensors, tuple(operators), ("x",), ("y",))


def test_branches_one_after_another_move_nothing() -> None:
    """Below two wide values the program's order must move bytes, which is proven by its bound; another need not."""
    graph = branching()
    instance = make_instance(graph, machine(40 * KIB))
    bound = find_bound(instance, time_limit_s=10)
    alone = run_strategy(Stow(), instance, bound, EFFORT)
    plan = run_strategy(StowOrder(), instance, bound, EFFORT)
    assert not plan.transfers
    assert plan.certificate.simulated_s == pytest.approx(700e-9)
    assert plan.certificate.status == "optimal"
    assert bound.seconds > 2 * plan.certificate.simulated_s
    assert alone.certificate.simulated_s >= bound.seconds * (1 - 1e-9)
    assert tuple(s.op for s in plan.steps) != instance.order


def test_the_default_strategy_takes_the_better_order() -> None:
    plan = plan_graph(branching(), machine(40 * KIB), time_limit_s=5.0)
    assert plan.strategy == "stow"
    assert not plan.transfers
    assert plan.certificate.status == "optimal"
    assert plan.certificate.bound_kind.startswith("compute")


def test_calls_that_are_repeated_keep_their_order() -> None:
    instance = make_instance(branching(), machine(40 * KIB), order=("a", "b", "c", "as", "bs", "a", "cs", "y"))
    plan = StowBest().plan(instance, EFFORT)
    assert tuple(s.op for s in plan.steps) == instance.order


def test_a_chain_is_left_to_stow() -> None:
    graph = chain([48 * KIB] * 6, ns=20_000)
    assert graph_problem(graph).fixed
    instance = make_instance(graph, machine(260 * KIB))
    plan = StowOrder().plan(instance, Effort(600.0))
    assert replace(plan, strategy="stow") == Stow().plan(instance, Effort(600.0))


def test_training_keeps_the_turns_of_the_states() -> None:
    instance = tight(training([16 * KIB] * 4, ns=5000), 0.3)
    plan = run_strategy(StowOrder(plans=1), instance, find_bound(instance, time_limit_s=10), Effort(3.0))
    order = [s.op for s in plan.steps]
    assert all(order.index(f"b{i}") < order.index(f"u{i}") for i in range(4))
    assert all(order.index(f"b{i + 1}") < order.index(f"b{i}") for i in range(3))


def test_orders_that_promise_no_more_than_the_program_s_are_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may be far above its bound: an order between the two gains nothing that more time would not."""
    instance = tight(training([16 * KIB] * 4, ns=5000), 0.3)
    plan = Stow().plan(instance, Effort(1.0))
    bound_s = plan.certificate.simulated_s / 2
    problem = order_problem(instance)
    posed = [replace(instance) for _ in range(3)]
    search = ordering._Search(StowBest(), instance, Effort(60.0), plan, bound_s=bound_s)  # pyright: ignore[reportPrivateUsage]
    bounded = [(0.9 * bound_s, posed[0]), (1.2 * bound_s, posed[1]), (1.9 * bound_s, posed[2])]
    planned: list[tuple[Instance, float]] = []
    monkeypatch.setattr(search, "_posed", lambda _: [])  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr(search, "_bounded", lambda _: bounded)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr(search, "_plan", lambda i, limit_s, _: planned.append((i, limit_s)))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    search._others(problem)  # pyright: ignore[reportPrivateUsage]
    assert [i is posed[0] for i, _ in planned] == [True]
    assert planned[0][1] <= 30.0


def test_the_rest_of_the_time_goes_to_the_search_that_has_the_best_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tight(training([16 * KIB] * 6, ns=5000), 0.3)
    given: list[tuple[float, float]] = []
    go_on = Stow.go_on

    def watched(self: Stow, search: Search, time_limit_s: float) -> None:
        assert search.best is not None
        before = search.best.certificate.simulated_s
        go_on(self, search, time_limit_s)
        given.append((time_limit_s, before - search.best.certificate.simulated_s))

    monkeypatch.setattr(Stow, "go_on", watched)
    plan = StowBest().plan(instance, Effort(3.0))
    assert not [v for v in check(plan, instance.graph, instance.machine) if v.kind != "bound"]
    ((left_s, gained_s),) = given
    assert left_s > 0.5
    assert gained_s >= 0
