"""Small models of architectures that people train, with random weights: what is special of each is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .training_steps import Case, mean_square, resnet


class Labelled(nn.Module):
    """A model of transformers, called with an input and labels by position; its result is the loss."""

    def __init__(self, model: nn.Module, given: str) -> None:
        super().__init__()
        self.model = model
        self.given = given

    def forward(self, given: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`given` are [rows, tokens] ids or [rows, 3, height, width] images."""
        return self.model(**{self.given: given}, labels=labels).loss


def _text(model: nn.Module, vocabulary: int, rows: int = 4, tokens: int = 64) -> Case:
    ids = torch.randint(vocabulary, (rows, tokens))
    return Case(Labelled(model.train(), "input_ids"), (ids, ids.clone()))


def llama() -> Case:
    """Rotary positions, grouped keys, RMS norms, gated layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return _text(LlamaForCausalLM(sizes), 96)


def gpt2() -> Case:
    """Tied embedding, dropout in three places."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=64, bos_token_id=0, eos_token_id=0)
    assert sizes.resid_pdrop > 0
    return _text(GPT2LMHeadModel(sizes), 96)


def qwen3_moe() -> Case:
    """A router and experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sizes = Qwen3MoeConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        **dict[str, Any](head_dim=16),
    )
    return _text(Qwen3MoeForCausalLM(sizes), 96)


def bert() -> Case:
    """Both directions, dropout, a head over words."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return _text(BertForMaskedLM(sizes), 96)


def vit() -> Case:
    """Patches by a convolution, a token for the class."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = ViTConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
        hidden_dropout_prob=0.1,
        **dict[str, Any](num_labels=10),
    )
    model = ViTForImageClassification(sizes).train()
    return Case(Labelled(model, "pixel_values"), (torch.randn(4, 3, 32, 32), torch.randint(10, (4,))))


class UNet(nn.Module):
    """Down twice and up twice, each level joined to its like, with group norms, pooling and transposed convolutions."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels)
        self.down = nn.ModuleList(self._pair(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, stride=2) for n in widths[-2::-1])
        self.joined = nn.ModuleList(self._pair(2 * n, n) for n in widths[-2::-1])
        self.head = nn.Conv2d(channels, 3, 1)

    @staticmethod
    def _pair(given: int, made: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(given, made, 3, padding=1), nn.GroupNorm(4, made), nn.SiLU(inplace=True), nn.Dropout2d(0.1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[rows, 3, height, width] to the same."""
        levels: list[torch.Tensor] = []
        x = images
        for i, pair in enumerate(self.down):
            x = pair(x if i == 0 else functional.max_pool2d(x, 2))
            levels.append(x)
        for level, up, pair in zip(levels[-2::-1], self.up, self.joined, strict=True):
            x = pair(torch.cat((up(x), level), 1))
        return self.head(x)


def unet() -> Case:
    """Skips from the first level to the last: the longest-lived activations are the largest."""
    torch.manual_seed(0)
    return Case(UNet(), (torch.randn(4, 3, 32, 32),), mean_square)


ARCHITECTURES: dict[str, Callable[[], Case]] = {
    "llama": llama,
    "gpt2": gpt2,
    "qwen3_moe": qwen3_moe,
    "bert": bert,
    "vit": vit,
    "resnet": resnet,
    "unet": unet,
}
