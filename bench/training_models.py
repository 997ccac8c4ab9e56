"""The model that training is measured on: a GPT in plain PyTorch, with learned positions and an untied head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH, HEADS, BLOCKS, LENGTH, VOCABULARY = 512, 8, 12, 512, 8192


class Block(nn.Module):
    """Attention and a feed-forward of four times the width, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens to the loss of predicting the next ones. `checkpointed`: PyTorch's own, a segment a block."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.checkpointed = checkpointed

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


def gpt(batch: int, *, checkpointed: bool = False) -> tuple[GPT, tuple[Tensor, Tensor]]:
    """The model with seed 0 and a batch of random tokens."""
    torch.manual_seed(0)
    module = GPT(checkpointed=checkpointed)
    ids = torch.randint(0, VOCABULARY, (batch, LENGTH + 1))
    return module, (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


Entry = Callable[[], tuple[nn.Module, tuple[Any, ...]]]


def gpt8() -> tuple[nn.Module, tuple[Any, ...]]:
    """8 sequences of 512 tokens: what `tensorstow plan bench/training_models.py:gpt8 --mode training` plans."""
    return gpt(8)


def gpt16() -> tuple[nn.Module, tuple[Any, ...]]:
    """16 sequences."""
    return gpt(16)
