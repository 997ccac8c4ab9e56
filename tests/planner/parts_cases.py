"""Modules lowered to operators, and what must hold of their parts."""

from __future__ import annotations

from typing import Any

from torch import nn

from tensorstow.ir.graph import Graph, Operator
from tensorstow.planner.pytorch import (
    ModuleLowered,
    OpLowered,
    lower_module,
)
from tensorstow.planner.validate import faults

from ..graphs import machine

UNIT = machine(1 << 30).units[0]


def lower(module: nn.Module, *args: Any, **kwargs: Any) -> OpLowered:
    return lower_module(module.eval(), args, kwargs, name="model")


def weights_of(part: Operator, graph: Graph) -> list[str]:
    """The weights among the inputs of a part."""
    return [t for t in part.inputs if graph.tensor[t].storage is not None]


def check(lowered: OpLowered, made: ModuleLowered) -> None:
    """What holds of all parts, derived from the operators alone."""
    graph, program = made.graph, made.program
    assert not list(faults(graph, machine(1 << 30)))
    placed = {p.tensor for p in program.parameters}
    assert placed == {s.id for s in graph.storages} == {b.blob for b in program.blobs}
    assert all(b.nbytes == graph.storage[b.blob].nbytes for b in program.blobs)
    looked_up = {rows.blob for rows in program.lookups.values()}
    # A part reads what its operators read: walk through them once more, and begin anew where a weight is new.
    walked: list[list[str]] = []
    before = True
    for op in lowered.graph.operators:
        read = [s for s in lowered.graph.reads(op) if s in placed]
        if op.op_type == "aten.embedding.default" and op.inputs[0] in looked_up:
            if before:
                walked = []
            walked.append(["lookup"])
            before = False
        elif not walked:
            walked.append(read)
            before = not read
        elif set(read) - set(walked[-1]) and not before:
            walked.append(read)
        else:
            walked[-1] = list(dict.fromkeys([*walked[-1], *read]))
            before = before and not read
    assert [weights_of(o, graph) if o.id not in program.lookups else ["lookup"] for o in graph.operators] == walked
    assert list(program.calls) == [o.id for o in graph.operators]
