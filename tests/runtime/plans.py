"""Networks with plans by hand, and executors of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from tensorstow.ir.check import check
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan, Residency, Transfer
from tensorstow.runtime.onnx_executor import OnnxExecutor

from .build import Array, Net, machine

NOT_OURS = {"digest", "time", "moved", "peak"}  # kinds of violations that a plan by hand may have


def execute(net: Net, plan: Plan, at: Machine | None = None) -> OnnxExecutor:
    """An executor of `plan`, which the checker finds right."""
    at = at or machine()
    assert not [v for v in check(plan, net.graph(), at) if v.kind not in NOT_OURS]
    return OnnxExecutor(plan, net.graph(), net.program(), net.store(), at, scratch=net.folder)


def feed(seed: int = 1, shape: tuple[int, ...] = (8, 192)) -> dict[str, Array]:
    """The input of `mlp`."""
    return {"x:0": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}


def mlp(folder: Path, layers: int = 4, width: int = 192) -> Net:
    """y = relu(x W0) W1 ... with square weights of width * width floats (a multiple of 4 KiB from 32 on)."""
    random = np.random.default_rng(0)
    net = Net(folder)
    net.input("x", "float32", (8, width))
    last = "x"
    for i in range(layers):
        net.weight(f"w{i}", random.standard_normal((width, width), dtype=np.float32))
        net.activation(f"h{i}", (8, width))
        net.activation(f"a{i}", (8, width), output=i == layers - 1)
        net.op("MatMul", [last, f"w{i}"], [f"h{i}"])
        net.op("Relu", [f"h{i}"], [f"a{i}"])
        last = f"a{i}"
    return net


def streamed(net: Net, layers: int = 4, width: int = 192) -> Plan:
    """The plan of `mlp` with two weight slots, each weight read while the one before it is used; w0 wraps around."""
    total, size, small = 2 * layers, width * width * 4, 8 * width * 4
    stays, moves = list[Residency](), list[Transfer]()
    for i in range(layers):
        start = (2 * i - 1) % total  # when the weight two before was used
        offset = (i % 2) * size
        half = size // 2 // 4096 * 4096  # in two chunks
        for lo, hi in ((0, half), (half, size)):
            stays.append(Residency(f"w{i}", "dram", lo, hi, offset + lo, start, start + 2))
            moves.append(Transfer(f"w{i}", lo, hi, "ssd", "dram", start, start + 1))
    base, pitch = 2 * size, -(-small // 64) * 64
    stays.append(Residency("x", "dram", 0, small, base, 0, 1))
    for i in range(layers):
        stays.append(Residency(f"h{i}", "dram", 0, small, base + pitch, 2 * i, 2 * i + 2))
        stays.append(Residency(f"a{i}", "dram", 0, small, base + 2 * pitch, 2 * i + 1, min(2 * i + 3, total)))
    moves.sort(key=lambda t: t.after)
    return net.plan(stays, moves, base + 3 * pitch)


def forked(folder: Path, shape: tuple[int, ...] = (64, 48)) -> Net:
    """y = exp(relu(-x)) computed with a value that is used at once and again at the end."""
    net = Net(folder)
    net.input("x", "float32", shape)
    for name in "acbd":
        net.activation(name, shape)
    net.activation("y", shape, output=True)
    net.op("Neg", ["x"], ["a"])
    net.op("Relu", ["a"], ["c"])
    net.op("Exp", ["c"], ["b"])
    net.op("Neg", ["b"], ["d"])
    net.op("Add", ["a", "d"], ["y"])
    return net


def spilling(net: Net, *, lo: int = 0) -> Plan:
    """A plan of `forked`: `a` goes to disk while `b` is made in its place, and comes back elsewhere."""
    size = net.storages[0].nbytes
    place = {"x": 0, "b": 1, "c": 2, "d": 0}
    stays = [
        Residency("x", "dram", 0, size, 0, 0, 1),
        Residency("a", "dram", 0, size, size, 0, 2),
        Residency("a", "ssd", 0, size, 0, 1, 4),
        Residency("b", "dram", 0, size, place["b"] * size, 2, 4),
        Residency("c", "dram", 0, size, 2 * size, 1, 3),
        Residency("a", "dram", 0, size, 2 * size, 3, 5),
        Residency("d", "dram", 0, size, 0, 3, 5),
        Residency("y", "dram", 0, size, size, 4, 5),
    ]
    bounds = [0, lo, size] if lo else [0, size]
    moves = [Transfer("a", i, j, "dram", "ssd", 1, 2) for i, j in pairwise(bounds)]
    moves += [Transfer("a", i, j, "ssd", "dram", 3, 4) for i, j in pairwise(bounds)]
    return net.plan(stays, moves, 3 * size)
