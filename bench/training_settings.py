"""Training steps that are too large to run here, and the machines that they are planned for.

- `llama`: a Llama of 6.7B parameters, one sequence of 32,768 tokens, on an RTX 4090 with 128 GiB of DRAM and a disk.
- `memo`: one device's share of MEMO's setting (arXiv 2407.12117): 7B, one sequence of 2^20 tokens, eight A800 of 80 GB.
  Our reading: tensor parallelism of eight with sequence parallelism. The device has an eighth of the heads, of the
  feed-forward's width and of the tokens between blocks, and table and head for these; gathering tokens is a copy to
  eight times the size and scattering a sum over eight, in the device's own memory: exchange between devices costs no
  more here. 256 GiB of DRAM for the device.
- `fuyou`: a GPT of 100B parameters on Fuyou's server (arXiv 2403.06504): one RTX 4090, 768 GB of DRAM, 12 disks. Our
  reading: 80 blocks of 10,240, 32 sequences of 1,024 tokens; the disks of the profile in parallel, one lane each way;
  parameters, gradients and states in float32 and products in bfloat16, as autocast has them, so that parameters and
  states (1,220 GB) are more than the DRAM and their home are the disks, as in the paper.

In the others all is bfloat16, states of AdamW included, as torch.optim.AdamW has them for such parameters. Modules and
inputs have shapes and no bytes. Times are by formulas on published rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from tensorstow.ir.machine import Machine
from tensorstow.ir.profiles import load_machine

GIB = 1 << 30
DISKS = 12


@dataclass(frozen=True, slots=True)
class Sizes:
    """A decoder. `gated`: three matrices in the feed-forward, root-mean-square norms and rotated positions; else two
    and layer norms. `devices` share heads, the inner width and the tokens between blocks evenly. `mixed`: parameters,
    gradients and states in float32, products in bfloat16 as autocast has them; else all is bfloat16."""

    blocks: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    batch: int
    tokens: int
    gated: bool = True
    devices: int = 1
    mixed: bool = False

    @property
    def parameters(self) -> int:
        """Of the model, all devices together; norms are left out."""
        matrices = 3 if self.gated else 2
        block = 4 * self.width * self.width + matrices * self.width * self.inner
        return self.blocks * block + 2 * self.vocabulary * self.width

    @property
    def model_flops(self) -> float:
        """Of a step, nothing counted twice, all devices together: 6 for each parameter and token, embeddings left out,
        and causal attention's two products forward and four backward."""
        tokens = self.batch * self.tokens
        products = 6 * (self.parameters - self.vocabulary * self.width) * tokens
        return products + 6 * self.blocks * self.width * tokens * self.tokens


class Attention(nn.Module):
    """Causal attention of the heads that this device has."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.size = sizes, sizes.width // sizes.heads
        own = sizes.width // sizes.devices
        self.q, self.k, self.v = (nn.Linear(sizes.width, own, bias=False) for _ in range(3))
        self.out = nn.Linear(own, sizes.width, bias=False)

    def forward(self, x: Tensor, turned: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (f(x).view(batch, tokens, -1, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        if turned is not None:
            q, k = _rotated(q, *turned), _rotated(k, *turned)
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(found.transpose(1, 2).reshape(batch, tokens, -1))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class FeedForward(nn.Module):
    """The part of the width that this device has."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        own = sizes.inner // sizes.devices
        self.up = nn.Linear(sizes.width, own, bias=False)
        self.gate = nn.Linear(sizes.width, own, bias=False) if sizes.gated else None
        self.down = nn.Linear(own, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(functional.gelu(self.up(x)))
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and feed-forward, each after a norm; between them each device has its share of the tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        norm = nn.RMSNorm if sizes.gated else nn.LayerNorm
        self.sizes = sizes
        self.norm1, self.norm2 = norm(sizes.width), norm(sizes.width)
        self.attention, self.feed_forward = Attention(sizes), FeedForward(sizes)

    def forward(self, x: Tensor, turned: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self._scattered(self.attention(self._gathered(self.norm1(x)), turned))
        return x + self._scattered(self.feed_forward(self._gathered(self.norm2(x))))

    def _gathered(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.sizes.devices, 1) if self.sizes.devices > 1 else x

    def _scattered(self, x: Tensor) -> Tensor:
        if self.sizes.devices == 1:
            return x
        return x.view(x.shape[0], self.sizes.devices, -1, x.shape[2]).sum(1)


class Decoder(nn.Module):
    """Tokens to the loss of predicting the next ones."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.table = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = None if sizes.gated else nn.Embedding(sizes.tokens, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks))
        self.norm = (nn.RMSNorm if sizes.gated else nn.LayerNorm)(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, ids: Tensor, targets: Tensor, turned: tuple[Tensor, Tensor] | None) -> Tensor:
        if not self.sizes.mixed:
            logits = self._logits(ids, turned)
        else:
            with torch.autocast("cpu", torch.bfloat16):  # steps are traced as on the CPU
                logits = self._logits(ids, turned)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _logits(self, ids: Tensor, turned: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self.table(ids).bfloat16()
        if self.places is not None:
            x = x + self.places.weight.bfloat16()
        for block in self.blocks:
            x = block(x, turned)
        return self.head(self.norm(x))


@dataclass(frozen=True, slots=True)
class Setting:
    """A step and its machine; `published` is what the source says of the like."""

    name: str
    sizes: Sizes
    machine: Callable[[], Machine]
    published: str

    def build(self) -> tuple[Decoder, tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
        """The module on 'meta', and its inputs, which take no memory to speak of."""
        sizes = self.sizes
        with torch.device("meta"):
            module = Decoder(sizes).to(torch.float32 if sizes.mixed else torch.bfloat16)
            shape = sizes.batch, sizes.tokens // sizes.devices
            ids, targets = (torch.empty(shape, dtype=torch.int64) for _ in range(2))
            angle = (sizes.tokens, sizes.width // sizes.heads)
            turned = (torch.empty(angle, dtype=torch.bfloat16), torch.empty(angle, dtype=torch.bfloat16))
        return module.train(), (ids, targets, turned if sizes.gated else None)


def _workstation() -> Machine:
    return load_machine("rtx4090").with_capacity({"dram": 128 * GIB})


def _share_of_node() -> Machine:
    return load_machine("a100-80gb").with_capacity({"dram": 256 * GIB})


def _server() -> Machine:
    machine = load_machine("rtx4090").with_capacity({"dram": 768 * 10**9, "ssd": DISKS * 2 * 10**12})
    links = tuple(
        replace(k, bytes_per_s=DISKS * k.bytes_per_s, source=f"{DISKS} disks as one; {k.source}")
        if "ssd" in (k.origin, k.target)
        else k
        for k in machine.links
    )
    return replace(machine, name="rtx4090, 12 disks", links=links)


SETTINGS = {
    s.name: s
    for s in (
        Setting("llama", Sizes(32, 4096, 32, 11008, 32000, 1, 32768), _workstation, ""),
        Setting("memo", Sizes(32, 4096, 32, 11008, 32000, 1, 1 << 20, devices=8), _share_of_node, "52.30% MFU"),
        Setting(
            "fuyou",
            Sizes(80, 10240, 80, 40960, 50304, 32, 1024, gated=False, mixed=True),
            _server,
            "156 TFLOP/s for 13B on this card; 100B runs",
        ),
    )
}
