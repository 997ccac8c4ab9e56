"""Tests of planner/pytorch/experts_time.py: what of a pass is computed with experts, and waits in its times."""

from __future__ import annotations

import pytest
import torch

from tensorstow.planner.costs import duration_ns
from tensorstow.planner.pytorch import lower_module, parts
from tensorstow.planner.pytorch.experts import find_fused, placed_layers, without_experts
from tensorstow.planner.pytorch.experts_time import expert_operators, pace_of, with_waits, without_products
from tensorstow.planner.pytorch.parts import part_spans
from tensorstow.runtime.module.experts_loop import LoopTime

from ..graphs import machine
from ..runtime.test_module_experts import build
from .test_pytorch_experts import lowered_parts

UNIT = machine(1 << 30).units[0]


def test_times_around_experts_add_up_to_the_pass() -> None:
    found, routed = lowered_parts(build("mixtral"))
    layers = [r.layer for r in routed]
    operators = expert_operators(found, layers)
    assert [found.program.calls[found.graph.operators[ops[0]].id] for ops in operators] == [x.module for x in layers]
    pace = pace_of(found, layers, UNIT, (2.0, 2.0, 2.0))
    whole = sum(duration_ns(op, UNIT) for op in found.graph.operators)
    assert sum(pace.before_ns) + 2 * sum(pace.each_ns) == pytest.approx(whole)
    assert min(pace.before_ns) > 0
    assert min(pace.each_ns) > 0
    assert pace.fixed_ns == (0.0, 0.0, 0.0)
    assert expert_operators(without_experts(found, layers), layers) == ((0,), (0,), (0,))  # nobody reads them there


def test_the_loop_stands_in_for_what_was_traced() -> None:
    model = build("mixtral")
    lowered = lower_module(model, (), {"input_ids": torch.ones(1, 1, dtype=torch.long)}, name="moe")
    found = parts(lowered, UNIT)
    layers = [r.layer for r in placed_layers(found, find_fused(model, lowered))]
    left = without_products(found, lowered, layers, frozenset(), UNIT)
    modules = {layer.module for layer in layers}
    inside = [op for op in lowered.graph.operators if lowered.calls[op.id].module in modules]
    assert len(inside) > 3 * 5
    gone = sum(duration_ns(op, UNIT) for op in found.graph.operators) - sum(
        duration_ns(op, UNIT) for op in left.graph.operators
    )
    assert gone == pytest.approx(sum(duration_ns(op, UNIT) for op in inside), abs=len(found.graph.operators))
    loops = [LoopTime(1000.0 * n, 10.0 * n) for n in range(1, 4)]
    pace = pace_of(left, layers, UNIT, (2.0, 2.0, 2.0), loops)
    assert sum(pace.before_ns) == sum(duration_ns(op, UNIT) for op in left.graph.operators)
    assert pace.fixed_ns == (1000.0, 2000.0, 3000.0)
    assert pace.each_ns == (10.0, 20.0, 30.0)
    spans = part_spans(lowered)
    assert [i for span in spans for i in span] == list(range(len(lowered.graph.operators)))


def test_waits_are_in_the_times_of_the_operators_that_wait() -> None:
    found, routed = lowered_parts(build("mixtral"))
    operators = expert_operators(found, [r.layer for r in routed])
    graph = with_waits(found.graph, operators, (5, 0, 7), UNIT)
    more = [
        duration_ns(new, UNIT) - duration_ns(old, UNIT)
        for new, old in zip(graph.operators, found.graph.operators, strict=True)
    ]
    assert [more[ops[0]] for ops in operators] == [5, 0, 7]
    assert sum(more) == 12
    with pytest.raises(ValueError, match="shorter"):
        with_waits(found.graph, operators, (5,), UNIT)
