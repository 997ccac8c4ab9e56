"""Alignments that do not divide one another: places are multiples of all that concern them.

Storages begin at multiples of 64, the fast tier's places at multiples of 96, the blocks at home have 520 bytes; every
plan here has been through the checker.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance

from ..graphs import KIB, chain, machine, training
from .test_levels import tower


def odd(box: Machine) -> Machine:
    """`box` with tiers aligned to 96 bytes, but for the last, which has blocks of 520."""
    *above, home = box.tiers
    return replace(box, tiers=(*(replace(t, alignment=96) for t in above), replace(home, alignment=520)))


def spilling() -> Graph:
    """The third operator leaves no room for the input and the first value, which the last one reads again."""
    graph = chain([64 * KIB, 64 * KIB, 128 * KIB, 64 * KIB, 64 * KIB, 64 * KIB], activation=33 * KIB, skip=5)
    *calls, last = graph.operators
    return replace(graph, operators=(*calls, replace(last, inputs=(*last.inputs, "x"))))


@pytest.mark.parametrize("strategy", ["stow", "on-demand", "belady-prefetch", "xla-msa", "tflite-greedy"])
def test_weights_that_stream_into_places_of_another_alignment(strategy: str) -> None:
    graph, box = chain([64 * KIB] * 5, skip=4), odd(machine(160 * KIB))
    instance = make_instance(graph, box)
    assert instance.padded
    assert {instance.alignment_of(i) for i, item in enumerate(instance.items) if item.homed} == {12480}
    plan = plan_graph(graph, box, strategy=strategy, time_limit_s=2.0)
    assert plan.transfers
    assert {r.offset % 192 for r in plan.residencies if r.tier == "dram"} == {0}
    assert any(r.offset for r in plan.residencies if r.tier == "dram")


@pytest.mark.parametrize("strategy", ["stow", "offload-everything"])
def test_spilled_values_lie_where_they_may_begin_and_in_blocks_of_their_own(strategy: str) -> None:
    plan = plan_graph(spilling(), odd(machine(200 * KIB)), strategy=strategy, time_limit_s=2.0)
    spilled = [r for r in plan.residencies if r.tier == "ssd"]
    assert {"x", "a0"} <= {r.storage for r in spilled}
    assert {r.offset % 4160 for r in spilled} == {0}


def test_values_that_go_down_two_tiers() -> None:
    graph = training([12 * KIB] * 8, activation=33 * KIB, ns=2000)
    box = odd(tower(("hbm", 240 * KIB), ("dram", 100 * KIB), ("ssd", 1 << 40), rates=(16.0e9, 4.0e9)))
    plan = plan_graph(graph, box, mode="training", time_limit_s=2.0)
    spilled = [r for r in plan.residencies if r.tier == "ssd"]
    assert len(spilled) > 1
    assert {r.offset % 4160 for r in spilled} == {0}
