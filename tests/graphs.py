"""Small graphs and machines made by hand, for tests of what stands above them."""

from __future__ import annotations

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit

KIB = 1024


def machine(capacity_nbytes: int, *, bytes_per_s: float = 1e9, alignment: int = 4096) -> Machine:
    """One unit on 'dram' over 'ssd', both links at `bytes_per_s`, no latency."""
    return Machine(
        name="small",
        tiers=(
            Tier("dram", TierKind.DRAM, capacity_nbytes),
            Tier("ssd", TierKind.SSD, 1 << 40, alignment=alignment),
        ),
        links=(Link("ssd", "dram", bytes_per_s), Link("dram", "ssd", bytes_per_s)),
        units=(Unit("cpu", "dram", (("float32", 1e9),), 1e12),),
    )


def chain(weights: list[int], *, activation: int = 4 * KIB, ns: int = 1000, skip: int | None = None) -> Graph:
    """x -> op0 -> a0 -> op1 -> ... -> y; op i has a weight of `weights[i]` bytes and takes `ns` nanoseconds.

    With `skip`, the last operator also reads activation a0, which then lives through the whole pass.
    """
    last = len(weights) - 1
    storages = [Storage("x", activation, StorageKind.INPUT)]
    tensors = [_tensor("x", activation)]
    operators: list[Operator] = []
    for i, nbytes in enumerate(weights):
        out = "y" if i == last else f"a{i}"
        storages += [
            Storage(f"w{i}", nbytes, StorageKind.WEIGHT, blob=f"w{i}"),
            Storage(out, activation, StorageKind.OUTPUT if i == last else StorageKind.ACTIVATION),
        ]
        tensors += [_tensor(f"w{i}", nbytes), _tensor(out, activation)]
        source = "x" if i == 0 else f"a{i - 1}"
        inputs = (source, f"w{i}") + (("a0",) if skip and i == last else ())
        operators.append(Operator(f"op{i}", "Gemm", inputs, (out,), measured_ns=ns))
    return Graph("chain", tuple(storages), tuple(tensors), tuple(operators), ("x",), ("y",))


def _tensor(name: str, nbytes: int) -> Tensor:
    return Tensor(name, "float32", (nbytes // 4,), name, nbytes)
