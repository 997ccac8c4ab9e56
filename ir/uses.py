"""When each storage is read and written, in steps of a given order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph


@dataclass(frozen=True, slots=True)
class Uses:
    """Steps, ascending and distinct, that write a storage and that touch (read or write) it."""

    writes: tuple[int, ...]
    touches: tuple[int, ...]


def storage_uses(graph: Graph, order: Sequence[str]) -> dict[str, Uses]:
    """Uses of every storage that some step touches or that is a graph input or output."""
    writes: dict[str, list[int]] = {}
    touches: dict[str, list[int]] = {s: [] for s in graph.storages_of(graph.inputs + graph.outputs)}
    for step, op_id in enumerate(order):
        op = graph.operator[op_id]
        for s in graph.writes(op):
            writes.setdefault(s, []).append(step)
        for s in graph.touches(op):
            touches.setdefault(s, []).append(step)
    return {s: Uses(tuple(writes.get(s, ())), tuple(steps)) for s, steps in touches.items()}
