"""Tests of tensorstow/moe_predict.py and runtime/module/experts_loop.py: what is expected, which policy is planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tensorstow.ir.program import ExpertCaching
from tensorstow.moe_predict import Passing, expected, expected_best, recall_memory
from tensorstow.planner.experts.trace import Trace, write_trace
from tensorstow.planner.pytorch import lower_module, parts
from tensorstow.planner.pytorch.experts import find_fused, placed_layers, streamed_nbytes
from tensorstow.runtime.module.experts_loop import LoopTime, time_loops

from .graphs import machine
from .runtime.test_experts_cache import phrases
from .runtime.test_module_experts import build

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

AT = machine(64 << 20, bytes_per_s=1e9)


@pytest.fixture(scope="module")
def passing() -> tuple[Passing, ExpertCaching]:
    """A token's pass of three layers of twelve experts, five of each in memory; for a machine that is not this box."""
    module = build("olmoe")
    lowered = lower_module(module, (), {"input_ids": torch.ones(1, 1, dtype=torch.long)}, name="moe")
    found = parts(lowered, AT.units[0])
    layers = tuple(r.layer for r in placed_layers(found, find_fused(module, lowered)))
    caching = ExpertCaching(layers, 5, False, 0.95, 3, 0.0, "")
    return Passing(found, lowered, module, AT), caching


def with_trace(passing: Passing, ids: NDArray[np.int32], folder: Path) -> Passing:
    path = folder / "trace.npz"
    write_trace(Trace(ids, 12, np.array([0, len(ids)], np.int64), ("",)), path)
    return replace(passing, routing=path)


def test_the_policy_that_waits_least_on_the_trace_is_planned(
    passing: tuple[Passing, ExpertCaching], tmp_path: Path
) -> None:
    one, planned = passing
    slow = replace(one, machine=machine(64 << 20, bytes_per_s=1e6))  # an expert takes longer than to decide
    chosen: list[str] = []
    drifting = (np.arange(240)[:, None, None] // 2 + np.arange(3) + np.zeros((1, 3, 1), np.int64)) % 12
    for ids in (phrases(240, 3, 12), drifting.astype(np.int32)):
        traced = with_trace(slow, ids, tmp_path)
        best = expected_best(planned, replace(planned, memory=256), traced, 1).caching
        chosen.append(best.policy)
        assert best.traced
        assert best.rests_on.endswith("of trace.npz")
        lru = expected(replace(planned, decay=None, ahead=0), traced, 1).caching
        assert sum(best.wait_ns) <= sum(lru.wait_ns)
    assert chosen[0] == "recall"


def test_without_a_trace_recall_is_planned_where_deciding_is_cheap(passing: tuple[Passing, ExpertCaching]) -> None:
    one, planned = passing
    remembering = replace(planned, memory=256)
    slow, fast = (replace(one, machine=machine(64 << 20, bytes_per_s=rate)) for rate in (1e5, 1e13))
    assert expected_best(planned, remembering, slow, 1).caching.policy == "recall"
    assert expected_best(planned, remembering, fast, 1).caching.policy == "decayed"
    assert recall_memory(replace(planned, shared=True)) == 0
    assert recall_memory(planned) == 0  # experts so small leave no room to remember


def test_the_link_is_shared_with_weights_that_stream(passing: tuple[Passing, ExpertCaching]) -> None:
    one, planned = passing
    roomy, tight = (expected(planned, replace(one, machine=machine(n)), 1).caching for n in (64 << 20, 300 << 10))
    assert streamed_nbytes(one.found, planned, machine(64 << 20)) == 0
    assert streamed_nbytes(one.found, planned, machine(300 << 10)) > 0
    assert tight.hit_rate == pytest.approx(roomy.hit_rate, abs=0.05)
    assert sum(tight.wait_ns) > 1.2 * sum(roomy.wait_ns)


def test_loops_are_timed_here() -> None:
    module = build("olmoe")
    lowered = lower_module(module, (), {"input_ids": torch.ones(1, 1, dtype=torch.long)}, name="moe")
    layers = [r.layer for r in find_fused(module, lowered)]
    before = {name: p.clone() for name, p in module.named_parameters()}
    found = time_loops(module, layers, 1, slots=3, threads=1)
    assert found is not None
    assert len(found) == 3
    assert len(set(found)) == 1  # measured once
    assert found[0].each_ns > 0
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    assert time_loops(module.to("meta"), layers, 4, slots=3, threads=1) is not None
    assert time_loops(module, [replace(layers[0], fused=False)], 1, slots=3, threads=1) is None
    assert LoopTime(3.0, 2.0).call_ns(4) == 11.0


def test_a_loop_that_does_not_run_on_made_up_tokens_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("mixtral")
    lowered = lower_module(module, (), {"input_ids": torch.ones(1, 1, dtype=torch.long)}, name="moe")
    kind: Any = type(module.model.layers[0].mlp.experts)

    def fails(*_: Any) -> None:
        raise ValueError("a token of the vocabulary is wanted")

    monkeypatch.setattr(kind.forward, "__wrapped__", fails)
    assert time_loops(module, [r.layer for r in find_fused(module, lowered)], 1, slots=3, threads=1) is None
