"""Results of the backward over operands that nothing reads any more: one storage where there were two.

Autograd's graph is functional: each operator makes its result beside its operands, and the widest of them, over logits
of a large vocabulary, decide what the smallest budget is. Where an operator computes each element, or each row, from
the same element or row of an operand whose last use it is, its result may be written over that operand, as PyTorch's
own `out=` may be an operand: each element is read before it is written, by the same kernel, so the bits are the same.
In the graph the result is then a new version of the operand's storage.

Only operators behind the turn: what a pass may compute again must not be written twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload

from ...ir.graph import Graph, Operator, StorageKind
from .lowered import JointGraph, StepLowered

_aten = torch.ops.aten
BY_ELEMENTS = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.neg.default,
        _aten.gelu_backward.default,
        _aten.silu_backward.default,
        _aten.sigmoid_backward.default,
        _aten.tanh_backward.default,
        _aten.threshold_backward.default,
        _aten.leaky_relu_backward.default,
        _aten.elu_backward.default,
    }
)
"""One kernel from operands to result, without a temporary of their size: which might be put where the result belongs
while the operand there is still to be read. Where types differ there are such, so all must be of one type."""
BY_ROWS = frozenset({_aten._log_softmax_backward_data.default})
"""Of a row they read all, sum it, and then write element after element (aten/src/ATen/native/cpu/SoftMaxKernel.cpp);
over the last dimension only, and over the gradient, which is the first operand."""


def results_in_place(step: StepLowered, joint: JointGraph) -> StepLowered:
    """`step` with results of its backward in the storages of operands that end there. No operator is added or changed
    in what it computes; operands and results have the same form, are dense and fill their storages."""
    found = _Merging(step, {n.name: n for n in joint.module.graph.nodes}).run()
    if not found:
        return step
    old = step.graph
    tensors = tuple(replace(t, storage=found.get(t.storage or "", t.storage)) for t in old.tensors)
    graph = replace(old, tensors=tensors, storages=tuple(s for s in old.storages if s.id not in found))
    return replace(step, operators=replace(step.operators, graph=graph))


@dataclass
class _Merging:
    """`run` finds, by storage of a result, the storage in which it shall be."""

    step: StepLowered
    nodes: Mapping[str, fx.Node]

    def run(self) -> dict[str, str]:
        graph = self.step.graph
        into: dict[str, str] = {}
        last = _last_uses(graph)
        held = self.step.fixed | set(graph.storages_of((*graph.inputs, *graph.outputs)))
        turned = False
        for t, op in enumerate(graph.operators):
            turned = turned or op.id == self.step.turn
            pair = self._pair(op, held) if turned else None
            if pair is None:
                continue
            result, operands = pair
            for operand in operands:
                base = into.get(operand, operand)
                if last[base] == t and base != result:
                    into[result] = base
                    last[base] = last[result]
                    break
        return into

    def _pair(self, op: Operator, held: frozenset[str] | set[str]) -> tuple[str, list[str]] | None:
        """The storage of an operator's one result, and those of the operands over which it may be written."""
        node, graph = self.nodes.get(op.id), self.step.graph
        if node is None or not isinstance(node.target, OpOverload) or len(op.outputs) != 1:
            return None
        result, form = self._whole(op.outputs[0], held), graph.tensor[op.outputs[0]]
        if result is None or not (_by_rows(node) or node.target in BY_ELEMENTS):
            return None
        if any(graph.tensor[t].dtype != form.dtype for t in op.inputs) or (_by_rows(node) and not self._all_rows(op)):
            return None
        operands: list[str] = []
        for t in op.inputs[:1] if _by_rows(node) else op.inputs:
            tensor, storage = graph.tensor[t], self._whole(t, held)
            alone = sum(graph.tensor[x].storage == storage for x in op.inputs) == 1
            if storage is not None and alone and (tensor.dtype, tensor.shape) == (form.dtype, form.shape):
                operands.append(storage)
        return result, operands

    def _whole(self, tensor: str, held: frozenset[str] | set[str]) -> str | None:
        """The storage of a tensor that is all of an activation of the plan's, row by row; else None."""
        seen, graph = self.step.values.get(tensor), self.step.graph
        found = graph.tensor[tensor]
        if seen is None or found.storage is None or found.storage in held:
            return None
        storage, value = graph.storage[found.storage], self._value(seen.node, seen.index)
        plain = storage.kind is StorageKind.ACTIVATION and found.nbytes == storage.nbytes and found.offset == 0
        return storage.id if plain and isinstance(value, torch.Tensor) and value.is_contiguous() else None

    def _all_rows(self, op: Operator) -> bool:
        """Whether every operand is laid out row by row: others are copied first."""
        values = [self._value(v.node, v.index) for v in map(self.step.values.get, op.inputs) if v is not None]
        return len(values) == len(op.inputs) and all(isinstance(v, torch.Tensor) and v.is_contiguous() for v in values)

    def _value(self, node: str, index: int) -> Any:
        value = self.nodes[node].meta.get("val")
        return value[index] if isinstance(value, (tuple, list)) else value


def _by_rows(node: fx.Node) -> bool:
    if node.target not in BY_ROWS:
        return False
    dim, value = cast("int", node.args[2]), node.meta["val"]
    return dim in (-1, value.dim() - 1)


def _last_uses(graph: Graph) -> dict[str, int]:
    """By storage, the last operator that touches it."""
    return {s: t for t, op in enumerate(graph.operators) for s in graph.touches(op)}
