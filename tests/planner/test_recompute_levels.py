"""Recomputation over three tiers: orders with repeated calls are posed on the tiers that the plan has."""

from __future__ import annotations

import pytest

from tensorstow.ir.check import check
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance

from ..graphs import KIB, training
from .test_levels import tower

LAYERS, WEIGHT, ACTIVATION = 8, 64 * KIB, 64 * KIB


@pytest.mark.parametrize("rate", [2e8, 2e11], ids=["slow links", "fast links"])
def test_a_training_step_whose_states_are_more_than_the_middle_tier_holds_has_a_plan(rate: float) -> None:
    graph = training([WEIGHT] * LAYERS, activation=ACTIVATION)
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    roomy = make_instance(graph, tower(("hbm", 1 << 30), ("dram", 1 << 30), rates=(rate,)), mode="training")
    sizes = ("hbm", max(roomy.base_nbytes) + 3 * ACTIVATION), ("dram", homed * 3 // 4), ("ssd", 1 << 40)
    machine = tower(*sizes, rates=(rate, rate))
    assert [t.name for t in make_instance(graph, machine, mode="training").middle] == ["dram"]
    plan = plan_graph(graph, machine, strategy="stow-recompute", mode="training", time_limit_s=3.0)
    assert not check(plan, graph, machine)
    assert plan.home_tier == "ssd"
    assert plan.certificate.simulated_s >= plan.certificate.bound_s
