"""Every published strategy: its plans pass the checker, are the same for a seed, and exist where a loader's do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import TensorstowError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan
from tensorstow.planner.baselines import OnDemand
from tensorstow.planner.instance import make_instance
from tensorstow.planner.published.flexgen import FlexGen
from tensorstow.planner.published.mallocgame import MallocGameSearch
from tensorstow.planner.published.offload_all import OffloadEverything
from tensorstow.planner.published.xla import XlaMsa
from tensorstow.planner.strategies import Effort, Strategy, strategies

from ...graphs import KIB, chain, machine, training

# Enough seconds that iterations end every search, however slow the machine.
PUBLISHED: tuple[Strategy, ...] = (
    OffloadEverything(),
    FlexGen(),
    XlaMsa(),
    MallocGameSearch(iterations=40, search_s=600),
)
IDS = [s.name for s in PUBLISHED]
EFFORT = Effort(time_limit_s=60.0)


def plan_at(strategy: Strategy, graph: Graph, box: Machine) -> Plan:
    return strategy.plan(make_instance(graph, box), EFFORT)


def budget(graph: Graph, share: float) -> int:
    """Bytes between the largest working set (0) and everything at once (1)."""
    roomy = make_instance(graph, machine(1 << 40))
    least = max(roomy.base_nbytes)
    return least + int(share * (roomy.peak_of_all() - least)) + 1


@pytest.mark.parametrize("name", IDS)
def test_the_registry_knows_it(name: str) -> None:
    assert strategies([name])[0].name == name


@pytest.mark.parametrize("strategy", PUBLISHED, ids=IDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "graph",
    [
        chain([64 * KIB] * 8, ns=40_000),
        chain([(7 * i % 5 + 1) * 24 * KIB for i in range(7)], activation=40 * KIB, ns=60_000, skip=1),
        training([48 * KIB, 16 * KIB, 32 * KIB], activation=24 * KIB, ns=20_000),
    ],
    ids=["equal", "skip", "training"],
)
def test_plans_pass_the_checker(strategy: Strategy, graph: Graph, share: float) -> None:
    box = machine(budget(graph, share))
    instance = make_instance(graph, box)
    plan = strategy.plan(instance, EFFORT)
    assert not check(plan, graph, box)
    assert plan.strategy == strategy.name
    bound = instance.relax(instance.capacity_nbytes, time_limit_s=60).bound
    assert bound is not None
    assert plan.certificate.simulated_s * 1e9 >= bound * (1 - 1e-9)


@pytest.mark.parametrize("strategy", PUBLISHED, ids=IDS)
def test_one_link_both_ways_and_no_link_back(strategy: Strategy) -> None:
    graph = training([48 * KIB, 16 * KIB, 32 * KIB], activation=24 * KIB, ns=20_000)
    box = machine(budget(graph, 0.3))
    shared = replace(box, links=tuple(replace(k, channel="both", latency_s=1e-5) for k in box.links))
    assert not check(plan_at(strategy, graph, shared), graph, shared)
    # Without a way back only what is never written may leave: room for the rest, and a little less than for all.
    one_way = replace(machine(budget(graph, 0.95)), links=box.links[:1])
    try:
        plan = plan_at(strategy, graph, one_way)
    except TensorstowError as error:
        assert error.exit_status in (3, 4)
        return
    assert not check(plan, graph, one_way)
    assert all(t.target == "dram" for t in plan.transfers)


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=7),
    st.floats(0.0, 1.1),
    st.sampled_from([1e7, 1e9, 1e12]),
    st.integers(1, 200_000),
)
def test_there_is_a_plan_wherever_a_loader_has_one(sizes: list[int], share: float, rate: float, ns: int) -> None:
    graph = chain([n * 1500 for n in sizes], ns=ns, skip=1 if len(sizes) > 2 else None)
    box = machine(budget(graph, share), bytes_per_s=rate)
    try:
        plan_at(OnDemand(), graph, box)
    except TensorstowError:  # the skipped activation must leave, which a loader of weights cannot do
        return
    for strategy in PUBLISHED:
        assert not check(plan_at(strategy, graph, box), graph, box)


@pytest.mark.parametrize("strategy", PUBLISHED, ids=IDS)
def test_the_same_seed_gives_the_same_plan(strategy: Strategy) -> None:
    graph = chain([(i % 3 + 1) * 32 * KIB for i in range(8)], ns=50_000, skip=1)
    box = machine(budget(graph, 0.4))
    assert plan_at(strategy, graph, box) == plan_at(strategy, graph, box)


@pytest.mark.parametrize("strategy", PUBLISHED, ids=IDS)
def test_nothing_waits_where_everything_fits(strategy: Strategy) -> None:
    graph = chain([64 * KIB] * 6, ns=300_000)
    plan = plan_at(strategy, graph, machine(1 << 20))
    assert plan.certificate.simulated_s == pytest.approx(6 * 300e-6)


def test_offloading_everything_moves_every_tensor_that_has_a_gap() -> None:
    graph = chain([64 * KIB] * 6, activation=8 * KIB, ns=40_000, skip=1)
    plan = plan_at(OffloadEverything(), graph, machine(1 << 20))
    # a0 is made by op0, read by op1, and again by op5: stored once and loaded once; the weights are loaded.
    assert plan.certificate.moved_nbytes == {"ssd->dram": 6 * 64 * KIB + 8 * KIB, "dram->ssd": 8 * KIB}
