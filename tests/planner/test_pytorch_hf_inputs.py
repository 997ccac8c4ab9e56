"""Tests of planner/pytorch/hf_inputs.py and hf_positions.py: how many tokens a pass may be of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tensorstow.ir.errors import InputError
from tensorstow.planner.pytorch.hf_inputs import example_inputs

from .hf_models import MODELS, TEXT


@pytest.mark.parametrize(
    ("name", "table", "positions", "most"),
    [
        ("gpt2", "transformer.wpe", 64, {"length": 64}),
        ("gpt2", "transformer.wpe", 64, {"length": 4, "context": 60}),
        ("bert", "embeddings.position_embeddings", 64, {"length": 64}),
        ("marian", "model.encoder.embed_positions", 64, {"length": 8, "encoded": 64}),
        ("marian", "model.decoder.embed_positions", 64, {"encoded": 8, "length": 64}),
        ("whisper", "model.decoder.embed_positions", 32, {"length": 32}),
    ],
)
def test_no_more_tokens_than_a_table_has_positions(name: str, table: str, positions: int, most: dict[str, int]) -> None:
    module = MODELS[name]()
    example_inputs(module, **most)
    last = list(most)[-1]
    with pytest.raises(InputError, match=f"has {positions} positions, in the table '{table}', and is to read "):
        example_inputs(module, **{**most, last: most[last] + 1})


def test_positions_that_are_no_table_go_on() -> None:
    for name in ("llama", "t5", "mamba"):
        module = MODELS[name]()
        assert example_inputs(module, length=500)["input_ids"].shape == (1, 500)


@pytest.mark.parametrize(("padding", "most"), [(1, 62), (None, 64)])
def test_positions_that_count_on_from_the_padding(padding: int | None, most: int) -> None:
    config = transformers.RobertaConfig(**TEXT, pad_token_id=1)
    module: Any = transformers.RobertaModel(config)
    if padding is None:
        module.embeddings.position_embeddings.padding_idx = None
    example_inputs(module, length=most)
    with pytest.raises(InputError, match=f"has {most} positions"):
        example_inputs(module, length=most + 1)
    if padding is not None:
        module(**example_inputs(module, length=most))
        with pytest.raises((IndexError, RuntimeError)):
            module(input_ids=torch.zeros(1, most + 1, dtype=torch.int64))


def test_an_encoder_reads_as_many_tokens_as_asked() -> None:
    t5 = MODELS["t5"]()
    inputs = example_inputs(t5, length=1, encoded=7)
    assert (inputs["input_ids"].shape, inputs["decoder_input_ids"].shape) == ((1, 7), (1, 1))
    inputs = example_inputs(t5, length=1, context=3, encoded=7)
    assert inputs["encoder_outputs"].last_hidden_state.shape == (1, 7, 32)
    assert inputs["past_key_values"].get_seq_length() == 3
    assert inputs["past_key_values"].cross_attention_cache.get_seq_length() == 7
    with pytest.raises(InputError, match=r"logits of all positions that it reads; leave logits \(1\) away"):
        example_inputs(t5, logits=1)
    llama = MODELS["llama"]()
    assert example_inputs(llama, length=3, logits=1)["logits_to_keep"] == 1
    with pytest.raises(InputError, match=r"has no encoder that reads tokens; leave encoded \(7\) away"):
        example_inputs(llama, encoded=7)
