"""Graphs and machines from a seed: what a planner may meet, without a network behind it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.planner.instance import make_instance
from tests.graphs import KIB, chain, machine, training


@dataclass(frozen=True, slots=True)
class Posed:
    """A graph on a machine, and for which mode it is planned."""

    graph: Graph
    machine: Machine
    mode: str


def posed(rng: np.random.Generator) -> Posed:
    """A chain, a training step or a program of any form, on a machine of two or three tiers whose fast one holds from a
    little less than the least working set to a little more than everything."""
    kind = rng.choice(["chain", "training", "program"], p=[0.25, 0.2, 0.55])
    ns = int(10 ** rng.uniform(1, 5.5))
    count = int(rng.integers(1, 12))
    activation = int(rng.integers(1, 24)) * KIB
    if kind == "chain":
        weights = [int(rng.integers(1, 64)) * KIB for _ in range(count)]
        graph = chain(weights, activation=activation, ns=ns, skip=1 if rng.random() < 0.4 and count > 1 else None)
    elif kind == "training":
        layers = [int(rng.integers(1, 48)) * KIB for _ in range(1 + count // 3)]
        graph = training(layers, activation=activation, ns=ns)
    else:
        graph = program(rng, count)
    return Posed(graph, box(rng, graph), "training" if kind == "training" else "inference")


def program(rng: np.random.Generator, count: int) -> Graph:
    """`count` operators that read some earlier values and some weights, and write new values, views of a part of one,
    or a value in place. Weights are shared, some values are empty, some operators want workspace."""
    nbytes = {"x": int(rng.integers(1, 40 * KIB))}
    storages = [Storage("x", nbytes["x"], StorageKind.INPUT)]
    weights = [f"w{i}" for i in range(int(rng.integers(0, 6)))]
    for name in weights:
        nbytes[name] = int(rng.integers(1, 64 * KIB))
        kind = StorageKind.CONSTANT if rng.random() < 0.2 else StorageKind.WEIGHT
        storages.append(Storage(name, nbytes[name], kind, blob=name))
    tensors = [Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages]
    at = {"x": "x"}  # values that may be read, and the storage of each
    operators: list[Operator] = []
    for i in range(count):
        reads = _some(rng, list(at), 3) or ["x" if "x" in at else next(iter(at))]
        used = _some(rng, weights, 2)
        made: list[str] = []
        for k in range(int(rng.integers(1, 3))):
            name, target = f"v{i}_{k}", reads[0]
            if k == 0 and i and target != "x" and rng.random() < 0.15:  # in place: the earlier names are gone
                storage = at[target]
                at = {n: s for n, s in at.items() if s != storage}
            else:
                storage = name
                nbytes[name] = 0 if rng.random() < 0.03 else int(rng.integers(1, 30 * KIB))
                storages.append(Storage(name, nbytes[name], StorageKind.ACTIVATION))
            tensors.append(Tensor(name, "uint8", (nbytes[storage],), storage, nbytes[storage]))
            at[name] = storage
            made.append(name)
            if nbytes[storage] > 64 and rng.random() < 0.15:
                lo = int(rng.integers(0, nbytes[storage]))
                size = int(rng.integers(1, nbytes[storage] - lo + 1))
                tensors.append(Tensor(f"{name}.part", "uint8", (size,), storage, size, lo))
                at[f"{name}.part"] = storage
        workspace = int(rng.integers(1, 20 * KIB)) if rng.random() < 0.2 else 0
        ns = int(10 ** rng.uniform(0, 5))
        operators.append(
            Operator(f"op{i}", "Any", (*reads, *used), tuple(made), workspace_nbytes=workspace, measured_ns=ns)
        )
    values = [v for v in at if v != "x"]
    outputs = _some(rng, values, 2) or [operators[-1].outputs[0]]
    return Graph("program", tuple(storages), tuple(tensors), tuple(operators), ("x",), tuple(outputs))


def _some(rng: np.random.Generator, names: list[str], most: int) -> list[str]:
    """Up to `most` of the names, late ones more often."""
    if not names:
        return []
    weights = np.arange(1, len(names) + 1, dtype=float)
    count = min(int(rng.integers(0, most + 1)), len(names))
    return [str(n) for n in rng.choice(names, count, replace=False, p=weights / weights.sum())]


def box(rng: np.random.Generator, graph: Graph) -> Machine:
    """A machine for `graph`: capacities around what it needs, rates and latencies of any size."""
    roomy = make_instance(graph, machine(1 << 40))
    least, most = max(roomy.base_nbytes, default=0) + roomy.workspace_nbytes, roomy.peak_of_all()
    capacity = max(1, int(least + rng.uniform(-0.05, 1.1) * max(most - least, 0)) + int(rng.integers(0, 4096)))
    reserve = int(rng.integers(0, 9000)) if rng.random() < 0.2 else 0
    fast = Tier("dram", TierKind.DRAM, capacity + reserve, reserve, alignment=int(rng.choice([1, 64, 4096])))
    unit = Unit("cpu", "dram", (("float32", 1e9),), 1e12, launch_s=float(rng.choice([0.0, 1e-6])))
    names = ["dram", "ssd"]
    tiers = [fast, Tier("ssd", TierKind.SSD, 1 << 40, alignment=4096)]
    if rng.random() < 0.2:
        homed = sum(s.nbytes for s in graph.storages if s.homed)
        tiers.insert(1, Tier("cxl", TierKind.DRAM, int(rng.uniform(0.1, 1.5) * (homed + 64 * KIB))))
        names.insert(1, "cxl")
    links: list[Link] = []
    for upper, lower in pairwise(names):
        up, down = (float(10 ** rng.uniform(6.5, 11)) for _ in range(2))
        latency = 0.0 if rng.random() < 0.5 else float(10 ** rng.uniform(-7, -4))
        channel = f"{upper}/{lower}" if rng.random() < 0.3 else None
        links.append(Link(lower, upper, up, latency, channel=channel))
        links.append(Link(upper, lower, down, latency, channel=channel))
    return Machine("random", tuple(tiers), tuple(links), (unit,))
