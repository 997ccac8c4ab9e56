"""What of a training step a plan places, and the graph and program that are planned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from ...ir.graph import Graph, Operator, StorageKind
from ...ir.program import Parameter, TrainingProgram
from .lowered import StepLowered

ENGINE = "torch-training"
SMALL_NBYTES = 64 << 10
"""Storages of up to this size may stay outside the plan: an address and a transfer of their own cost more."""
SMALL_SHARE = 256
"""Together they take at most one part in so many of what a step holds at its peak."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is placed beside activations: the states of the optimizer, and the parameters that nobody but the step
    changes. The rest is kept in memory all the time."""

    states: bool
    parameters: bool


KEPT = Scope(states=False, parameters=False)
STATES = Scope(states=True, parameters=False)
ALL = Scope(states=True, parameters=True)


@dataclass(frozen=True)
class TrainingLowered:
    """A graph to plan, and the program that runs its plans."""

    graph: Graph
    program: TrainingProgram


def placed(step: StepLowered, scope: Scope, *, key: str, other_nbytes: int = 0) -> TrainingLowered:
    """The graph of `step` in which what a plan does not place is without bytes, and its program.

    That is what `step.fixed` names, what `scope` leaves out, parameters that do not fill their memory, those whose
    gradients the user gets to update them, and small storages. What these take, with `other_nbytes` beside them, counts
    in the workspace of every operator: they are taken to be there all the time. `key` is the joint graph's.
    """
    kept = _kept(step, scope)
    kept_nbytes = other_nbytes + sum(step.graph.storage[s].nbytes for s in kept)
    graph = _without_bytes(step.graph, kept, kept_nbytes)
    parameters = tuple(
        Parameter(names, s, step.strides.get(s)) for s, names in step.parameters.items() if s not in kept
    )
    program = TrainingProgram(
        engine=ENGINE,
        entry=None,
        key=key,
        turn=step.turn,
        kept_nbytes=kept_nbytes,
        values=step.values,
        parameters=parameters,
        gradients=step.gradients,
        optimizer=step.optimizer,
        clip=step.clip,
        training=step.training,
    )
    return TrainingLowered(graph, program)


def _kept(step: StepLowered, scope: Scope) -> frozenset[str]:
    """The storages that a plan does not place."""
    graph = step.graph
    updated = {u.names[0] for u in step.optimizer.updates} if step.optimizer is not None else set[str]()
    kept = set(step.fixed) | step.sparse
    kept |= {s for s, names in step.parameters.items() if names[0] in step.gradients and names[0] not in updated}
    for s in graph.storages:
        left_out = (s.kind is StorageKind.WEIGHT and not scope.parameters) or (
            s.kind is StorageKind.OPTIMIZER_STATE and not scope.states
        )
        kept |= {s.id} if left_out else set()
    room = max(live_nbytes(graph), default=0) // SMALL_SHARE
    for s in sorted((s for s in graph.storages if s.id not in kept), key=lambda s: s.nbytes):
        room -= s.nbytes
        if s.nbytes > SMALL_NBYTES or room < 0:
            break
        kept.add(s.id)
    return frozenset(kept)


def _without_bytes(graph: Graph, kept: frozenset[str], kept_nbytes: int) -> Graph:
    def operator(op: Operator) -> Operator:
        return replace(op, workspace_nbytes=op.workspace_nbytes + kept_nbytes)

    return replace(
        graph,
        storages=tuple(
            replace(s, nbytes=0, blob=None) if s.id in kept else replace(s, blob=s.id if s.homed else None)
            for s in graph.storages
        ),
        tensors=tuple(replace(t, nbytes=0, offset=0) if t.storage in kept else t for t in graph.tensors),
        operators=tuple(map(operator, graph.operators)),
    )


def live_nbytes(graph: Graph, leaving_out: Iterable[str] = ()) -> list[int]:
    """By operator, the bytes that exist while it runs when all is kept as long as it is used: what a step finds there
    (parameters, constants, inputs, states) all the time, the rest from its first touch to its last, results to the
    end."""
    total, out = len(graph.operators), set(leaving_out)
    results = set(graph.storages_of(graph.outputs))
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, op in enumerate(graph.operators):
        for s in graph.touches(op):
            first.setdefault(s, i)
            last[s] = i
    change = [0] * (total + 1)
    for s in graph.storages:
        if s.id in first and s.id not in out:
            always = s.homed or s.kind is StorageKind.INPUT
            change[0 if always else first[s.id]] += s.nbytes
            change[total if always or s.id in results else last[s.id] + 1] -= s.nbytes
    return list(accumulate(change))[:total]
