"""Strategies: plans pass the checker, stay above the bound, and on tiny cases are as good as trying everything."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, InputError, TimeLimitError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.planner.build import plan_graph
from tensorstow.planner.compare import compare
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.place import place
from tensorstow.planner.realise import realise
from tensorstow.planner.stays import Decisions, make_stays
from tensorstow.planner.strategies import register, strategies, strategy_names

from ..graphs import KIB, chain, machine

NAMES = ("stow", "resident", "on-demand", "lru", "belady", "belady-prefetch")


def test_the_registry_knows_every_strategy_once() -> None:
    assert strategy_names()[0] == "stow"
    assert set(NAMES) < set(strategy_names())
    assert len(set(strategy_names())) == len(strategy_names())
    with pytest.raises(ValueError, match="twice"):
        register(type(strategies(["lru"])[0]))
    with pytest.raises(InputError, match="no strategy is called 'nobody'"):
        strategies(["nobody"])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random programs: each operator reads some earlier values and weights (shared ones among them), writes one or two
    values; durations, sizes, branches and long skips vary."""
    count = draw(st.integers(1, 9))
    storages = [Storage("x", draw(st.integers(1, 40)) * KIB, StorageKind.INPUT)]
    weights = [
        Storage(f"w{i}", draw(st.integers(1, 64 * KIB)), StorageKind.WEIGHT, blob=f"w{i}")
        for i in range(draw(st.integers(0, 5)))
    ]
    values = ["x"]
    operators: list[Operator] = []
    for i in range(count):
        reads = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
        used = draw(st.lists(st.sampled_from([w.id for w in weights]), max_size=2, unique=True)) if weights else []
        outputs = [f"v{i}_{k}" for k in range(draw(st.integers(1, 2)))]
        storages += [Storage(o, draw(st.integers(1, 30 * KIB)), StorageKind.ACTIVATION) for o in outputs]
        ns = draw(st.integers(1, 50_000))
        operators.append(Operator(f"op{i}", "Any", (*reads, *used), tuple(outputs), measured_ns=ns))
        values += outputs
    storages += weights
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    outputs = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=2, unique=True))
    return Graph("random", tuple(storages), tensors, tuple(operators), ("x",), tuple(outputs))


@settings(deadline=None, max_examples=60)
@given(graphs(), st.floats(0.0, 1.1), st.sampled_from([1e7, 1e9, 1e12]))
def test_every_answer_passes_the_checker_and_stays_above_the_bound(graph: Graph, room: float, rate: float) -> None:
    roomy = make_instance(graph, machine(1 << 40, bytes_per_s=rate))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    box = machine(least + int(room * (most - least)) + 1, bytes_per_s=rate)
    comparison = compare(graph, box, NAMES, time_limit_s=5)
    for row in comparison.rows:
        if row.plan is None:
            assert row.status in {"infeasible", "time limit"}, row.reason
            continue
        assert not check(row.plan, graph, box)
        assert row.plan.certificate.simulated_s >= row.plan.certificate.bound_s * (1 - 1e-9)
        # A plan of another order has a bound of its own; the common one holds for all that are shown.
        assert row.plan.certificate.simulated_s >= comparison.bound.seconds * (1 - 1e-9)
        assert row.plan.certificate.bound_s >= comparison.bound.seconds * (1 - 1e-9)


def everything(instance: Instance) -> float:
    """The best simulated pass over every set of gaps that may be evicted."""
    best = float("inf")
    gaps = [(g.item, g.before) for g in instance.gaps]
    for count in range(len(gaps) + 1):
        for evicted in combinations(gaps, count):
            decisions = Decisions(frozenset(evicted), {}, prefetch=True)
            placed = place(instance, make_stays(instance, decisions.evicted), decisions, packing_time_s=1)
            if placed is not None:
                best = min(best, realise(instance, placed, "all").certificate.simulated_s)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_stow_is_as_good_as_trying_every_eviction(seed: int) -> None:
    sizes = [(7 * (i + seed) % 11 + 2) * 8 * KIB for i in range(6)]
    graph = chain(sizes, ns=40_000 + 9_000 * seed)
    box = machine(int(sum(sizes) * (0.45 + 0.07 * seed)), bytes_per_s=1e9)
    plan = plan_graph(graph, box)
    assert plan.certificate.simulated_s <= everything(make_instance(graph, box)) * 1.02


def test_what_fits_stays_and_is_optimal() -> None:
    graph, box = chain([64 * KIB] * 5), machine(1 << 20)
    plan = plan_graph(graph, box)
    assert plan.certificate.status == "optimal"
    assert not plan.transfers
    assert plan.certificate.simulated_s == pytest.approx(5e-6)


def test_more_memory_is_not_slower() -> None:
    graph = chain([64 * KIB] * 12, ns=30_000)
    times = [
        plan_graph(graph, machine(kib * KIB, bytes_per_s=1e9)).certificate.simulated_s for kib in range(160, 900, 120)
    ]
    assert times == sorted(times, reverse=True)


def test_stow_beats_every_baseline_on_a_streamed_chain() -> None:
    graph = chain([256 * KIB] * 20, ns=150_000)
    comparison = compare(graph, machine(2000 * KIB, bytes_per_s=1e9), NAMES, time_limit_s=100)  # more than is used
    seconds = {r.strategy: r.plan.certificate.simulated_s for r in comparison.rows if r.plan}
    assert min(seconds, key=lambda n: seconds[n]) == "stow"
    assert seconds["stow"] < 0.9 * seconds["belady-prefetch"]
    assert seconds["on-demand"] >= seconds["lru"] >= seconds["belady"] >= seconds["belady-prefetch"]


def test_the_smallest_feasible_budget_is_named_and_works() -> None:
    graph = chain([64 * KIB, 128 * KIB, 64 * KIB], activation=16 * KIB)
    needs = r"op 'op1' needs 160.0 KiB in tier 'dram', which holds 100.0 KiB"
    with pytest.raises(InfeasibleError, match=needs) as caught:
        plan_graph(graph, machine(100 * KIB))
    smallest = caught.value.smallest_nbytes
    assert smallest == 160 * KIB
    assert not check(plan_graph(graph, machine(smallest)), graph, machine(smallest))
    with pytest.raises(InfeasibleError):
        plan_graph(graph, machine(smallest - 1))


def test_resident_says_what_it_would_need() -> None:
    graph = chain([64 * KIB] * 4)
    with pytest.raises(InfeasibleError, match="or another strategy"):
        plan_graph(graph, machine(200 * KIB), strategy="resident")


def test_workspace_counts_against_the_budget() -> None:
    graph = chain([64 * KIB] * 4)
    hungry = replace(graph.operators[2], workspace_nbytes=50 * KIB)
    graph = replace(graph, operators=(*graph.operators[:2], hungry, *graph.operators[3:]))
    plan = plan_graph(graph, machine(200 * KIB))
    assert plan.arena_nbytes["dram"] <= 150 * KIB
    assert plan.certificate.peak_nbytes["dram"] == plan.arena_nbytes["dram"] + 50 * KIB


def test_weights_that_no_tier_holds_are_refused() -> None:
    graph, box = chain([64 * KIB] * 4), machine(200 * KIB)
    small = replace(box, tiers=(box.tiers[0], replace(box.tiers[1], capacity_nbytes=100 * KIB)))
    with pytest.raises(InputError, match="no tier linked to 'dram' holds them"):
        plan_graph(graph, small)


def test_a_graph_without_operators_is_planned() -> None:
    storage = Storage("x", 64, StorageKind.INPUT)
    graph = Graph("nothing", (storage,), (Tensor("x", "float32", (16,), "x", 64),), (), ("x",), ("x",))
    plan = plan_graph(graph, machine(200 * KIB))
    assert plan.certificate.simulated_s == 0.0
    assert not check(plan, graph, machine(200 * KIB))


def test_the_same_seed_gives_the_same_plan() -> None:
    graph, box = chain([48 * KIB] * 10, ns=20_000), machine(260 * KIB)
    assert plan_graph(graph, box, seed=3) == plan_graph(graph, box, seed=3)


def test_no_time_is_said_to_be_no_time() -> None:
    graph = chain([64 * KIB] * 4)
    try:
        plan = plan_graph(graph, machine(150 * KIB), time_limit_s=1e-9)
    except TimeLimitError as error:
        assert error.exit_status == 4
    else:
        assert not check(plan, graph, machine(150 * KIB))
