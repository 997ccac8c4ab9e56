"""Fewest bytes: the integer program against the oracle, what the bounds may claim, every strategy against them."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import TensorstowError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.planner import traffic_choice
from tensorstow.planner.cosma import pose_pass
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.traffic import LeastTraffic, around_the_end, fluid_nbytes, least_traffic
from tensorstow.planner.traffic_choice import Choice, pose, solve_choice
from tensorstow.planner.traffic_orders import candidate_orders, operator_pairs
from tensorstow.solvers.exact import solve_traffic
from tensorstow.solvers.result import Status

from ..graphs import KIB, chain, machine

LONG = Effort(time_limit_s=600.0)


def random_graph(seed: int, operators: int = 6, writes: float = 0.0) -> Graph:
    """A random program: branches, long skips, shared weights. A share `writes` of the operators change what is there,
    values and weights, in place or a half of it, instead of making a value."""
    rng = random.Random(seed)
    storages = [Storage("x", rng.randint(1, 20) * 512, StorageKind.INPUT)]
    changed: list[Tensor] = []
    values, weights = ["x"], list[str]()
    made: list[Operator] = []
    for o in range(operators):
        reads = rng.sample(values, min(len(values), rng.randint(1, 2)))
        if weights and rng.random() < 0.3:
            reads.append(rng.choice(weights))
        elif rng.random() < 0.6:
            weights.append(f"w{o}")
            storages.append(Storage(f"w{o}", rng.randint(1, 30 * 512), StorageKind.WEIGHT, blob=f"w{o}"))
            reads.append(f"w{o}")
        if writes and o < operators - 1 and rng.random() < writes:
            target = rng.choice([s for s in storages if s.id in (*values, *weights)])
            piece = target.nbytes // 2 if rng.random() < 0.5 else 0
            new, nbytes = f"{target.id}.{o}", target.nbytes - piece
            changed.append(Tensor(new, "uint8", (nbytes,), target.id, nbytes))
            inputs = tuple(reads) if piece else (*reads, target.id)
            made.append(Operator(f"op{o}", "Any", inputs, (new,), measured_ns=rng.randint(1, 50_000)))
            continue
        storages.append(Storage(f"v{o}", rng.randint(1, 20 * 512), StorageKind.ACTIVATION))
        values.append(f"v{o}")
        made.append(Operator(f"op{o}", "Any", tuple(reads), (f"v{o}",), measured_ns=rng.randint(1, 50_000)))
    tensors = (*(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages), *changed)
    return Graph("random", tuple(storages), tensors, tuple(made), ("x",), (f"v{operators - 1}",))


def tight(graph: Graph, share: float, rate: float = 1e9) -> Instance:
    """The graph on a machine whose capacity is this share of the way from the least to what all of it takes."""
    roomy = make_instance(graph, machine(1 << 40, bytes_per_s=rate, alignment=512))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return make_instance(graph, machine(least + int(share * (most - least)), bytes_per_s=rate, alignment=512))


def oracle(instance: Instance, *, cyclic: bool) -> int:
    """The proven optimum of `solvers.exact` in the instance's order, without addresses."""
    problem = pose_pass(instance)
    result = solve_traffic(
        replace(problem, order=tuple(range(problem.steps)), cyclic=cyclic),
        time_limit_s=600.0,
        engine="highs",
    )
    assert result.status is Status.OPTIMAL, result
    assert isinstance(result.objective, int)
    return result.objective


@pytest.mark.parametrize("writes", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(14))
def test_the_bound_is_the_oracle_exactly(seed: int, writes: float) -> None:
    """Fixed order, no addresses, periodic: two programs, two solvers, one number of bytes."""
    instance = tight(random_graph(seed, writes=writes), (seed % 5) * 0.12)
    found = solve_choice(pose(instance, instance.capacity_nbytes), time_limit_s=600.0)
    assert found.status is Status.OPTIMAL
    assert found.objective == found.bound == oracle(instance, cyclic=True)
    assert fluid_nbytes(instance) <= (found.objective or 0)


@pytest.mark.parametrize("seed", range(14))
def test_the_bound_of_one_pass_is_the_oracles(seed: int) -> None:
    """No weight stays for the next pass, and what is changed goes below in each."""
    instance = tight(random_graph(seed + 20, writes=0.5), (seed % 5) * 0.12)
    choice = pose(instance, instance.capacity_nbytes, kept_out=around_the_end(instance, True))
    found = solve_choice(choice, time_limit_s=600.0)
    assert found.status is Status.OPTIMAL
    homed = {i for i, item in enumerate(instance.items) if item.homed}
    if homed <= {g.item for g in instance.gaps if g.end >= instance.steps}:  # else one has no time in which to leave
        assert found.objective == found.bound == oracle(instance, cyclic=False)


@pytest.mark.parametrize(("seed", "writes"), [*((seed, 0.0) for seed in range(8)), *((seed, 0.5) for seed in range(4))])
def test_no_strategy_moves_less_than_is_possible(seed: int, writes: float) -> None:
    """Those that keep whole items against the oracle, all of them against the bound of split ones."""
    instance = tight(random_graph(seed + 50, writes=writes), (seed % 4) * 0.15)
    best, fluid = oracle(instance, cyclic=True), fluid_nbytes(instance)
    whole = ("least-traffic", "cosma", "tflite-belady", "tflite-greedy", "lru", "belady", "on-demand")
    for name in (*whole, "belady-prefetch", "stow"):
        (strategy,) = strategies([name])
        strategy = LeastTraffic(reorder=False) if name == "least-traffic" else strategy
        try:
            plan = strategy.plan(instance, Effort(5.0))
        except TensorstowError:
            continue
        assert not check(plan, instance.graph, instance.machine), name
        moved = sum(plan.certificate.moved_nbytes.values())
        if tuple(s.op for s in plan.steps) == instance.order:
            assert moved >= fluid, name
            assert moved >= best or name not in whole, name
        if name == "least-traffic":
            assert moved == least_traffic(instance, Effort(5.0))[1]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_what_is_called_optimal_moves_the_bound(seed: int, share: float) -> None:
    instance = tight(random_graph(seed, 9), share)
    decisions, moved, bound, status = least_traffic(instance, LONG)
    assert bound <= moved
    assert (status is Status.OPTIMAL) == (bound == moved)
    plan = LeastTraffic(reorder=False).plan(instance, LONG)
    assert sum(plan.certificate.moved_nbytes.values()) == moved
    assert not check(plan, instance.graph, instance.machine)
    assert all(0 <= i < len(instance.items) for i, _ in decisions.evicted)


def brute(choice: Choice) -> int:
    """Every choice tried."""
    every = product((False, True), repeat=len(choice.gaps))
    return min(choice.moved(away) for away in every if choice.holds(away))


@pytest.mark.parametrize("unit", [1, 512, 10**9 + 7, (1 << 40) + 1, (1 << 53) + 7])
@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_exact_at_every_scale(seed: int, unit: int) -> None:
    """Large bytes go to integers instead of floats: the optimum of random covers is that of trying all."""
    rng = random.Random(seed)
    count = 9
    sizes = [rng.randint(1, 9) * unit + rng.randint(0, 3) for _ in range(count)]
    rows: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []
    for _ in range(5):
        a = rng.randrange(count - 2)
        gaps = tuple(range(a, rng.randint(a + 2, count)))
        own = tuple(sizes[g] for g in gaps)
        rows.append((gaps, int(rng.uniform(0.2, 0.9) * 1000) * sum(own) // 1000, own))
    store_of = tuple(g // 3 if g % 3 else None for g in range(count))
    choice = Choice(
        tuple((g, 0) for g in range(count)), tuple(rows), tuple(sizes), (unit, 2 * unit, unit + 1), store_of
    )
    found = solve_choice(choice, time_limit_s=600.0)
    if unit > 1 << 50:
        assert found.status is Status.ERROR and "none is told apart" in found.detail
        return
    assert found.status is Status.OPTIMAL
    assert found.objective == found.bound == brute(choice)


def test_cp_sat_takes_over_where_highs_has_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = tight(random_graph(7, 9), 0.1)
    choice = pose(instance, instance.capacity_nbytes)
    wanted = solve_choice(choice, time_limit_s=600.0)
    monkeypatch.setattr(traffic_choice, "LARGEST_UNITS", 0)
    found = solve_choice(choice, time_limit_s=600.0)
    assert found.method == "CP-SAT"
    assert found.objective == found.bound == wanted.objective
    assert solve_choice(choice, time_limit_s=600.0, seed=-(2**40)).objective == wanted.objective  # any whole number


def test_more_memory_never_moves_more() -> None:
    graph = random_graph(11, 10)
    moved = [least_traffic(tight(graph, share / 8), LONG)[2] for share in range(9)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] == 0


def test_a_weight_that_is_written_is_stored_when_it_leaves() -> None:
    """An optimizer state that an operator writes in place: dropped once a pass, it moves down and up."""
    state = Storage("m", 8 * KIB, StorageKind.OPTIMIZER_STATE, blob="m")
    graph = chain([64 * KIB, 72 * KIB, 72 * KIB])
    storages = (*graph.storages, state)
    tensors = (
        *graph.tensors,
        Tensor("m", "float32", (2048,), "m", 8 * KIB),
        Tensor("m2", "float32", (2048,), "m", 8 * KIB),
    )
    first = replace(graph.operators[0], inputs=(*graph.operators[0].inputs, "m"), outputs=("a0", "m2"))
    graph = replace(graph, storages=storages, tensors=tensors, operators=(first, *graph.operators[1:]))
    instance = make_instance(graph, machine(80 * KIB))
    _, moved, bound, status = least_traffic(instance, LONG)
    assert status is Status.OPTIMAL
    assert moved == bound == (64 + 72 + 72 + 2 * 8) * KIB
    assert oracle(instance, cyclic=True) == oracle(instance, cyclic=False) == moved
    plan = LeastTraffic(reorder=False).plan(instance, LONG)
    assert sum(plan.certificate.moved_nbytes.values()) == moved


@pytest.mark.parametrize("seed", range(8))
def test_other_orders_compute_the_same(seed: int) -> None:
    graph = random_graph(seed, 10)
    pairs = operator_pairs(graph)
    for order in candidate_orders(graph):
        place = {name: t for t, name in enumerate(order)}
        assert sorted(order) == sorted(op.id for op in graph.operators)
        assert all(place[f"op{a}"] < place[f"op{b}"] for a, b in pairs)


def test_an_order_that_moves_less_is_taken() -> None:
    """Two branches of wide values, interleaved by the program: one after the other, nothing has to move."""
    wide = 32 * KIB
    storages = [Storage("x", KIB, StorageKind.INPUT), Storage("y", KIB, StorageKind.OUTPUT)]
    storages += [Storage(n, wide, StorageKind.ACTIVATION) for n in ("a", "b", "c")]
    storages += [Storage(n, KIB, StorageKind.ACTIVATION) for n in ("as", "bs", "cs")]
    operators = [Operator(n, "Any", ("x",), (n,), measured_ns=100) for n in ("a", "b", "c")]
    operators += [Operator(n + "s", "Any", (n,), (n + "s",), measured_ns=100) for n in ("a", "b", "c")]
    operators.append(Operator("y", "Any", ("as", "bs", "cs"), ("y",), measured_ns=100))
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    graph = Graph("branches", tuple(storages), tensors, tuple(operators), ("x",), ("y",))
    instance = make_instance(graph, machine(40 * KIB))
    fixed = LeastTraffic(reorder=False).plan(instance, LONG)
    free = LeastTraffic().plan(instance, LONG)
    assert sum(fixed.certificate.moved_nbytes.values()) > 0
    assert not free.transfers
    assert not check(free, graph, instance.machine)
