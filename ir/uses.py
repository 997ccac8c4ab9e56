"""When each storage is read and written, in steps of a given order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph


@dataclass(frozen=True, slots=True)
class Uses:
    """Steps, ascending and distinct, that write a storage, that touch (read or write) it, and that read it."""

    writes: tuple[int, ...]
    touches: tuple[int, ...]
    reads: tuple[int, ...]


def boundary_storages(graph: Graph) -> tuple[frozenset[str], frozenset[str]]:
    """Storages behind the graph's inputs and behind its outputs; worked out once for each graph."""
    known = vars(graph)
    if "_boundary" not in known:  # as functools.cached_property does
        known["_boundary"] = frozenset(graph.storages_of(graph.inputs)), frozenset(graph.storages_of(graph.outputs))
    return known["_boundary"]


def storage_uses(graph: Graph, order: Sequence[str]) -> dict[str, Uses]:
    """Uses of every storage that some step touches or that is a graph input or output."""
    writes: dict[str, list[int]] = {}
    reads: dict[str, list[int]] = {}
    touches: dict[str, list[int]] = {s: [] for s in graph.storages_of(graph.inputs + graph.outputs)}
    for step, op_id in enumerate(order):
        op = graph.operator[op_id]
        read, written = graph.reads(op), graph.writes(op)
        for s in read:
            reads.setdefault(s, []).append(step)
        for s in written:
            writes.setdefault(s, []).append(step)
        for s in dict.fromkeys(read + written):
            touches.setdefault(s, []).append(step)
    return {s: Uses(tuple(writes.get(s, ())), tuple(steps), tuple(reads.get(s, ()))) for s, steps in touches.items()}
