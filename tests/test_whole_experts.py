"""Tests of tensorstow/whole_experts.py."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import tensorstow as ts
from tensorstow.whole_experts import whole_experts

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def test_experts_that_are_read_whole_are_told_with_their_bytes() -> None:
    config = MixtralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    module: Any = MixtralForCausalLM(config).eval()
    nbytes = sum(p.nbytes for n, p in module.named_parameters() if ".experts." in n)
    plan = ts.plan(module, {"input_ids": torch.zeros(1, 2, dtype=torch.int64)}, machine=ts.Machine.detect(dram="1GiB"))
    found = whole_experts(plan)
    assert found is not None
    assert found.facts == {"layers": 2, "experts": 4, "nbytes": nbytes}
    assert "the 4 experts of each of 2 layers" in found.text


def test_a_module_without_experts_has_none() -> None:
    module = torch.nn.Linear(64, 64)
    assert whole_experts(ts.plan(module, (torch.zeros(1, 64),), machine=ts.Machine.detect(dram="1GiB"))) is None
