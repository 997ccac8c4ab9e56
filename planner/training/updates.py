"""The updates of an optimizer as operators of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from ...ir.errors import InputError
from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from ...ir.program import OptimizerProgram, Update
from .lowered import OptimizerCalls, StepLowered, UpdateCall

UPDATE = "update"
"""Type of the operators, and the beginning of their names: 'update:<parameter>'."""


def with_updates(step: StepLowered, optimizer: OptimizerCalls) -> StepLowered:
    """`step` with the update of each parameter that has a gradient, as soon as that is complete and no operator reads
    the parameter any more.

    An update reads the gradient, parameter and states. The gradient is then the step's own and given up behind it,
    unless the user gets the same memory as the gradient of something else: of `a + b` both gradients are one tensor. It
    writes parameter and states in place, as new tensors over the same bytes. Raises InputError for parameters that
    share memory without being one.
    """
    graph = step.graph
    parameter_of = {names[0]: s for s, names in step.parameters.items()}
    made, last = _makers(graph), _last_touches(graph)
    behind: dict[int, list[Operator]] = {}
    storages: list[Storage] = []
    tensors: list[Tensor] = []
    updates: list[Update] = []
    for call in optimizer.calls:
        parameter, gradient = parameter_of.get(call.names[0]), step.gradients.get(call.names[0])
        if gradient is None:
            continue
        if parameter is None:
            raise InputError(
                f"parameter '{call.names[0]}' is a part of memory that another parameter lies in, and {optimizer.kind} "
                "in a planned step updates each on its own; make it of a tensor of its own (clone), or plan without "
                "`optimizer`"
            )
        complete = made.get(graph.tensor[gradient].storage or "", -1)
        states = [(s, _state(call, s.name, s.dtype, s.shape)) for s in call.states]
        storages += [storage for _, (storage, _) in states]
        tensors += [tensor for _, (_, tensor) in states]
        held = (graph.tensor[parameter], *(tensor for _, (_, tensor) in states))
        operator, versions = _update(call, gradient, held)
        tensors += versions
        behind.setdefault(max(complete, last.get(parameter, -1)), []).append(operator)
        by_name = {s.name: tensor.id for s, (_, tensor) in states}
        updates.append(Update(operator.id, call.names, gradient, call.group, by_name))
    consumed = _consumed(step, updates)
    given_up = {u.gradient for u in updates if graph.tensor[u.gradient].storage in consumed}
    changed = replace(
        graph,
        storages=(*graph.storages, *storages),
        tensors=(*graph.tensors, *tensors),
        operators=_inserted(graph, behind),
        outputs=tuple(t for t in graph.outputs if t not in given_up),
    )
    return replace(
        step,
        operators=replace(step.operators, graph=changed),
        fixed=step.fixed - consumed,
        optimizer=OptimizerProgram(optimizer.kind, optimizer.groups, tuple(updates)),
    )


def _consumed(step: StepLowered, updates: Sequence[Update]) -> set[str]:
    """The storages of gradients that nobody gets behind their updates: the backward has made them for these alone."""
    graph, updated = step.graph, {u.names[0] for u in updates}
    kept = set(graph.touches(graph.operator[step.turn]))
    kept.update(graph.storages_of(g for name, g in step.gradients.items() if name not in updated))
    made = graph.storages_of(u.gradient for u in updates)
    return {s for s in made if s not in kept and graph.storage[s].kind is StorageKind.GRADIENT}


def _state(call: UpdateCall, name: str, dtype: str, shape: tuple[int, ...]) -> tuple[Storage, Tensor]:
    nbytes = prod(shape) * getattr(torch, dtype).itemsize
    storage = f"{name}:{call.names[0]}"
    return (
        Storage(storage, nbytes, StorageKind.OPTIMIZER_STATE, blob=storage),
        Tensor(storage, dtype, shape, storage, nbytes),
    )


def _update(call: UpdateCall, gradient: str, held: tuple[Tensor, ...]) -> tuple[Operator, list[Tensor]]:
    """The operator, and the tensors that it makes of what it changes."""
    name = f"{UPDATE}:{call.names[0]}"
    versions = [replace(t, id=f"{name}:{t.id}") for t in held]
    operator = Operator(
        id=name,
        op_type=UPDATE,
        inputs=(gradient, *(t.id for t in held)),
        outputs=tuple(t.id for t in versions),
        cost_class=call.cost.cost_class,
        dtype=call.cost.dtype,
        flops=call.cost.flops,
        moved_nbytes=call.cost.moved_nbytes,
        workspace_nbytes=call.cost.workspace_nbytes,
    )
    return operator, versions


def _inserted(graph: Graph, behind: dict[int, list[Operator]]) -> tuple[Operator, ...]:
    """The operators with those of `behind` after the operators of these positions."""
    found = list(behind.get(-1, ()))
    for i, op in enumerate(graph.operators):
        found += [op, *behind.get(i, ())]
    return tuple(found)


def _makers(graph: Graph) -> dict[str, int]:
    """By storage, the position of the last operator that writes it."""
    return {s: i for i, op in enumerate(graph.operators) for s in graph.writes(op)}


def _last_touches(graph: Graph) -> dict[str, int]:
    """By storage, the position of the last operator that touches it."""
    return {s: i for i, op in enumerate(graph.operators) for s in graph.touches(op)}
