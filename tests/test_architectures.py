"""Models of many architectures, planned and applied in half of their memory: the same bits, the same tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tensorstow as ts
from tensorstow import modules

from .conftest import host_machine
from .runtime.module_architectures import NAMES, build

transformers = pytest.importorskip("transformers")

QUICK = ("CLIPModel", "Mamba2ForCausalLM", "Gemma3ForCausalLM")
"""Run each time; the others take two to seven seconds each."""
WORKS_IN_MORE = ("Wav2Vec2ForCTC", "SwinModel", "Mamba2ForCausalLM")
"""Of these, in so small a size, activations or the largest operator alone take more than half of the weights."""


def same(found: Any, wanted: Any) -> bool:
    """Whether two results have the same bits, as far as they are tensors."""
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(torch.nan_to_num(found), torch.nan_to_num(wanted))
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], v) for k, v in wanted.items())
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return True


def by_formulas(lowered: Any, *_: Any) -> Any:
    """In place of measuring operators."""
    return lowered


def planned(name: str, module: Any, inputs: Any) -> Any:
    """A plan for half of the bytes of the weights, or for the least that works."""
    half = sum(p.nbytes for p in module.parameters()) // 2
    machine = host_machine()
    try:
        return ts.plan(module, inputs, machine=machine.with_capacity({"dram": half}), time_limit_s=5)
    except ts.InfeasibleError as error:
        assert name in WORKS_IN_MORE and error.smallest_nbytes is not None
        return ts.plan(module, inputs, machine=machine.with_capacity({"dram": error.smallest_nbytes}), time_limit_s=5)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.usefixtures("one_thread")
def test_an_architecture_in_half_its_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "measured_here", by_formulas)  # times are not what is looked at
    module, inputs = build(transformers, name)
    reference, _ = build(transformers, name)
    plan = planned(name, module, copy.deepcopy(inputs))
    assert sum(plan.plan.certificate.moved_nbytes.values()) > 0
    module = ts.apply(plan, module, threads=1)
    executor: Any = module.tensorstow
    try:
        with torch.no_grad():
            wanted = reference(**copy.deepcopy(inputs))
            for _ in range(2):
                assert same(dict(module(**copy.deepcopy(inputs))), dict(wanted))
        if reference.can_generate():
            prompt = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
            asked: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
            found = module.generate(**copy.deepcopy(prompt), **asked)
            assert torch.equal(found, reference.generate(**copy.deepcopy(prompt), **asked))
    finally:
        executor.close()
