"""Small PyTorch modules for tests, each with what makes some modules hard to plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Mlp(nn.Module):
    """silu(x A) * (x B), times C: `width` -> `inner` -> `width`, without biases."""

    def __init__(self, width: int = 64, inner: int = 256) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Causal or full self-attention by `scaled_dot_product_attention`, one product for query, key and value."""

    def __init__(self, width: int = 64, heads: int = 4, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Decoder(nn.Module):
    """Embedding, blocks of attention and MLP with norms, and a head that is the embedding's table."""

    def __init__(self, rows: int = 512, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * layers)])
        self.attentions = nn.ModuleList([Attention(width, causal=True) for _ in range(layers)])
        self.mlps = nn.ModuleList([Mlp(width) for _ in range(layers)])
        self.head = nn.Linear(width, rows, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> dict[str, Any]:
        x = self.table(ids)
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return {"logits": self.head(x), "length": ids.shape[1], "nothing": None}


class InPlace(nn.Module):
    """Writes to an activation, to a slice of it, and to a buffer; reads the whole after the slice was written."""

    counts: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.register_buffer("counts", torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        y.add_(1)
        y[:, :8].mul_(2)
        self.counts.add_(y.sum(0))
        return y * 3


class ResNet(nn.Module):
    """Convolutions with batch norm and shortcuts, as ResNet has them."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.norm(self.stem(image))))
        x = functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Cache:
    """A key-value cache as an object of no type that torch knows: one tensor, replaced by a longer one."""

    def __init__(self, seen: torch.Tensor) -> None:
        self.seen = seen


class Cached(nn.Module):
    """Extends a cache that it is given, and attends to it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.project = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        cache.seen = torch.cat([cache.seen, self.project(x)], 1)
        weights = (x @ cache.seen.transpose(1, 2)).softmax(-1)
        return self.out(weights @ cache.seen), cache


class Borrowing(nn.Module):
    """Reads a weight of a child whose forward it never calls, and the same weight again later."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(64, 64, bias=False)
        self.other = nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.linear(x, self.child.weight)
        x = self.other(x)
        return functional.linear(x, self.child.weight.t())
