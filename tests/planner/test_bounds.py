"""Bounds of plans: each holds for the plans it names, and a plan is judged by one that holds for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind
from tensorstow.planner import bounds as module
from tensorstow.planner.baselines import OnDemand
from tensorstow.planner.bounds import (
    ANY_ORDER,
    ANY_REPEATS,
    Bound,
    Scope,
    bound_of_plan,
    common_bound,
    find_bound,
    find_bounds,
    largest,
    operator_bounds,
    register_bounds,
    scope_of,
)
from tensorstow.planner.build import run_strategy
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.validate import predecessors

from ..graphs import KIB, chain, machine
from .fakes import Backwards

EFFORT = Effort(5.0, 0)


@st.composite
def branching(draw: st.DrawFn) -> Graph:
    """Up to 4 operators over an input, some weights and earlier values, with sizes that differ."""
    count = draw(st.integers(2, 4))
    storages = [Storage("x", draw(st.integers(1, 12)) * KIB, StorageKind.INPUT)]
    weights = [Storage(f"w{i}", draw(st.integers(1, 24)) * KIB, StorageKind.WEIGHT, blob=f"w{i}") for i in range(3)]
    operators: list[Operator] = []
    values = ["x"]
    for i in range(count):
        reads = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True))
        used = draw(st.lists(st.sampled_from([w.id for w in weights]), max_size=2, unique=True))
        storages.append(Storage(f"v{i}", draw(st.integers(1, 12)) * KIB, StorageKind.ACTIVATION))
        operators.append(Operator(f"op{i}", "Any", (*reads, *used), (f"v{i}",), measured_ns=draw(st.integers(1, 9000))))
        values.append(f"v{i}")
    storages += weights
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    return Graph("branching", tuple(storages), tensors, tuple(operators), ("x",), (values[-1],))


def orders(graph: Graph) -> Iterator[tuple[str, ...]]:
    """Every order in which the operators can run."""
    before = predecessors(graph)
    for order in permutations(range(len(before))):
        at = {o: t for t, o in enumerate(order)}
        if all(at[j] < at[i] for i in at for j in before[i]):
            yield tuple(graph.operators[i].id for i in order)


def tight(graph: Graph, room: float, rate: float = 1e9) -> Machine:
    """A machine with a share of what lies between the largest working set, of any order, and all of it."""
    roomy = machine(1 << 40, bytes_per_s=rate)
    instances = [make_instance(graph, roomy, order=o) for o in orders(graph)]
    least = max(max(i.base_nbytes) for i in instances)
    most = max(i.peak_of_all() for i in instances)
    return machine(least + int(room * (most - least)), bytes_per_s=rate)


@settings(deadline=None, max_examples=25)
@given(branching(), st.floats(0.0, 0.9))
def test_bounds_over_all_orders_hold_for_each_order(graph: Graph, room: float) -> None:
    """By the residency LP of each order, itself a bound below that order's best plan, of all that let operands lie in
    pieces as it does; and by the plans of a loader."""
    box = tight(graph, room, rate=1e8)
    found = find_bounds(make_instance(graph, box), time_limit_s=5)
    wide = [b for b in found if b.scope.other_orders]
    assert {b.name for b in wide} >= {"compute", "compulsory traffic", "whole operands", "working set"}
    for order in orders(graph):
        instance = make_instance(graph, box, order=order)
        own = instance.relax(instance.capacity_nbytes, time_limit_s=5).bound or sum(instance.durations_ns)
        pieces = [b for b in wide if b.name != "whole operands"]
        assert largest(pieces, ANY_ORDER).seconds <= own / 1e9 * (1 + 1e-6)
        (needed,) = (b.nbytes[0][1] for b in wide if b.name == "working set")
        assert needed <= max(instance.base_nbytes)


@settings(deadline=None, max_examples=15)
@given(branching(), st.floats(0.0, 0.9), st.sampled_from([0.0, 0.3, 4.0]))
def test_every_bound_that_covers_a_plan_is_below_it(graph: Graph, room: float, contention: float) -> None:
    """Of caches, which keep every activation: the room they need is what is not homed, and one operator's weights."""
    roomy = make_instance(graph, machine(1 << 40))
    homed = sum(i.nbytes for i in roomy.items if i.homed)
    needed = roomy.peak_of_all() - homed + max(roomy.base_nbytes)
    box = machine(needed + int(room * homed), bytes_per_s=1e8)
    box = replace(box, links=tuple(replace(k, contention=contention) for k in box.links))
    instance = make_instance(graph, box)
    found = find_bounds(instance, time_limit_s=5)
    for strategy in strategies(["lru", "belady-prefetch"]):
        plan = run_strategy(strategy, instance, find_bound(instance, time_limit_s=5), EFFORT)
        moved = plan.certificate.moved_nbytes
        for bound in found:
            assert bound.scope.covers(scope_of(plan, instance))
            assert plan.certificate.simulated_s >= bound.seconds * (1 - 1e-6)
            if bound.name in ("compulsory traffic", "whole operands"):
                assert all(moved.get(link, 0) >= nbytes for link, nbytes in bound.nbytes)
            if bound.name == "working set":
                assert plan.certificate.peak_nbytes["dram"] >= bound.nbytes[0][1]


def test_what_moves_beside_computing_is_bounded() -> None:
    """Loads that hide behind computing take their share of it: the plan is at the bound that says so, and above those
    that do not."""
    box = machine(150 * KIB, bytes_per_s=1e9, alignment=64)
    box = replace(box, links=tuple(replace(k, contention=0.5) for k in box.links))
    instance = make_instance(chain([KIB * 40] * 4, ns=200_000), box)
    bound = find_bound(instance, time_limit_s=5)
    assert bound.name == "contention"
    (strategy,) = strategies(["stow"])
    plan = run_strategy(strategy, instance, bound, EFFORT)
    loaded_ns = plan.certificate.moved_nbytes["ssd->dram"]
    assert plan.certificate.slowed_s * 1e9 == pytest.approx(loaded_ns / 3, abs=10)
    assert bound.seconds <= plan.certificate.simulated_s == pytest.approx(0.8e-3 + plan.certificate.slowed_s)


def test_weights_beyond_the_capacity_come_every_pass() -> None:
    """Ten weights of 64 KiB, room for 300 KiB, of which the middle activations take 8."""
    instance = make_instance(chain([64 * KIB] * 10, activation=4 * KIB, ns=1), machine(300 * KIB, bytes_per_s=1e9))
    (traffic,) = (
        b for b in find_bounds(instance, time_limit_s=5) if b.kind == "compulsory traffic: any order, two tiers"
    )
    assert traffic.nbytes[0] == ("ssd->dram", (640 + 8 - 300) * KIB)
    assert traffic.seconds == pytest.approx(348 * KIB / 1e9)


def other_order() -> tuple[Graph, Machine, Instance]:
    """Two operators that may change places, the first of which leaves much behind: their orders have other bounds."""
    sizes = {"x": 4, "a": 40, "b": 4, "y": 4, "w0": 64, "w1": 96, "w2": 48}
    kinds = {"x": StorageKind.INPUT, "y": StorageKind.OUTPUT, "a": StorageKind.ACTIVATION, "b": StorageKind.ACTIVATION}
    storages = tuple(
        Storage(n, s * KIB, kinds.get(n, StorageKind.WEIGHT), blob=n if n[0] == "w" else None) for n, s in sizes.items()
    )
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    operators = (
        Operator("left", "Any", ("x", "w0"), ("a",), measured_ns=9000),
        Operator("right", "Any", ("x", "w1"), ("b",), measured_ns=4000),
        Operator("join", "Any", ("a", "b", "w2"), ("y",), measured_ns=2000),
    )
    graph = Graph("fork", storages, tensors, operators, ("x",), ("y",))
    box = machine(150 * KIB, bytes_per_s=1e9)
    return graph, box, make_instance(graph, box)


def test_a_plan_of_another_order_is_judged_by_the_bound_of_that_order() -> None:
    graph, box, instance = other_order()
    given_ = find_bound(instance, time_limit_s=5)
    order = ("right", "left", "join")
    own = find_bound(make_instance(graph, box, order=order), time_limit_s=5)
    assert own.seconds != pytest.approx(given_.seconds, rel=1e-3)
    plan = run_strategy(Backwards(), instance, given_, EFFORT)
    assert tuple(s.op for s in plan.steps) == order
    assert plan.certificate.bound_s == pytest.approx(own.seconds)
    assert plan.certificate.bound_kind == own.kind
    assert "residency LP: any plan of operator order " in own.kind
    assert "this operator order" in given_.kind


def test_plans_that_do_more_need_bounds_that_allow_more() -> None:
    _, _, instance = other_order()
    found = find_bound(instance, time_limit_s=5)
    plan = OnDemand().plan(instance, EFFORT)
    assert scope_of(plan, instance) == Scope()
    assert bound_of_plan(plan, instance, found, time_limit_s=5) is found
    again = replace(plan, steps=(plan.steps[0], *plan.steps))
    assert scope_of(again, instance) == ANY_REPEATS
    wide = bound_of_plan(again, instance, found, time_limit_s=5)
    assert wide.scope.covers(ANY_REPEATS)
    assert wide.seconds < found.seconds
    via = replace(plan, transfers=(replace(plan.transfers[0], origin="tape"), *plan.transfers[1:]))
    assert scope_of(via, instance) == Scope(other_tiers=True)
    assert not bound_of_plan(via, instance, found, time_limit_s=5).kind.startswith("residency LP")
    gpu = replace(plan, steps=tuple(replace(s, unit="gpu") for s in plan.steps))
    assert bound_of_plan(gpu, instance, found, time_limit_s=5).name == "compute on any unit"


def test_providers_bring_bounds_for_what_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROVIDERS", {})
    _, _, instance = other_order()
    mine = Bound(1.0, "mine: of another kind", ANY_REPEATS)

    def provide(asked: Instance, time_limit_s: float) -> list[Bound]:
        assert asked is instance
        assert time_limit_s == 5
        return [mine]

    register_bounds("mine", provide)
    with pytest.raises(ValueError, match="'mine' is registered twice"):
        register_bounds("mine", provide)
    assert find_bound(instance, time_limit_s=5, scope=ANY_REPEATS) is mine
    assert find_bound(instance, time_limit_s=5) is mine
    assert find_bound(instance, time_limit_s=5, scope=Scope(other_tiers=True)) is not mine


def test_links_side_by_side_share_what_comes_from_anywhere() -> None:
    """A second way into the fast tier halves what the traffic over any tiers takes; the two tiers' own stays."""
    graph, box, _ = other_order()
    more = replace(
        box,
        tiers=(*box.tiers, Tier("nvme", TierKind.SSD, 10 * KIB)),
        links=(*box.links, Link("nvme", "dram", 1e9)),
    )
    one, two = ({b.kind: b.seconds for b in find_bounds(make_instance(graph, m), time_limit_s=5)} for m in (box, more))
    wide, narrow = "compulsory traffic: any order, any tiers", "compulsory traffic: any order, two tiers"
    assert one[wide] == one[narrow] == two[narrow] == pytest.approx(2 * two[wide])


def test_three_tiers_in_a_chain() -> None:
    """dram 100 KiB above nvme 300 KiB above disk: what both cannot hold comes over the slow link every pass."""
    box = machine(100 * KIB, bytes_per_s=1e9)
    tiers = (box.tiers[0], Tier("nvme", TierKind.SSD, 300 * KIB), Tier("disk", TierKind.SSD, 1 << 30))
    names = [("nvme", "dram"), ("dram", "nvme"), ("disk", "nvme"), ("nvme", "disk")]
    links = tuple(Link(a, b, 1e9 if "dram" in (a, b) else 1e7) for a, b in names)
    instance = make_instance(chain([64 * KIB] * 10, ns=1), replace(box, tiers=tiers, links=links))
    found = {b.kind: b for b in find_bounds(instance, time_limit_s=5)}
    upper = found["compulsory traffic: any order, nvme->dram alone"]
    deeper = found["compulsory traffic: any order, from below 'nvme'"]
    assert upper.nbytes[0] == ("nvme->dram", (640 + 8 - 100) * KIB)
    assert deeper.nbytes[0] == ("from below nvme", (640 + 8 - 400) * KIB)
    assert deeper.seconds == pytest.approx(248 * KIB / 1e7)
    assert find_bound(instance, time_limit_s=5) is not None
    best = largest(found.values())
    assert best.kind.startswith("residency LP on 3 tiers")
    assert best.seconds >= deeper.seconds
    assert any("residency LP" in kind and "nvme->dram alone" in kind for kind in found)


def test_the_common_bound_is_the_least() -> None:
    a, b = Bound(2.0, "a"), Bound(1.0, "b")
    assert common_bound([a, a], b) is a
    assert common_bound([], b) is b
    both = common_bound([a, b, a], a)
    assert both.seconds == 1.0
    assert both.kind == "least of the 2 bounds of the plans shown: b"


def product_graph(rows: int, inner: int, columns: int, parts: int = 1, batch: int = 1) -> Graph:
    """One product of float32; its second operand is a weight in pieces of one blob, or, with a batch, an input."""
    lead = (batch,) if batch > 1 else ()
    names = [f"w{i}" for i in range(parts)]
    shapes = {"x": (*lead, rows, inner), **dict.fromkeys(names, (*lead, inner, columns // parts))}
    shapes |= {f"y{i}": (*lead, rows, columns // parts) for i in range(parts)}
    sizes = {n: 4 * batch * s[-1] * s[-2] for n, s in shapes.items()}
    weight = StorageKind.WEIGHT if batch == 1 else StorageKind.INPUT
    kinds = {"x": StorageKind.INPUT, "w": weight, "y": StorageKind.OUTPUT}
    storages = tuple(
        Storage(n, s, kinds[n[0]], blob="w" if n[0] == "w" and batch == 1 else None) for n, s in sizes.items()
    )
    tensors = tuple(Tensor(n, "float32", shapes[n], n, s) for n, s in sizes.items())
    operators = tuple(Operator(f"mm{i}", "MatMul", ("x", f"w{i}"), (f"y{i}",)) for i in range(parts))
    inputs = ("x",) if batch == 1 else ("x", *names)
    return Graph("product", storages, tensors, operators, inputs, tuple(f"y{i}" for i in range(parts)))


def test_products_larger_than_the_tier_have_their_own_bound() -> None:
    box = machine(64 * KIB, bytes_per_s=1e9)
    (whole,) = operator_bounds(product_graph(512, 2048, 1024), box)
    (split,) = operator_bounds(product_graph(512, 2048, 1024, parts=8), box)
    assert "'mm0' (512 x 2048 x 1024)" in whole.kind
    assert "'mm0 and 7 other parts' (512 x 2048 x 1024)" in split.kind
    assert whole.nbytes == split.nbytes
    elements = 16 * KIB
    least = 2 * 512 * 2048 * 1024 / elements**0.5 - 2 * elements - 512 * 1024 - 512 * 2048
    assert whole.nbytes[0][1] == pytest.approx(4 * least)
    assert whole.seconds == pytest.approx(4 * least / 1e9)
    assert not operator_bounds(product_graph(512, 2048, 1024), machine(64 << 20))
    (batched,) = operator_bounds(product_graph(64, 64, 64, batch=8), machine(2 * KIB))
    assert "64 x 64 x 64, 8 times" in batched.kind


def test_attention_larger_than_the_tier_has_its_own_bound() -> None:
    shape, nbytes = (1, 4, 4096, 64), 4 * 4 * 4096 * 64
    names = {"q": StorageKind.INPUT, "k": StorageKind.INPUT, "v": StorageKind.INPUT, "o": StorageKind.OUTPUT}
    storages = tuple(Storage(n, nbytes, kind) for n, kind in names.items())
    tensors = tuple(Tensor(n, "float32", shape, n, nbytes) for n in names)
    graph = Graph(
        "a", storages, tensors, (Operator("sdpa", "Attention", ("q", "k", "v"), ("o",)),), ("q", "k", "v"), ("o",)
    )
    (bound,) = operator_bounds(graph, machine(32 * KIB))
    assert "attention 'sdpa' (1 x 4 heads, 4096 x 4096 x 64)" in bound.kind
    assert bound.nbytes[1][1] > 4 * nbytes
    assert not operator_bounds(graph, machine(5 * nbytes))
