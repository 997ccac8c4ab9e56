"""A module that uses its weights in many ways, for tests of runtime/module/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorstow.runtime.module import ModuleExecutor

from .recorded import record

SHARES = [1.0, 0.5, 0.0]
"""Of what lies between the smallest budget and all weights."""


class Block(nn.Module):
    """Layers of PyTorch's, a parameter of its own used through a view that outlives other layers, and tied weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.gates = nn.Parameter(torch.randn(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gates.view(4, -1, x.shape[-1])[1].t()
        return x + self.down(torch.relu(self.up(self.norm(x)))) @ gate


class Small(nn.Module):
    """Tokens in, scores out; the table is the last matrix, too."""

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(100, width, padding_idx=0)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 100, bias=False)
        self.head.weight = self.table.weight
        self.depth = layers

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        for layer in self.layers[: self.depth]:
            x = layer(x)
        return self.head(x)


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))


def small(folder: Path, share: float, **options: Any) -> tuple[Any, list[tuple[torch.Tensor, Any]], ModuleExecutor]:
    """An executor, with inputs of several lengths and what they give."""
    torch.manual_seed(0)
    module = Small().eval()
    inputs = [tokens(1, 2, 5), tokens(2, 1, 1), tokens(3, 3, 9)]
    with torch.no_grad():
        cases = [(i, module(i)) for i in inputs]
    recorded = record(module, lambda: module(inputs[0]), folder, **options)
    return module, cases, recorded.execute(share)
