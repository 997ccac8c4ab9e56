"""Small modules to train, plans for their steps, and what the plain step gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tensorstow.ir.codec import digest
from tensorstow.ir.files import PlanFile
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.program import Clip
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.planner.training import KEPT, STATES, Scope, lower_joint, placed, with_updates
from tensorstow.planner.training.clip import with_clipping
from tensorstow.planner.training.in_place import results_in_place
from tensorstow.planner.training.optimizer import optimizer_calls, split_updates
from tensorstow.runtime.training.consumed import ConsumedGradient
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.losses import loss_of

Loss = Callable[[Any], torch.Tensor] | None


def box(dram_nbytes: int, bytes_per_s: float = 2e9) -> Machine:
    """A machine with so much memory, and a disk."""
    return Machine(
        "test",
        (Tier("dram", TierKind.DRAM, dram_nbytes), Tier("ssd", TierKind.SSD, 1 << 40, alignment=4096)),
        (
            Link("ssd", "dram", bytes_per_s, chunk_nbytes=1 << 18),
            Link("dram", "ssd", bytes_per_s, chunk_nbytes=1 << 18),
        ),
        (Unit("cpu", "dram", (("float32", 1e11),), 1e10, 1e-6),),
    )


class Block(nn.Module):
    """A layer of a GPT: attention and two linear layers, each normed before and added behind, with dropout."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.joined = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and the result are [rows, tokens, width]."""
        rows, tokens, width = x.shape
        parts = self.joined(self.norms[0](x)).split(width, 2)
        q, k, v = (p.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2) for p in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = self.out(y.transpose(1, 2).reshape(rows, tokens, width))
        x = x + functional.dropout(y, self.dropout, self.training)
        y = self.down(functional.gelu(self.up(self.norms[1](x))))
        return x + functional.dropout(y, self.dropout, self.training)


class Gpt(nn.Module):
    """Returns the loss itself; the embedding and the head are one parameter."""

    def __init__(self, blocks: int = 2, width: int = 64, vocabulary: int = 96, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(64, width) / 8)
        self.blocks = nn.ModuleList(Block(width, 4, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Both are [rows, tokens]."""
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Residual(nn.Module):
    """Two convolutions with batch norms, and operators that write in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and the result are [rows, channels, height, width]."""
        y = self.relu(self.norms[0](self.convolutions[0](x)))
        y = self.norms[1](self.convolutions[1](y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """Returns the logits: a loss has to be given."""

    def __init__(self, blocks: int = 2, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[rows, 3, height, width] to [rows, 10]."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


def mean_square(result: torch.Tensor) -> torch.Tensor:
    """A loss that needs no labels."""
    return result.square().mean()


@dataclass(frozen=True)
class Case:
    """A module, a batch and a loss."""

    module: nn.Module
    batch: tuple[torch.Tensor, ...]
    loss: Loss = None

    def twin(self) -> nn.Module:
        """The same module with parameters of its own."""
        return copy.deepcopy(self.module)


def gpt(dropout: float = 0.1) -> Case:
    """Some 3 MiB of activations."""
    torch.manual_seed(0)
    return Case(Gpt(dropout=dropout), (torch.randint(96, (8, 64)), torch.randint(96, (8, 64))))


def resnet() -> Case:
    """Some 5 MiB of activations."""
    torch.manual_seed(0)
    return Case(ResNet(), (torch.randn(8, 3, 32, 32),), mean_square)


def plan_of(
    case: Case,
    share: float = 1.0,
    *,
    optimizer: Any = None,
    scope: Scope | None = None,
    strategy: str = "stow",
    bytes_per_s: float = 2e9,
    time_limit_s: float = 4.0,
    clip: Clip | None = None,
) -> PlanFile:
    """A plan with the least memory that goes, and `share` of what more there would be if nothing left."""
    joint = capture_joint(case.module, case.batch, loss=case.loss or loss_of)
    step = results_in_place(lower_joint(joint, name=type(case.module).__name__), joint)
    if optimizer is not None:
        step = split_updates(with_updates(step, optimizer_calls(optimizer, case.module)), 1 << 16)
    if clip is not None:
        step = with_clipping(step, clip)
    lowered = placed(step, scope or (KEPT if optimizer is None else STATES), key=joint.key)
    whole = make_instance(lowered.graph, box(1 << 40), mode="training")
    needed = max(whole.base_nbytes)
    capacity = needed + int((whole.peak_of_all() - needed) * share) + whole.workspace_nbytes
    machine = box(capacity, bytes_per_s)
    plan = plan_graph(lowered.graph, machine, strategy=strategy, mode="training", time_limit_s=time_limit_s)
    assert plan.graph == digest(lowered.graph)
    return PlanFile(plan, lowered.graph, machine, None, None, 0, training=lowered.program)


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Of the parameters that have one, by name."""
    held = {name: p.grad for name, p in module.named_parameters()}
    return {name: g for name, g in held.items() if g is not None and not isinstance(g, ConsumedGradient)}


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names whose tensors are not the same to the bit, or that are in one of them only."""
    return sorted(set(a) ^ set(b)) + [n for n in a if n in b and not torch.equal(a[n], b[n])]


def plain_loss(case: Case, module: nn.Module, batch: tuple[torch.Tensor, ...] | None = None) -> torch.Tensor:
    """As the plain step computes it."""
    return (case.loss or loss_of)(module(*(case.batch if batch is None else batch)))
