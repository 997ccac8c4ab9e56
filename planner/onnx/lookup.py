"""Row gathers that the weight store can do itself: of an embedding table a pass reads a few rows, not the table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from math import prod

import onnx

from ...ir.graph import Graph, Operator
from ...ir.machine import Link
from ...ir.program import Lookup
from .lower import Lowered

GATHER = "Gather"
LOOKUP = "Lookup"
WHOLE_NUMBERS = ("int32", "int64")


def tables(lowered: Lowered) -> dict[str, tuple[str, ...]]:
    """Storages that are only ever gathered by rows, with the operators that do it: what can stay in the store."""
    graph, users = lowered.graph, _users(lowered.graph)
    found: dict[str, tuple[str, ...]] = {}
    for storage, operators in users.items():
        if graph.storage[storage].homed and all(_picks_rows(lowered, op, storage) for op in operators):
            found[storage] = tuple(op.id for op in operators)
    return found


def _users(graph: Graph) -> dict[str, list[Operator]]:
    users: dict[str, list[Operator]] = {}
    for op in graph.operators:
        for storage in graph.touches(op):
            users.setdefault(storage, []).append(op)
    return users


def _picks_rows(lowered: Lowered, op: Operator, storage: str) -> bool:
    """Whether `op` gathers whole rows of `storage`, which it reads as its table, and nothing else of it."""
    graph = lowered.graph
    if op.op_type != GATHER or len(op.inputs) != 2 or graph.tensor[op.inputs[0]].storage != storage:
        return False
    table, indices, output = (graph.tensor[t] for t in (*op.inputs, op.outputs[0]))
    if table.shape is None or indices.shape is None or output.shape is None or indices.storage == storage:
        return False
    whole = table.offset == 0 and table.nbytes == graph.storage[storage].nbytes > 0
    in_bytes = whole and table.nbytes % table.shape[0] == 0  # rows of packed elements may share a byte
    return in_bytes and indices.dtype in WHOLE_NUMBERS and _axis(lowered, op) in (0, -len(table.shape))


def _axis(lowered: Lowered, op: Operator) -> int:
    model = onnx.load_model_from_string(lowered.program.models[lowered.program.kernels[op.id]])
    return next((int(a.i) for a in model.graph.node[0].attribute if a.name == "axis"), 0)


def apply_lookups(lowered: Lowered, storages: Collection[str], link: Link) -> Lowered:
    """`lowered` with the gathers of `storages` done by the store; `link` tells what reading a row takes."""
    found = tables(lowered)
    chosen = {op: s for s in storages for op in found[s]}
    graph, program = lowered.graph, lowered.program
    operators: list[Operator] = []
    lookups = dict(program.lookups)
    for op in graph.operators:
        if op.id in chosen:
            table = graph.tensor[op.inputs[0]]
            rows = table.shape[0] if table.shape else 0
            row_nbytes = table.nbytes // rows
            blob = graph.storage[chosen[op.id]].blob or chosen[op.id]
            lookups[op.id] = Lookup(blob, rows, row_nbytes)
            operators.append(_as_lookup(op, prod(graph.tensor[op.inputs[1]].shape or ()), row_nbytes, link))
        else:
            operators.append(op)
    kernels = {op: k for op, k in program.kernels.items() if op not in chosen}
    return replace(
        lowered,
        graph=replace(graph, operators=tuple(operators)),
        program=replace(program, kernels=kernels, lookups=lookups),
    )


def _as_lookup(op: Operator, picked: int, row_nbytes: int, link: Link) -> Operator:
    """The operator without its table; each row is a read of its own."""
    return replace(
        op,
        op_type=LOOKUP,
        inputs=op.inputs[1:],
        cost_class="lookup",
        moved_nbytes=2 * picked * row_nbytes,
        workspace_nbytes=0,
        measured_ns=picked * link.transfer_ns(row_nbytes),
    )
