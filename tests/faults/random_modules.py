"""PyTorch modules from a seed: layers of many kinds, wired at random, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.modules import Attention, Mlp

WIDTHS = (32, 64, 96, 128)
CHANNELS = (8, 16, 24)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
VOCABULARY = 300
Maker = Callable[[np.random.Generator, int], nn.Module]


class Wired(nn.Module):
    """Parts that each read one or two earlier values. A value is dropped after its last reader, as Python does with
    local names, or, where `keeps`, all are held to the end. Returns one value, or several by name."""

    def __init__(self, parts: Sequence[nn.Module], reads: Sequence[tuple[int, ...]], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)  # one that is there twice is shared
        self.reads, self.outputs = tuple(reads), outputs
        last = {v: i for i, read in enumerate(reads) for v in read}
        self.dropped = tuple(
            tuple(v for v, i in last.items() if i == n and v not in outputs) for n in range(len(reads))
        )
        self.keeps = False

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """x is value 0; part i makes value i + 1."""
        values = {0: x}
        for number, part in enumerate(self.parts):
            values[number + 1] = part(*[values[v] for v in self.reads[number]])
            for value in () if self.keeps else self.dropped[number]:
                del values[value]
        if len(self.outputs) == 1:
            return values[self.outputs[0]]
        return {f"y{v}": values[v] for v in self.outputs}


class InPlace(nn.Module):
    """A product, whose result is written in place: whole, then a slice of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        y.add_(0.5)
        y[..., : y.shape[-1] // 4].mul_(2)
        return y


class Counting(nn.Module):
    """A product that counts its calls in a buffer, and adds a constant buffer."""

    calls: torch.Tensor
    shift: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("shift", torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return self.linear(x) + self.shift


class Raw(nn.Module):
    """A parameter of its own of which one half is read through a view, transposed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2 * width, width) / width**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.matrix.view(2, -1, x.shape[-1])[1]
        return functional.silu(x @ half.t())


class Turned(nn.Module):
    """A convolution over the tokens, through transposed views."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width // 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class Halved(nn.Module):
    """The product of two views of one value, joined with one of them again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * b.sigmoid(), b), -1)


class Sum(nn.Module):
    """Of two values; some sums are followed by a function."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + y)


class Plain(nn.Module):
    """Of two values, the sum."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Pooled(nn.Module):
    """Averaged over neighbours, and brought back to the same size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2.0)


def _dropout(rng: np.random.Generator, width: int) -> nn.Module:
    return nn.Dropout(float(rng.choice([0.1, 0.5])))


def _activation(rng: np.random.Generator, width: int) -> nn.Module:
    return (nn.GELU(), nn.ReLU(), nn.Softplus(), nn.Softmax(-1), nn.Tanh())[int(rng.integers(5))]


TOKENS: tuple[Maker, ...] = (
    lambda rng, width: nn.Linear(width, width, bias=bool(rng.random() < 0.5)),
    lambda rng, width: nn.Linear(width, width),
    lambda rng, width: Mlp(width, 2 * width),
    lambda rng, width: Attention(width, causal=bool(rng.random() < 0.5)),
    lambda rng, width: nn.LayerNorm(width),
    lambda rng, width: InPlace(width),
    lambda rng, width: Counting(width),
    lambda rng, width: Raw(width),
    lambda rng, width: Turned(width),
    lambda rng, width: Halved(),
    lambda rng, width: nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, width)),
    _dropout,
    _activation,
)
"""Parts of values [rows, tokens, width]."""

IMAGES: tuple[Maker, ...] = (
    lambda rng, width: nn.Conv2d(width, width, 3, padding=1, bias=bool(rng.random() < 0.5)),
    lambda rng, width: nn.Conv2d(width, width, 1),
    lambda rng, width: nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width // 4),
    lambda rng, width: nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ConvTranspose2d(2 * width, width, 2, 2)),
    lambda rng, width: nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    ),
    lambda rng, width: nn.BatchNorm2d(width),
    lambda rng, width: nn.GroupNorm(4, width),
    lambda rng, width: nn.MaxPool2d(3, 1, 1),
    lambda rng, width: Pooled(),
    _dropout,
    _activation,
)
"""Parts of values [rows, channels, height, width]."""


@dataclass(frozen=True)
class Random:
    """A module and the arguments of some calls, of which the first is planned for."""

    module: nn.Module
    calls: tuple[torch.Tensor, ...]


def random_module(rng: np.random.Generator, calls: int, *, training: bool) -> Random:
    """Up to nine parts, of tokens or images. A part may be there twice; what comes in may be looked up in a table,
    whose rows may be the last matrix, too. Mostly float32. `torch`'s own numbers are drawn by a seed of `rng`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(1 << 31)))
        images = bool(rng.random() < 0.3)
        width = int(rng.choice(CHANNELS if images else WIDTHS))
        module = _wired(rng, IMAGES if images else TOKENS, width, training=training)
        dtype = DTYPES[int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
        size = int(rng.choice([8, 16]))
        shape = (int(rng.integers(1, 5)), width, size, size) if images else (int(rng.integers(1, 5)), size, width)
        given = [torch.randn(shape, dtype=dtype) for _ in range(calls)]
        if not images and rng.random() < 0.4:
            table = nn.Embedding(VOCABULARY, width)
            module = nn.Sequential(table, module)
            if rng.random() < 0.5 and _one_output(module[1]):
                head = nn.Linear(width, VOCABULARY, bias=False)
                head.weight = table.weight
                module.append(head)
            given = [torch.randint(VOCABULARY, shape[:2]) for _ in range(calls)]
        return Random(module.to(dtype).train(training), tuple(given))


def _one_output(module: nn.Module) -> bool:
    return isinstance(module, Wired) and len(module.outputs) == 1


def _wired(rng: np.random.Generator, makers: tuple[Maker, ...], width: int, *, training: bool) -> Wired:
    parts = [makers[0](rng, width)]
    reads: list[tuple[int, ...]] = [(0,)]
    for number in range(1, int(rng.integers(2, 10))):
        read = int(rng.integers(max(training, number - 2), number + 1))  # else there may be nothing to train
        if rng.random() < 0.3 and number > 1:
            parts.append(Sum() if rng.random() < 0.5 else Plain())
            reads.append((number, int(rng.integers(1, number))))
            continue
        again = parts[int(rng.integers(len(parts)))]
        shared = rng.random() < 0.15 and not isinstance(again, (Sum, Plain))
        parts.append(again if shared else makers[int(rng.integers(len(makers)))](rng, width))
        reads.append((read,))
    outputs = (len(parts),)
    if not training and rng.random() < 0.3:
        outputs = tuple(dict.fromkeys((int(rng.integers(1, len(parts) + 1)), len(parts))))
    module = Wired(parts, reads, outputs)
    module.keeps = bool(rng.random() < 0.2)
    return module
