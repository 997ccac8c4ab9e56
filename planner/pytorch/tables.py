"""Embedding tables: of a large one a pass needs a few rows, which the store can read without the table in memory."""

from __future__ import annotations

from math import prod

from ...ir.graph import Operator
from ...ir.machine import Machine
from ..lookups import better_left, store_link
from .lowered import OpLowered, Weight
from .placed import placed_weights

LOOKUP = "Lookup"
EMBEDDING = "aten.embedding.default"


def tables(lowered: OpLowered) -> dict[str, tuple[str, ...]]:
    """Placed weights that are the table of an `nn.Embedding`, with the operators that look rows up in it.

    A tied table may have other readers: for these it is resident.
    """
    placed = placed_weights(lowered)
    found: dict[str, tuple[str, ...]] = {}
    for op in lowered.graph.operators:
        if op.op_type == EMBEDDING and op.inputs[0] in placed and _is_embedding(lowered, op, placed[op.inputs[0]]):
            found[op.inputs[0]] = (*found.get(op.inputs[0], ()), op.id)
    return found


def _is_embedding(lowered: OpLowered, op: Operator, table: Weight) -> bool:
    call = lowered.calls[op.id]
    own = f"{call.module}.weight" if call.module else "weight"
    known = lowered.graph.tensor[op.inputs[1]].shape is not None if len(op.inputs) > 1 else False
    return known and table.strides is None and call.module in lowered.embeddings and own in table.names


def rows_picked(lowered: OpLowered, operator: str) -> int:
    """Rows that an embedding reads, repetitions counted."""
    return prod(lowered.graph.tensor[lowered.graph.operator[operator].inputs[1]].shape or ())


def choose_lookups(lowered: OpLowered, machine: Machine) -> frozenset[str]:
    """The tables to leave in the store: large ones against the budget of the machine's compute tier, of which rows
    are read faster than the whole. None where everything fits twice over."""
    budget = machine.tier[machine.units[0].tier].usable_nbytes
    if sum(w.nbytes for w in placed_weights(lowered).values()) <= budget // 2:
        return frozenset()
    link = store_link(machine)
    chosen: set[str] = set()
    for storage, operators in tables(lowered).items():
        table = lowered.weights[storage]
        picked = sum(rows_picked(lowered, op) for op in operators)
        if better_left(table.nbytes, picked, table.nbytes // table.shape[0], budget, link):
            chosen.add(storage)
    return frozenset(chosen)
