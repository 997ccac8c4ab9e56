"""Graphs of any number of operators, for what planning costs: deep and uneven, with weights, skips and branches.

Sizes and times are made up, but in the proportions of real networks: a step moves about its weights and values, and
layers differ from one another by a factor of up to four, so that nothing is solved by symmetry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tensorstow.ir.graph import HOMED_KINDS, Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class _Writer:
    """Gathers storages and operators; a storage and its one tensor share their id."""

    storages: list[Storage] = field(default_factory=list[Storage])
    versions: list[Tensor] = field(default_factory=list[Tensor])
    homed_nbytes: dict[str, int] = field(default_factory=dict[str, int])
    operators: list[Operator] = field(default_factory=list[Operator])

    def add(self, name: str, nbytes: int, kind: StorageKind) -> str:
        """A storage, homed ones in a blob of their own."""
        homed = kind in HOMED_KINDS
        self.storages.append(Storage(name, nbytes, kind, blob=name if homed else None))
        if homed:
            self.homed_nbytes[name] = nbytes
        return name

    def weight(self, name: str, nbytes: int) -> str:
        """A weight."""
        return self.add(name, nbytes, StorageKind.WEIGHT)

    def call(self, name: str, inputs: Sequence[str], nbytes: int, ns: int, *, gradient: bool = False) -> str:
        """An operator with one result of `nbytes`; returns the result."""
        out = self.add(f"{name}:0", nbytes, StorageKind.GRADIENT if gradient else StorageKind.ACTIVATION)
        self.operators.append(Operator(name, "Any", tuple(inputs), (out,), measured_ns=ns))
        return out

    def update(self, name: str, inputs: Sequence[str], written: Sequence[str], ns: int) -> None:
        """An operator that writes in place: a new version of each storage in `written`."""
        sizes = [self.homed_nbytes[s] for s in written]
        self.versions += [Tensor(f"{s}'", "uint8", (n,), s, n) for s, n in zip(written, sizes, strict=True)]
        self.operators.append(Operator(name, "Update", tuple(inputs), tuple(f"{s}'" for s in written), measured_ns=ns))

    def graph(self, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        """What was gathered."""
        tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in self.storages)
        return Graph(
            name,
            tuple(self.storages),
            tensors + tuple(self.versions),
            tuple(self.operators),
            tuple(inputs),
            tuple(outputs),
        )


def _size(layer: int, *, alike: bool = False) -> int:
    """A layer's width in steps of 1 to 4, without a short period; or, of layers that are alike, 2."""
    return 2 if alike else 1 + (layer * layer * 7 + 3 * layer) % 97 * 3 // 96


def inference(operators: int, *, alike: bool = False) -> Graph:
    """A transformer, ten operators a layer: two norms, attention, a gated product, two skips."""
    w = _Writer()
    x = w.add("x", 256 * KIB, StorageKind.INPUT)
    first = x
    layer = 0
    while len(w.operators) < operators:
        x = _block(w, f"l{layer}", x, _size(layer, alike=alike))
        layer += 1
    return w.graph(f"inference-{operators}", (first,), (x,))


def _block(w: _Writer, name: str, x: str, scale: int) -> str:
    wide, ns = scale * MIB, 20_000 * scale
    a = w.call(f"{name}.norm1", (x, w.weight(f"{name}.n1", 16 * KIB)), 256 * KIB, 2_000)
    q = w.call(f"{name}.qkv", (a, w.weight(f"{name}.wqkv", 3 * wide)), 768 * KIB, 3 * ns)
    s = w.call(f"{name}.scores", (q,), 512 * KIB, ns)
    s = w.call(f"{name}.mix", (s, q), 256 * KIB, ns)
    s = w.call(f"{name}.proj", (s, w.weight(f"{name}.wo", wide)), 256 * KIB, ns)
    x = w.call(f"{name}.add1", (x, s), 256 * KIB, 2_000)
    a = w.call(f"{name}.norm2", (x, w.weight(f"{name}.n2", 16 * KIB)), 256 * KIB, 2_000)
    u = w.call(f"{name}.up", (a, w.weight(f"{name}.w1", 4 * wide)), 1024 * KIB, 4 * ns)
    d = w.call(f"{name}.down", (u, w.weight(f"{name}.w2", 4 * wide)), 256 * KIB, 4 * ns)
    return w.call(f"{name}.add2", (x, d), 256 * KIB, 2_000)


def branching(operators: int) -> Graph:
    """Blocks of four branches of unequal depth, joined; every eighth block also reads one from long before."""
    w = _Writer()
    x = first = w.add("x", MIB, StorageKind.INPUT)
    kept: list[str] = []
    block = 0
    while len(w.operators) < operators:
        scale = _size(block)
        ends = [_branch(w, f"b{block}.{k}", x, scale, depth) for k, depth in enumerate((1, 2, 3, 5))]
        more = (kept[len(kept) * 3 // 5],) if block % 8 == 7 else ()
        x = w.call(f"b{block}.join", (*ends, *more), MIB, 5_000)
        kept.append(x)
        block += 1
    return w.graph(f"branching-{operators}", (first,), (x,))


def _branch(w: _Writer, name: str, x: str, scale: int, depth: int) -> str:
    for i in range(depth):
        weight = w.weight(f"{name}.w{i}", scale * 256 * KIB)
        x = w.call(f"{name}.conv{i}", (x, weight), 512 * KIB * (1 + i % 2), 15_000 * scale)
    return x


def training(operators: int, *, alike: bool = False) -> Graph:
    """Layers of three operators forward, their backward in reverse, and an update of each weight and its two states
    in place: about eight operators a layer."""
    w = _Writer()
    x = first = w.add("x", 512 * KIB, StorageKind.INPUT)
    layers = max(1, operators // 8)
    saved: list[tuple[int, str, str, str]] = []
    for i in range(layers):
        scale = _size(i, alike=alike)
        for name in ("w", "m", "v"):
            kind = StorageKind.WEIGHT if name == "w" else StorageKind.OPTIMIZER_STATE
            w.add(f"{name}{i}", scale * MIB, kind)
        h = w.call(f"f{i}", (x, f"w{i}"), scale * 512 * KIB, 20_000 * scale)
        a = w.call(f"act{i}", (h,), scale * 512 * KIB, 3_000)
        saved.append((scale, x, h, a))
        x = w.call(f"add{i}", (x, a), 512 * KIB, 2_000)
    grad = w.call("loss", (x,), 512 * KIB, 2_000, gradient=True)
    for i in reversed(range(layers)):
        scale, below, h, _ = saved[i]
        dh = w.call(f"dact{i}", (grad, h), scale * 512 * KIB, 4_000, gradient=True)
        dw = w.call(f"dw{i}", (dh, below), scale * MIB, 20_000 * scale, gradient=True)
        dx = w.call(f"dx{i}", (dh, f"w{i}"), 512 * KIB, 20_000 * scale, gradient=True)
        grad = w.call(f"dadd{i}", (grad, dx), 512 * KIB, 2_000, gradient=True)
        w.update(f"u{i}", (dw, f"w{i}", f"m{i}", f"v{i}"), (f"w{i}", f"m{i}", f"v{i}"), 6_000 * scale)
    return w.graph(f"training-{operators}", (first,), (grad,))


KINDS: dict[str, Callable[[int], Graph]] = {"inference": inference, "training": training, "branching": branching}


def machine_for(graph: Graph, capacity_nbytes: int, *, moved_share: float = 0.5) -> Machine:
    """Two tiers, both directions alike: moving `moved_share` of the graph's homed bytes takes as long as computing."""
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    seconds = sum(op.measured_ns or 0 for op in graph.operators) / 1e9
    rate = max(1e6, moved_share * homed / seconds)
    return Machine(
        "scale",
        (
            Tier("hbm", TierKind.HBM, capacity_nbytes),
            Tier("dram", TierKind.DRAM, max(4 * graph.nbytes, 1 << 40), alignment=4 * KIB),
        ),
        (Link("dram", "hbm", rate), Link("hbm", "dram", rate)),
        (Unit("gpu", "hbm", (("float32", 1e13),), 1e12),),
    )
