"""Places in whole blocks serve loads; what bounds and refusals say holds for plans without them, too."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.errors import InfeasibleError, TimeLimitError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.plan import Certificate, Plan, Residency, Step
from tensorstow.planner.bounds import find_bounds, scope_of
from tensorstow.planner.build import plan_graph, run_with_bound
from tensorstow.planner.instance import make_instance
from tensorstow.planner.items import extent, round_up
from tensorstow.planner.strategies import Effort, strategies

from ..graphs import machine

BLOCK = 4096


def weights_alone(sizes: list[int]) -> Graph:
    """An operator for each weight, which reads it and leaves nothing."""
    storages = tuple(Storage(f"w{i}", n, StorageKind.WEIGHT, blob=f"w{i}") for i, n in enumerate(sizes))
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    operators = tuple(Operator(f"op{i}", "Any", (s.id,), (), measured_ns=10) for i, s in enumerate(storages))
    return Graph("weights", storages, tensors, operators, (), ())


@st.composite
def small_graphs(draw: st.DrawFn) -> Graph:
    """A chain of 2 to 4 operators whose weights and values take no whole number of blocks, some not of 64 bytes."""
    count, nbytes = draw(st.integers(2, 4)), st.integers(1, 300)
    storages = [Storage("v0", draw(nbytes), StorageKind.INPUT)]
    operators: list[Operator] = []
    weights = [
        Storage(f"w{i}", draw(nbytes), StorageKind.WEIGHT, draw(st.sampled_from([16, 64])), blob=f"w{i}")
        for i in range(draw(st.integers(1, 3)))
    ]
    for i in range(count):
        used = draw(st.lists(st.sampled_from([w.id for w in weights]), max_size=2, unique=True))
        storages.append(Storage(f"v{i + 1}", draw(nbytes), StorageKind.ACTIVATION))
        operators.append(Operator(f"op{i}", "Any", (f"v{i}", *used), (f"v{i + 1}",), measured_ns=draw(nbytes)))
    storages += weights
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    return Graph("small", tuple(storages), tensors, tuple(operators), ("v0",), (f"v{count}",))


def test_weights_that_fit_side_by_side_need_no_load() -> None:
    """Three weights of 100 bytes in one block: a plan that places them by hand is right, no bound is above it, and the
    planner finds it."""
    graph, box = weights_alone([100] * 3), machine(BLOCK)
    by_hand = Plan(
        graph=digest(graph),
        machine=digest(box),
        strategy="by hand",
        mode="inference",
        home_tier="ssd",
        steps=tuple(Step(f"op{i}", "cpu", 10) for i in range(3)),
        residencies=tuple(Residency(f"w{i}", "dram", 0, 100, 128 * i, 0, 3) for i in range(3)),
        transfers=(),
        capacity_nbytes={"dram": BLOCK},
        arena_nbytes={"dram": 356},
        workspace_nbytes={"dram": 0},
        certificate=Certificate("feasible", 30e-9, 330e-9, 0.0, "", {"dram": 356}, {}),
    )
    assert not check(by_hand, graph, box)
    for bound in find_bounds(make_instance(graph, box), time_limit_s=5):
        assert bound.seconds <= 30e-9 * (1 + 1e-9), bound.kind
        if bound.name == "working set":
            assert bound.nbytes == (("dram", 100),)
    found = plan_graph(graph, box, time_limit_s=5)
    assert not found.transfers
    assert found.certificate.gap == pytest.approx(0.0)


@settings(deadline=None, max_examples=15)
@given(small_graphs(), st.floats(0.0, 0.9))
def test_no_plan_without_padding_beats_a_bound(graph: Graph, room: float) -> None:
    """Plans for a machine whose home tier has no blocks pass the checker on one that has: the bounds there, and the
    refusal, hold for them."""
    roomy = make_instance(graph, machine(1 << 40, alignment=1))
    least = max(roomy.extents_nbytes)
    capacity = least + int(room * max(0, roomy.peak_of_all() - least))
    bare, blocks = (machine(capacity, bytes_per_s=1e9, alignment=n) for n in (1, BLOCK))
    bounds = find_bounds(make_instance(graph, blocks), time_limit_s=5)  # and it is posed at all
    other = make_instance(graph, bare)
    nothing = replace(find_bounds(other, time_limit_s=5)[0], seconds=0.0)
    for strategy in strategies(["stow", "belady-prefetch", "on-demand"]):
        try:
            plan, _ = run_with_bound(strategy, other, nothing, Effort(2.0, 0))
        except (InfeasibleError, TimeLimitError):
            continue
        plan = replace(plan, machine=digest(blocks), certificate=replace(plan.certificate, bound_s=0.0))
        assert not check(plan, graph, blocks)
        scope = scope_of(plan, other)
        for bound in bounds:
            if bound.scope.covers(scope):
                assert plan.certificate.simulated_s >= bound.seconds * (1 - 1e-6) - 1e-9, bound.kind
            if bound.name == "working set":
                assert plan.certificate.peak_nbytes["dram"] >= bound.nbytes[0][1]


def first_fits(storages: list[Storage]) -> int:
    """The least addresses that hold all, over every order from the bottom up."""
    found: list[int] = []
    for order in permutations(storages):
        top = 0
        for s in order:
            top = round_up(top, s.alignment) + s.nbytes
        found.append(top)
    return min(found)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), st.sampled_from([16, 32, 64])), min_size=1, max_size=5))
def test_the_extent_is_what_the_best_order_of_addresses_takes(sizes: list[tuple[int, int]]) -> None:
    storages = [Storage(f"s{i}", n, StorageKind.ACTIVATION, a) for i, (n, a) in enumerate(sizes)]
    assert extent(storages) <= first_fits(storages)
    alike = [replace(s, alignment=64) for s in storages]
    assert extent(alike) == first_fits(alike)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.integers(1, 300))
def test_the_smallest_budget_is_refused_below_and_planned_at(sizes: list[int], value: int) -> None:
    """A chain whose operators hold a value, a weight and the next value."""
    names = [f"v{i}" for i in range(len(sizes) + 1)]
    storages = [Storage(n, value, StorageKind.ACTIVATION) for n in names]
    storages += [Storage(f"w{i}", n, StorageKind.WEIGHT, blob=f"w{i}") for i, n in enumerate(sizes)]
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    operators = tuple(
        Operator(f"op{i}", "Any", (names[i], f"w{i}"), (names[i + 1],), measured_ns=100) for i in range(len(sizes))
    )
    graph = Graph("chain", tuple(storages), tensors, operators, (names[0],), (names[-1],))
    with pytest.raises(InfeasibleError) as refused:
        make_instance(graph, machine(1))
    smallest = refused.value.smallest_nbytes or 0
    certain = max(first_fits([s for s in storages if s.id in graph.touches(op)]) for op in operators)
    assert certain <= smallest < certain + 64  # the last of them may end within an alignment
    make_instance(graph, machine(certain))
    with pytest.raises(InfeasibleError):
        make_instance(graph, machine(certain - 1))
    plan = plan_graph(graph, machine(smallest), time_limit_s=3)  # which has been through the checker
    assert plan.certificate.peak_nbytes["dram"] <= smallest


def test_places_are_blocks_where_something_is_loaded_and_blocks_fit() -> None:
    graph = weights_alone([100, 5000, 100])
    assert not make_instance(graph, machine(8 * BLOCK // 4)).padded  # all fits as it is: nothing is loaded
    assert not make_instance(graph, machine(5000)).padded  # the second weight takes two blocks
    larger = weights_alone([5000] * 4)
    assert make_instance(larger, machine(2 * BLOCK)).padded
    assert make_instance(larger, machine(8 * BLOCK)).padded  # there is room for everything
