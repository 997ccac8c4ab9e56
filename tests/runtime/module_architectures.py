"""Architectures of transformers in their smallest sizes, with inputs: what the tests of module plans try."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Inputs = dict[str, Any]
COMMON = {"vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
SEEN = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TWO_SIDED = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32}
BY_TURNS = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8, "mamba_n_groups": 1}

TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba2ForCausalLM": ("Mamba2Config", {"num_heads": 8, "head_dim": 16, "state_size": 16, "chunk_size": 8}),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**HEADS, "head_dim": 16, "sliding_window": 4}),
    "Phi3ForCausalLM": ("Phi3Config", HEADS),
    "FalconForCausalLM": ("FalconConfig", {"num_attention_heads": 4}),
    "StableLmForCausalLM": ("StableLmConfig", HEADS),
    "CohereForCausalLM": ("CohereConfig", HEADS),
    "DeepseekV3ForCausalLM": (
        "DeepseekV3Config",
        {**HEADS, "num_key_value_heads": 4, **LATENT, **ROUTED, "first_k_dense_replace": 1},
    ),
    "RwkvForCausalLM": ("RwkvConfig", {"attention_hidden_size": 64, "intermediate_size": 128, "context_length": 64}),
    "JambaForCausalLM": (
        "JambaConfig",
        {**HEADS, **BY_TURNS, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 8},
    ),
    "Olmo2ForCausalLM": ("Olmo2Config", HEADS),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {"num_attention_heads": 4, "intermediate_size": 128}),
    "Qwen3MoeForCausalLM": (
        "Qwen3MoeConfig",
        {**HEADS, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "MptForCausalLM": ("MptConfig", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "GPTJForCausalLM": ("GPTJConfig", {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_positions": 64}),
    "Starcoder2ForCausalLM": ("Starcoder2Config", HEADS),
    "Glm4ForCausalLM": ("Glm4Config", {**HEADS, "head_dim": 16}),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", {**HEADS, **EXPERTS}),
    "GptOssForCausalLM": ("GptOssConfig", {**HEADS, **EXPERTS, "head_dim": 16, "sliding_window": 4}),
    "BambaForCausalLM": ("BambaConfig", {**HEADS, **STATES, "attn_layer_indices": [1]}),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {**HEADS, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 128, "moe_layers": [1]},
    ),
}
"""By class: its configuration's class, and what that is given beside `COMMON` and `SIZES`."""


def _tokens(count: int = 6) -> torch.Tensor:
    return torch.arange(3, 3 + count)[None]


def _clip(t: Any) -> tuple[Any, Inputs]:
    text = {**COMMON, **SEEN, "max_position_embeddings": 32}
    config = t.CLIPConfig(text_config=text, vision_config={**SEEN, "image_size": 32, "patch_size": 8})
    mask = torch.ones(1, 8, dtype=torch.long)
    return t.CLIPModel(config), {"input_ids": _tokens(8), "pixel_values": _pixels(), "attention_mask": mask}


def _pixels() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32)


def _vit(t: Any) -> tuple[Any, Inputs]:
    return t.ViTForImageClassification(t.ViTConfig(**SEEN, image_size=32, patch_size=8)), {"pixel_values": _pixels()}


def _swin(t: Any) -> tuple[Any, Inputs]:
    config = t.SwinConfig(image_size=32, patch_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4)
    return t.SwinModel(config), {"pixel_values": _pixels()}


def _wav2vec2(t: Any) -> tuple[Any, Inputs]:
    convolutions = {"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = t.Wav2Vec2Config(vocab_size=64, **SEEN, **convolutions, **positions)
    return t.Wav2Vec2ForCTC(config), {"input_values": torch.randn(1, 2000)}


def _bert(t: Any) -> tuple[Any, Inputs]:
    return t.BertForMaskedLM(t.BertConfig(vocab_size=256, **SEEN)), {"input_ids": _tokens()}


def _bart(t: Any) -> tuple[Any, Inputs]:
    config = t.BartConfig(**COMMON, **TWO_SIDED, decoder_start_token_id=2, max_position_embeddings=64)
    return t.BartForConditionalGeneration(config), {"input_ids": _tokens(), "decoder_input_ids": torch.tensor([[2, 5]])}


def _whisper(t: Any) -> tuple[Any, Inputs]:
    sizes = {"num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 40, "decoder_start_token_id": 3}
    config = t.WhisperConfig(**COMMON, **TWO_SIDED, **sizes, suppress_tokens=None, begin_suppress_tokens=None)
    heard = {"input_features": torch.randn(1, 16, 60)}
    return t.WhisperForConditionalGeneration(config), {**heard, "decoder_input_ids": torch.tensor([[3, 5]])}


def _qwen2_vl(t: Any) -> tuple[Any, Inputs]:
    turned = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {**COMMON, **SIZES, **HEADS, "rope_parameters": turned}
    seen = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4}
    return t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(text_config=text, vision_config=seen)), {
        "input_ids": _tokens()
    }


OTHERS: dict[str, Callable[[Any], tuple[Any, Inputs]]] = {
    "CLIPModel": _clip,
    "ViTForImageClassification": _vit,
    "SwinModel": _swin,
    "Wav2Vec2ForCTC": _wav2vec2,
    "BertForMaskedLM": _bert,
    "BartForConditionalGeneration": _bart,
    "WhisperForConditionalGeneration": _whisper,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
}
NAMES = (*TEXT, *OTHERS)


def build(transformers: Any, name: str) -> tuple[Any, Inputs]:
    """A model with random weights, the same each time, ready for inference; and the inputs of a pass."""
    torch.manual_seed(0)
    if name in OTHERS:
        model, inputs = OTHERS[name](transformers)
    else:
        config, given = TEXT[name]
        model = getattr(transformers, name)(getattr(transformers, config)(**{**COMMON, **SIZES, **given}))
        inputs = {"input_ids": _tokens()}
    return model.eval(), inputs
