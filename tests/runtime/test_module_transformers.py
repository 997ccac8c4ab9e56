"""Tests of runtime/module/ on transformers' models with random weights: `generate()` gives the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tensorstow.runtime.module import ModuleExecutor

from .recorded import record

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}


def build(name: str) -> Any:
    """A model of a few layers."""
    torch.manual_seed(0)
    t: Any = transformers
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**COMMON, **SIZES, **HEADS))
    if name == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    if name == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**COMMON, **SIZES, **HEADS, num_local_experts=4))
    if name == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(**COMMON, **SIZES, state_size=4))
    if name == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        return t.T5ForConditionalGeneration(t.T5Config(**COMMON, **sizes, decoder_start_token_id=0))
    assert name == "gemma"
    return t.GemmaForCausalLM(t.GemmaConfig(**COMMON, **SIZES, **HEADS, head_dim=8))


def executed(name: str, folder: Path, **options: Any) -> tuple[Any, Any, ModuleExecutor]:
    """The model run by a plan for a small budget, and another with the same weights that is not."""
    model, reference = build(name).eval(), build(name).eval()
    inputs: dict[str, Any] = {"input_ids": torch.arange(4)[None]}
    if name == "t5":
        inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long)
    return model, reference, record(model, lambda: model(**inputs), folder, **options).execute(0.2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "mamba", "t5", "gemma"])
def test_generated_tokens_are_those_of_the_model_alone(tmp_path: Path, name: str) -> None:
    model, reference, executor = executed(name, tmp_path, kept_nbytes=0 if name in ("llama", "mamba") else 128)
    prompt = torch.randint(3, 128, (2, 5))
    asked: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "return_dict_in_generate": True}
    with executor:
        for options in ({"do_sample": False}, {"num_beams": 2}):
            found = model.generate(prompt, output_logits=True, **asked, **options)
            wanted = reference.generate(prompt, output_logits=True, **asked, **options)
            assert torch.equal(found.sequences, wanted.sequences)
            assert all(torch.equal(a, b) for a, b in zip(found.logits, wanted.logits, strict=True))
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[500]]), **({"decoder_input_ids": prompt[:1]} if name == "t5" else {}))
        assert torch.equal(model.generate(prompt, **asked).sequences, reference.generate(prompt, **asked).sequences)


@pytest.mark.parametrize(("name", "table"), [("t5", "shared"), ("gemma", "model.embed_tokens")])
def test_a_tied_table_that_is_looked_up(tmp_path: Path, name: str, table: str) -> None:
    tables = [table, "encoder.embed_tokens", "decoder.embed_tokens"]
    model, reference, executor = executed(name, tmp_path, looked_up=tables)
    assert executor.program.lookups
    prompt = torch.randint(3, 128, (2, 6))
    with executor:
        found = model.generate(prompt, max_new_tokens=6, do_sample=False)
        assert torch.equal(found, reference.generate(prompt, max_new_tokens=6, do_sample=False))
