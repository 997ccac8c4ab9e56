"""Graphs and machines that cannot be: each has its own kind and message, from every door to the planner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine
from tensorstow.planner.build import plan_graph
from tensorstow.planner.compare import compare
from tensorstow.planner.validate import EXACT_NBYTES, faults, predecessors, validate

from ..graphs import KIB, chain, machine

GRAPH = chain([64 * KIB] * 4)
BOX = machine(200 * KIB)


def with_storage(name: str, **changes: object) -> Graph:
    found = tuple(replace(s, **changes) if s.id == name else s for s in GRAPH.storages)  # pyright: ignore[reportArgumentType]
    return replace(GRAPH, storages=found)


def with_tensor(name: str, **changes: object) -> Graph:
    found = tuple(replace(t, **changes) if t.id == name else t for t in GRAPH.tensors)  # pyright: ignore[reportArgumentType]
    return replace(GRAPH, tensors=found)


def with_operator(index: int, **changes: object) -> Graph:
    found = list(GRAPH.operators)
    found[index] = replace(found[index], **changes)  # pyright: ignore[reportArgumentType]
    return replace(GRAPH, operators=tuple(found))


def with_link(**changes: object) -> Machine:
    return replace(BOX, links=tuple(replace(k, **changes) for k in BOX.links))  # pyright: ignore[reportArgumentType]


OPS = GRAPH.operators
BAD_GRAPHS = {
    "cyclic": (with_operator(0, inputs=("x", "w0", "a1")), r"wait for one another: 'op0' -> 'op1' -> 'op0'"),
    "order": (replace(GRAPH, operators=OPS[::-1]), r"op 'op3' \(number 0\) reads what op 'op2' \(number 1\) makes"),
    "duplicate": (replace(GRAPH, operators=(*OPS, OPS[0])), r"operator 'op0' 2 times"),
    "duplicate storage": (replace(GRAPH, storages=(*GRAPH.storages, GRAPH.storages[1])), r"storage 'w0' 2 times"),
    "duplicate tensor": (replace(GRAPH, tensors=(*GRAPH.tensors, GRAPH.tensors[1])), r"tensor 'w0' 2 times"),
    "negative size": (with_storage("w1", nbytes=-5), r"storage 'w1' has -5 bytes"),
    "negative tensor": (with_tensor("w1", offset=-8), r"tensor 'w1' has 65536 bytes at byte -8"),
    "enormous": (with_storage("w1", nbytes=EXACT_NBYTES + 1), rf"'w1' has {EXACT_NBYTES + 1} bytes; .* {EXACT_NBYTES}"),
    "outside": (with_tensor("w1", offset=10), r"tensor 'w1' ends at byte 65546 of storage 'w1', which has 65536"),
    "unknown storage": (with_tensor("w1", storage="zz"), r"tensor 'w1' lies in storage 'zz'"),
    "unknown tensor": (with_operator(0, inputs=("zz",)), r"op 'op0' names tensor 'zz'"),
    "unknown output": (replace(GRAPH, outputs=("zz",)), r"outputs of graph 'chain' names tensor 'zz'"),
    "never made": (replace(GRAPH, operators=OPS[1:]), r"op 'op1' reads tensor 'a0', which no operator makes"),
    "output never made": (replace(GRAPH, operators=()), r"output 'y' of graph 'chain' is made by no operator"),
    "made twice": (
        replace(GRAPH, operators=(*OPS, replace(OPS[1], id="too"))),
        r"'a1' is made by op 'op1' and by op 'too'",
    ),
    "negative cost": (with_operator(2, measured_ns=-4), r"op 'op2' has measured_ns = -4"),
    "negative workspace": (with_operator(2, workspace_nbytes=-4), r"op 'op2' has workspace_nbytes = -4"),
    "alignment": (with_storage("a1", alignment=0), r"storage 'a1' aligns to 0 bytes"),
}
UNIT = BOX.units[0]
BAD_MACHINES = {
    "bandwidth": (with_link(bytes_per_s=0.0), r"link 'ssd->dram' moves 0 bytes per second"),
    "bandwidth nan": (with_link(bytes_per_s=float("nan")), r"link 'ssd->dram' moves nan bytes per second"),
    "latency": (with_link(latency_s=-1.0), r"link 'ssd->dram' has a latency of -1 s"),
    "unknown tier": (
        replace(BOX, units=(replace(UNIT, tier="hbm"),)),
        r"computes from tier 'hbm'; its tiers: dram, ssd",
    ),
    "unknown end": (replace(BOX, links=(*BOX.links, Link("tape", "dram", 1e9))), r"link 'tape->dram' joins 'tape'"),
    "duplicate": (replace(BOX, links=(*BOX.links, BOX.links[0])), r"link 'ssd->dram' 2 times"),
    "no unit": (replace(BOX, units=()), r"has no unit"),
    "no speed": (replace(BOX, units=(replace(UNIT, flops_per_s=()),)), r"unit 'cpu' has no FLOP/s"),
    "speed": (replace(BOX, units=(replace(UNIT, bytes_per_s=0.0),)), r"unit 'cpu' has a rate of 0 for memory"),
    "capacity": (
        replace(BOX, tiers=(replace(BOX.tiers[0], reserve_nbytes=1 << 30), BOX.tiers[1])),
        r"reserves 1073741824",
    ),
    "tier alignment": (
        replace(BOX, tiers=(replace(BOX.tiers[0], alignment=0), BOX.tiers[1])),
        r"tier 'dram' aligns to 0",
    ),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_graphs_that_cannot_be(case: str) -> None:
    graph, message = BAD_GRAPHS[case]
    with pytest.raises(InputError, match=message) as caught:
        plan_graph(graph, BOX)
    assert caught.value.exit_status == 2
    with pytest.raises(InputError, match=message):
        compare(graph, BOX, ("lru",))


@pytest.mark.parametrize("case", BAD_MACHINES)
def test_machines_that_cannot_be(case: str) -> None:
    box, message = BAD_MACHINES[case]
    with pytest.raises(InputError, match=message):
        plan_graph(GRAPH, box)
    with pytest.raises(InputError, match=message):
        compare(GRAPH, box, ("lru",))


@pytest.mark.parametrize(("length", "named"), [(5, 5), (6, 6), (7, 6), (4000, 6)])
def test_of_a_long_cycle_a_few_operators_are_named(length: int, named: int) -> None:
    graph = chain([4 * KIB] * length)
    first = replace(graph.operators[0], inputs=("x", "w0", f"a{length - 2}"))
    operators = (first, *graph.operators[1:-1], graph.operators[-1])
    (fault,) = faults(replace(graph, operators=operators), BOX)
    assert fault.kind == "cyclic"
    ring = fault.message.split(": ")[1].split(";")[0].split(" -> ")
    assert ring[0] == ring[-1]
    assert len({name for name in ring if name.startswith("'")}) == min(named, length - 1)
    more = length - 1 - named
    assert (f"... ({more} more) ..." in ring) is (more > 0)


def test_kinds_tell_faults_apart() -> None:
    kinds = {case: next(faults(graph, BOX)).kind for case, (graph, _) in BAD_GRAPHS.items()}
    for kind in ("cyclic", "order", "duplicate", "negative size", "enormous", "outside", "never made", "made twice"):
        assert kinds[kind] == kind
    assert next(faults(GRAPH, BAD_MACHINES["bandwidth"][0])).kind == "bandwidth"
    assert not list(faults(GRAPH, BOX))


def test_every_fault_is_listed() -> None:
    graph = replace(with_storage("w1", nbytes=-5), operators=(replace(OPS[0], flops=-1), *OPS[1:]))
    assert [f.kind for f in faults(graph, BOX)] == ["negative size", "negative cost"]


def test_many_large_storages_are_enormous_together() -> None:
    half = EXACT_NBYTES // 2
    graph = replace(GRAPH, storages=tuple(replace(s, nbytes=half) for s in GRAPH.storages))
    with pytest.raises(InputError, match="bytes in all"):
        validate(graph, BOX)


def test_an_unreachable_tier_is_named_with_what_it_lacks() -> None:
    with pytest.raises(InputError, match=r"256.0 KiB, no tier linked to 'dram' holds them \(there is none\)"):
        plan_graph(GRAPH, replace(BOX, links=()))


def test_nothing_is_planned_for_nothing() -> None:
    """No operators, and tensors of no bytes, are no faults."""
    storages = tuple(replace(s, nbytes=0) if s.id in ("w1", "a1") else s for s in GRAPH.storages)
    tensors = tuple(replace(t, nbytes=0, shape=(0,)) if t.id in ("w1", "a1") else t for t in GRAPH.tensors)
    graph = replace(GRAPH, storages=storages, tensors=tensors)
    plan = plan_graph(graph, BOX)
    assert not check(plan, graph, BOX)
    empty = Graph("empty", (), (), (), (), ())
    assert plan_graph(empty, BOX).certificate.simulated_s == 0


def test_predecessors_see_through_views_and_writing_in_place() -> None:
    storages = (
        Storage("x", 8, StorageKind.INPUT),
        Storage("w", 8, StorageKind.WEIGHT),
        Storage("v", 16, StorageKind.ACTIVATION),
    )
    tensors = (
        Tensor("x", "float32", (2,), "x", 8),
        Tensor("w", "float32", (2,), "w", 8),
        Tensor("w_new", "float32", (2,), "w", 8),
        Tensor("low", "float32", (2,), "v", 8),
        Tensor("high", "float32", (2,), "v", 8, offset=8),
        Tensor("all", "float32", (4,), "v", 16),
    )
    operators = (
        Operator("a", "Any", ("x",), ("low",)),
        Operator("b", "Any", ("x", "w"), ("high",)),
        Operator("c", "Any", ("all",), ()),
        Operator("d", "Any", ("w", "high"), ("w_new",)),
    )
    graph = Graph("views", storages, tensors, operators, ("x",), ())
    assert predecessors(graph) == [(), (), (0, 1), (1,)]
    assert not list(faults(graph, BOX))
