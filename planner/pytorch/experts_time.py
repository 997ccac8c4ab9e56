"""Times of a pass around its experts: which operators compute them, and what stands between two layers of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ...ir.graph import Graph, Operator
from ...ir.machine import Unit
from ...ir.program import ExpertLayer
from ..costs import duration_ns
from .experts import expert_parameters
from .lowered import OpLowered
from .parts import ModuleLowered, part_spans


class LoopTime(Protocol):
    """Nanoseconds of a call of a layer's loop over experts, as it was measured (`runtime.module.experts_loop`)."""

    @property
    def fixed_ns(self) -> float:
        """Of a call."""
        ...

    @property
    def each_ns(self) -> float:
        """For every expert that its tokens ask for."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """Nanoseconds of a pass by layer with experts: `before_ns` since the layer before it was done (of the first one:
    since the last one of the pass before); `fixed_ns` for what a call of its experts takes however many are asked for,
    and `each_ns` for each of these."""

    before_ns: tuple[int, ...]
    fixed_ns: tuple[float, ...]
    each_ns: tuple[float, ...]


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


def without_products(
    found: ModuleLowered, lowered: OpLowered, layers: Sequence[ExpertLayer], looked_up: frozenset[str], unit: Unit
) -> ModuleLowered:
    """`found`, the parts of `lowered`, without the times of what the layers' own modules were traced as: the loop that
    runs in their place is timed by itself."""
    inside = {layer.module for layer in layers}
    operators: list[Operator] = []
    for op, span in zip(found.graph.operators, part_spans(lowered, looked_up), strict=True):
        traced = [lowered.graph.operators[i] for i in span]
        ns = sum(duration_ns(o, unit) for o in traced if lowered.calls[o.id].module in inside)
        operators.append(replace(op, measured_ns=max(1, duration_ns(op, unit) - ns)) if ns else op)
    return replace(found, graph=replace(found.graph, operators=tuple(operators)))


def pace_of(
    found: ModuleLowered,
    layers: Sequence[ExpertLayer],
    unit: Unit,
    asked: Sequence[float],
    loops: Sequence[LoopTime] | None = None,
) -> Pace:
    """What a pass of `found` takes on `unit` when no expert is waited for.

    With `loops`, `found` is one `without_products`, and these are its experts' times. Else its operators' times are
    theirs, for as many experts as are `asked` for in the mean of each layer.
    """
    durations = [duration_ns(op, unit) for op in found.graph.operators]
    computing = expert_operators(found, layers)
    if loops is not None:  # an expert's operators are those that come between now
        computing = tuple(ops[:1] for ops in computing)
    before: list[int] = []
    for number, ops in enumerate(computing):
        last = computing[number - 1][-1]
        begin = last if loops is not None else last + 1
        between = range(begin, ops[0]) if number else (*range(begin, len(durations)), *range(ops[0]))
        before.append(sum(durations[i] for i in between))
    if loops is not None:
        return Pace(tuple(before), tuple(x.fixed_ns for x in loops), tuple(x.each_ns for x in loops))
    each = tuple(sum(durations[i] for i in ops) / max(n, 1.0) for ops, n in zip(computing, asked, strict=True))
    return Pace(tuple(before), (0.0,) * len(each), each)


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
