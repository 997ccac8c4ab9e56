"""Graphs in which something waits while more is needed, and machines that hold a share of it."""

from __future__ import annotations

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.planner.instance import make_instance
from tensorstow.planner.strategies import Effort

from ..graphs import KIB, machine

EFFORT = Effort(time_limit_s=6.0)


def waiting(*, bulge: int = 96, ns: int = 1000) -> Graph:
    """x (64 bytes) -> make -> a (64 KiB); x -> b -> c, `bulge` KiB each, -> d; the last operator reads a and d."""
    sizes = {"x": 1 / 16, "a": 64, "b": bulge, "c": bulge, "d": 4, "y": 4}
    kinds = {"x": StorageKind.INPUT, "y": StorageKind.OUTPUT}
    storages = tuple(Storage(s, round(n * KIB), kinds.get(s, StorageKind.ACTIVATION)) for s, n in sizes.items())
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    calls = (("make", "x", "a"), ("widen", "x", "b"), ("bend", "b", "c"), ("narrow", "c", "d"))
    operators = tuple(Operator(name, "Any", (i,), (o,), measured_ns=ns) for name, i, o in calls)
    last = Operator("join", "Any", ("a", "d"), ("y",), measured_ns=ns)
    return Graph("waiting", storages, tensors, (*operators, last), ("x",), ("y",))


def budget(graph: Graph, room: float, rate: float) -> Machine:
    """A machine with this share of the room between the largest working set and everything."""
    roomy = make_instance(graph, machine(1 << 40, bytes_per_s=rate))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return machine(least + int(room * (most - least)) + 1, bytes_per_s=rate)
