"""The ablation and COSMA's table in the small: every variant has its cell, and time is divided as it is said."""

from __future__ import annotations

import time

import pytest

from bench import ablation, cosma
from bench.ablation_variants import OnePass
from bench.scale_graphs import machine_for
from bench.scale_graphs import training as training_graph
from bench.zoo import Case
from tensorstow.planner.instance import make_instance
from tensorstow.planner.strategies import Effort

from .test_gaps import ladder


def test_each_variant_has_a_ratio_and_its_worth_is_relative_to_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablation, "cases", lambda: (Case("ladder", "inference", ladder, ("jetson-orin/2",)),))
    monkeypatch.setattr(ablation, "CASES", (("ladder", "jetson-orin/2", "60"),))
    result = ablation.main(["--time-limit", "1"])
    (row,) = result["rows"]
    assert all(row[v] >= 1 - 1e-6 for v in ablation.VARIANTS)
    assert result["over_all"]["one pass"] == pytest.approx(row["one pass"] / row["all"])
    assert "geometric mean" in capsys.readouterr().out


def test_one_pass_loads_every_weight_that_can_leave() -> None:
    graph = training_graph(60)
    instance = make_instance(graph, machine_for(graph, graph.nbytes))
    plan = OnePass().plan(instance, Effort(5.0))
    loaded = {t.storage for t in plan.transfers if t.target == instance.fast.name}
    around = {instance.items[g.item].storage for g in instance.gaps if g.end >= instance.steps}
    assert len(around) > 10
    assert around <= loaded


def test_time_that_one_plan_does_not_need_goes_to_those_after_it() -> None:
    share = cosma.Share(time.monotonic() + 80.0, plans=4)
    assert share.next_s() == pytest.approx(20.0, abs=1.0)
    assert share.next_s() == pytest.approx(80.0 / 3, abs=1.0)
    late = cosma.Share(time.monotonic() - 1.0, plans=4)
    assert late.next_s() == cosma.LEAST_S
    assert cosma.Share(time.monotonic() + 1e6, plans=1).next_s() == cosma.MOST_S
