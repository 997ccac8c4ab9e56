"""Small graphs and machines made by hand, for tests of what stands above them."""

from __future__ import annotations

from tensorstow.ir.graph import HOMED_KINDS, Graph, Operator, Storage, StorageKind, Tensor
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


def training(layers: list[int], *, activation: int = 4 * KIB, ns: int = 1000) -> Graph:
    """A chain, its backward pass, and an optimizer that updates each weight and its one state in place.

    Layer i has a weight of `layers[i]` bytes; its gradient has as many, and so has the optimizer's state.
    """
    storages, tensors, forward, backward, update = [], [], list[Operator](), list[Operator](), list[Operator]()

    def add(name: str, nbytes: int, kind: StorageKind) -> str:
        storages.append(Storage(name, nbytes, kind, blob=name if kind in HOMED_KINDS else None))
        tensors.append(_tensor(name, nbytes))
        return name

    value = add("x", activation, StorageKind.INPUT)
    values = [value]
    for i, nbytes in enumerate(layers):
        add(f"w{i}", nbytes, StorageKind.WEIGHT)
        add(f"m{i}", nbytes, StorageKind.OPTIMIZER_STATE)
        value = add(f"a{i}", activation, StorageKind.ACTIVATION)
        forward.append(Operator(f"f{i}", "Gemm", (values[-1], f"w{i}"), (value,), measured_ns=ns))
        values.append(value)
    grad = add("dy", activation, StorageKind.INPUT)
    for i, nbytes in reversed(list(enumerate(layers))):
        weight_grad = add(f"g{i}", nbytes, StorageKind.GRADIENT)
        below = add(f"d{i}", activation, StorageKind.GRADIENT if i else StorageKind.OUTPUT)
        backward.append(
            Operator(
                f"b{i}", "Any", (grad, f"w{i}", values[i], values[i + 1]), (below, weight_grad), measured_ns=2 * ns
            )
        )
        new = [Tensor(f"{s}{i}'", "float32", (nbytes // 4,), f"{s}{i}", nbytes) for s in "wm"]
        tensors.extend(new)
        update.append(Operator(f"u{i}", "Any", (weight_grad, f"w{i}", f"m{i}"), (new[0].id, new[1].id), measured_ns=ns))
        grad = below
    operators = (*forward, *backward, *update)
    return Graph("training", tuple(storages), tuple(tensors), operators, ("x", "dy"), (grad,))


def _tensor(name: str, nbytes: int) -> Tensor:
    return Tensor(name, "float32", (nbytes // 4,), name, nbytes)
