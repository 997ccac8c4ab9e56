"""Tests of ir/served.py."""

from __future__ import annotations

from tensorstow.ir.served import served
from tensorstow.planner.build import plan_graph
from tests.graphs import chain, machine

MIB = 1 << 20


def test_what_a_step_reads_stays_or_is_brought_for_it() -> None:
    graph = chain([MIB, 2 * MIB, MIB, MIB])
    plan = plan_graph(graph, machine(3 * MIB + 64 * 1024))
    assert plan.transfers
    brought: dict[int, int] = {}
    for one in served(plan, graph):
        moved = plan.transfers[one.index]
        assert moved.storage in graph.reads(graph.operator[plan.steps[one.step].op])
        assert moved.before <= one.step + one.passes * len(plan.steps)
        brought[one.step] = brought.get(one.step, 0) + moved.nbytes
    for number, storage in enumerate(("w0", "w1", "w2", "w3")):
        stays = (r for r in plan.residencies if r.storage == storage and r.end - r.start == len(plan.steps))
        kept = sum(r.nbytes for r in stays if not any(t.storage == storage and t.lo == r.lo for t in plan.transfers))
        assert kept + brought.get(number, 0) == graph.storage[storage].nbytes
