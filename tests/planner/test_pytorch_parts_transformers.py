"""Parts of networks of transformers, traced without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.graph import StorageKind
from tensorstow.planner.pytorch import (
    lower_module,
    parts,
)
from tensorstow.planner.validate import faults

from ..graphs import machine
from .parts_cases import UNIT, check

IDS = torch.zeros(2, 7, dtype=torch.int64)


def _llama() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=99,
    )
    return LlamaForCausalLM, config, {"input_ids": torch.zeros(1, 8, dtype=torch.int64)}


def _gpt2() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel, GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=99), {"input_ids": IDS}


def _t5() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=64, d_ff=128, num_layers=1, num_heads=4, d_kv=16, vocab_size=99)
    return T5ForConditionalGeneration, config, {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}


def _mixtral() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=99,
        num_local_experts=4,
    )
    return MixtralForCausalLM, config, {"input_ids": IDS}


def _mamba() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=99, state_size=8)
    return MambaForCausalLM, config, {"input_ids": IDS}


def _whisper() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        vocab_size=99,
        max_source_positions=32,
        max_target_positions=32,
        num_mel_bins=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    inputs = {"input_features": torch.zeros(1, 8, 64), "decoder_input_ids": IDS[:1, :3]}
    return WhisperForConditionalGeneration, config, inputs


def _bert() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, vocab_size=99
    )
    return BertModel, config, {"input_ids": IDS}


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (_mixtral, _mamba, _whisper)]


@pytest.mark.parametrize("make", [_llama, _gpt2, _t5, _bert, *SLOW])
def test_networks_of_transformers_without_weights(make: Callable[[], tuple[Any, Any, dict[str, torch.Tensor]]]) -> None:
    kind, config, inputs = make()
    with torch.device("meta"):
        model: nn.Module = kind(config)
    lowered = lower_module(model.eval(), (), inputs, name="model")
    assert not list(faults(lowered.graph, machine(1 << 30)))
    parameters = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    weights = {s.id: s.nbytes for s in lowered.graph.storages if s.kind is StorageKind.WEIGHT}
    assert weights == {n: p.numel() * p.element_size() for n, p in parameters.items()}  # all are used, tied ones once
    named = {n for w in lowered.weights.values() if not w.is_buffer for n in w.names}
    assert named == set(every)
    assert "other" not in {o.cost_class for o in lowered.graph.operators}
    made = parts(lowered, UNIT)
    check(lowered, made)
    assert all(p.is_meta for p in model.parameters())
