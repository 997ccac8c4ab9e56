"""What formulas cannot count before the model has run: sizes and numbers of rounds that depend on data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto

from ...ir.graph import Graph
from ...ir.program import Program
from .bodies import bodies_of, constant_of, count_rounds

_MARK = "random:"


@dataclass(frozen=True, slots=True)
class Uncounted:
    """`values` are results of operators that have no size before the run: their memory lies outside the plan, and
    operators take no time for them. `loops` are operators with a Loop that runs as often as data say: it counts as one
    round. Both by id, in the order of the graph."""

    values: tuple[str, ...]
    loops: tuple[str, ...]

    @property
    def text(self) -> str | None:
        """What is to be told of it; None where everything is counted."""
        parts: list[str] = []
        if self.values:
            parts.append(
                f"{len(self.values)} results have no size before the run ('{self.values[0]}' first): their memory is "
                "beside the plan"
            )
        if self.loops:
            parts.append(f"{len(self.loops)} loops count as one round ('{self.loops[0]}' first)")
        return "; ".join(parts) + "; --profile measures the times" if parts else None


def uncounted(graph: Graph, program: Program) -> Uncounted:
    """What the times and sizes of `graph` leave out. An operator that was measured leaves no round out."""
    made = [t for op in graph.operators for t in op.outputs]
    loops = [
        op.id
        for op in graph.operators
        if op.op_type.removeprefix(_MARK) in ("Loop", "If", "Scan")
        and op.measured_ns is None
        and op.id in program.kernels
        if _unknown(program.models[program.kernels[op.id]])
    ]
    return Uncounted(tuple(t for t in made if graph.tensor[t].storage is None), tuple(loops))


def _unknown(content: bytes) -> bool:
    graph = onnx.load_model_from_string(content).graph
    return any(_unknown_rounds(graph.node, {t.name: t for t in graph.initializer}))


def _unknown_rounds(nodes: Iterable[NodeProto], constants: Mapping[str, TensorProto]) -> Iterator[bool]:
    """For each Loop among some nodes and inside them, whether its rounds depend on data."""
    known = dict(constants)
    found = list(nodes)
    for node in found:
        constant = constant_of(node)
        if constant is not None:
            known[node.output[0]] = constant
    for node in found:
        if node.op_type == "Loop":
            yield count_rounds(node, known, ()) is None
        for body in bodies_of(node):
            yield from _unknown_rounds(body.node, known | {t.name: t for t in body.initializer})
