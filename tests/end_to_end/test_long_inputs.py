"""Long inputs to a module: activations are planned too, where whole layers beside them would overrun the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tensorstow as ts
from tensorstow.ir.errors import InfeasibleError

ROWS, LENGTH = 8, 32
WIDTH, INNER, LAYERS = 128, 512, 2
VOCABULARY = 512


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY)
    return LlamaForCausalLM(config).eval()


def test_a_budget_that_streaming_by_layers_would_overrun() -> None:
    module = llama()
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    with torch.no_grad():
        expected = module(**inputs).logits
    layer = sum(p.nbytes for p in module.model.layers[0].parameters())
    with pytest.raises(InfeasibleError) as refused:
        ts.plan(module, inputs, machine=ts.Machine.detect(dram="1MiB"))
    smallest = refused.value.smallest_nbytes
    assert smallest is not None
    budget = smallest + layer // 8
    plan = ts.plan(module, inputs, machine=ts.Machine.detect(dram=str(budget)))
    activations = max(o.workspace_nbytes for o in plan.graph.operators)
    assert activations > ROWS * LENGTH * (2 * INNER) * 4  # gate and up of a layer exist at once
    assert activations + layer > budget  # beside the activations there is no room for a layer
    assert plan.plan.certificate.peak_nbytes["dram"] <= budget
    ts.apply(plan, module)
    executor = module.tensorstow
    moved = plan.plan.certificate.moved_nbytes["ssd->dram"]
    with executor:
        for _ in range(3):
            assert torch.equal(executor.run(**inputs).logits, expected)
            assert executor.stats.read_nbytes <= 2 * moved
        shorter = ids[:2, :5]
        assert torch.equal(module(input_ids=shorter, use_cache=False).logits, llama()(input_ids=shorter).logits)
