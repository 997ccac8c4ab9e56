"""Models of transformers, small and of many kinds, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, num_key_value_heads=2))


def _gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def _mixtral() -> Any:
    config = transformers.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def _t5() -> Any:
    start: dict[str, Any] = {"decoder_start_token_id": 0}
    config = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **start)
    return transformers.T5ForConditionalGeneration(config)


def _mamba() -> Any:
    config = transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    return transformers.MambaForCausalLM(config)


def _whisper() -> Any:
    sizes: dict[str, Any] = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 64))
    }
    config = transformers.WhisperConfig(
        vocab_size=96, d_model=32, **sizes, encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=8,
        max_source_positions=16, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def _marian() -> Any:
    sizes: dict[str, Any] = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("ffn_dim", 64), ("attention_heads", 4))
    }
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": 2}
    config = transformers.MarianConfig(
        vocab_size=96, d_model=32, **sizes, **tokens, decoder_start_token_id=0, max_position_embeddings=64
    )
    return transformers.MarianMTModel(config)


def _bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**{k: v for k, v in TEXT.items() if "token" not in k}))


def _resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "mixtral": _mixtral,
    "t5": _t5,
    "mamba": _mamba,
    "whisper": _whisper,
    "marian": _marian,  # whose file lacks what it computes
    "bert": _bert,
    "resnet": _resnet,
}
