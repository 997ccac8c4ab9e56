"""Times of a pass around its experts: which operators compute them, and what stands between two layers of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.graph import Graph
from ...ir.machine import Unit
from ...ir.program import ExpertLayer
from ..costs import duration_ns
from .experts import expert_parameters
from .parts import ModuleLowered


@dataclass(frozen=True, slots=True)
class Pace:
    """Nanoseconds of a pass by layer with experts: `before_ns` since the layer before it was done (of the first one:
    since the last one of the pass before), `experts_ns` for all that is computed with experts."""

    before_ns: tuple[int, ...]
    experts_ns: tuple[int, ...]


def expert_operators(found: ModuleLowered, layers: Sequence[ExpertLayer]) -> tuple[tuple[int, ...], ...]:
    """By layer, the numbers of the operators that compute its experts; `found` still has these as their operands.

    Experts of a list are nobody's operands: they count in the first operator of the module that calls them.
    """
    tensor = {name: p.tensor for p in found.program.parameters for name in p.names}
    calls = [found.program.calls.get(op.id) for op in found.graph.operators]
    result: list[tuple[int, ...]] = []
    for layer in layers:
        held = {tensor[name] for name in expert_parameters(layer) if name in tensor}
        readers = tuple(i for i, op in enumerate(found.graph.operators) if not held.isdisjoint(op.inputs))
        owner = layer.module.rpartition(".")[0]
        result.append(readers or ((calls.index(owner) if owner in calls else 0),))
    return tuple(result)


def pace_of(found: ModuleLowered, layers: Sequence[ExpertLayer], unit: Unit) -> Pace:
    """What a pass of `found` takes on `unit` when no expert is waited for."""
    durations = [duration_ns(op, unit) for op in found.graph.operators]
    computing = expert_operators(found, layers)
    experts = tuple(sum(durations[i] for i in ops) for ops in computing)
    before: list[int] = []
    for number, ops in enumerate(computing):
        last = computing[number - 1][-1]
        between = range(last + 1, ops[0]) if number else (*range(last + 1, len(durations)), *range(ops[0]))
        before.append(sum(durations[i] for i in between))
    return Pace(tuple(before), experts)


def with_waits(graph: Graph, operators: Sequence[tuple[int, ...]], wait_ns: Sequence[int], unit: Unit) -> Graph:
    """`graph` with what each layer is waited for in the time of its first operator of `operators`."""
    more: dict[int, int] = {}
    for ops, ns in zip(operators, wait_ns, strict=True):
        more[ops[0]] = more.get(ops[0], 0) + ns
    changed = tuple(
        replace(op, measured_ns=duration_ns(op, unit) + more[i]) if more.get(i) else op
        for i, op in enumerate(graph.operators)
    )
    return replace(graph, operators=changed)
