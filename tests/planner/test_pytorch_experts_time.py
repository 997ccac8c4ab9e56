"""Tests of planner/pytorch/experts_time.py: what of a pass is computed with experts, and waits in its times."""

from __future__ import annotations

import pytest

from tensorstow.planner.costs import duration_ns
from tensorstow.planner.pytorch.experts import without_experts
from tensorstow.planner.pytorch.experts_time import expert_operators, pace_of, with_waits

from ..graphs import machine
from ..runtime.test_module_experts import build
from .test_pytorch_experts import lowered_parts

UNIT = machine(1 << 30).units[0]


def test_times_around_experts_add_up_to_the_pass() -> None:
    found, routed = lowered_parts(build("mixtral"))
    layers = [r.layer for r in routed]
    operators = expert_operators(found, layers)
    assert [found.program.calls[found.graph.operators[ops[0]].id] for ops in operators] == [x.module for x in layers]
    pace = pace_of(found, layers, UNIT)
    whole = sum(duration_ns(op, UNIT) for op in found.graph.operators)
    assert sum(pace.before_ns) + sum(pace.experts_ns) == whole
    assert min(pace.before_ns) > 0
    assert min(pace.experts_ns) > 0
    assert expert_operators(without_experts(found, layers), layers) == ((0,), (0,), (0,))  # nobody reads them there


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
