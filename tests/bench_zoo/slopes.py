"""The derivative of a training graph with respect to each parameter, by following what its operators read."""

from __future__ import annotations

from random import Random

from bench.zoo import (
    training_graph,
)
from tensorstow.ir.graph import Graph, Operator, StorageKind


def operand(op: Operator, graph: Graph, backward: Graph) -> str | None:
    """The forward operator whose backward `op` is."""
    stem = op.id.rpartition(".")[0]
    return stem if stem in graph.operator or stem == "loss" else None


class Slopes:
    """A number for each operator and storage it reads: the slope that its backward applies. A sum's is one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def of(self, op: str, storage: str) -> int:
        return Random(f"{op}/{storage}").randint(1, 1 << 20)

    def expected(self) -> dict[str, int]:
        """Gradients by storage, as sums over all paths to the output: no tape, no versions, no places."""
        graph = self.graph
        total = {s.id: 0 for s in graph.storages}
        (output,) = graph.storages_of(graph.outputs)
        total[output] = self.of("loss", output)
        for op in reversed(graph.operators):
            results = [y for y in op.outputs if graph.tensor[y].dtype != "int64"]  # indices have no gradient
            above = sum(total[s] for s in graph.storages_of(results))
            size = graph.tensor[op.outputs[0]].nbytes
            whole = [x for x in op.inputs if op.op_type == "Add" and graph.tensor[x].nbytes == size]
            for x in whole:
                (s,) = graph.storages_of([x])
                total[s] += above
            for s in graph.storages_of([x for x in op.inputs if x not in whole]):
                total[s] += above * self.of(op.id, s)
        return total


def run(forward: Graph, step: Graph) -> dict[str, int]:
    """Execute a training step over numbers kept by storage, so that what is overwritten is gone: the gradient that each
    parameter's update reads. Every read of a forward value asserts that the value is still the forward's."""
    slopes = Slopes(forward)
    memory: dict[str, object] = {s.id: ("value", s.id) for s in step.storages}
    updated: dict[str, int] = {}
    homes = forward.storage

    def forward_value(storage: str) -> None:
        assert memory[storage] == ("value", storage), f"'{storage}' was overwritten before it was read"

    for op in step.operators:
        reads = step.reads(op)
        owner = operand(op, forward, step)
        if op.op_type in ("sgd", "adam"):
            (gradient,) = (memory[s] for s in reads if isinstance(memory[s], int))
            parameter = op.id.removesuffix(".update")
            assert isinstance(gradient, int)
            updated[parameter] = gradient
            for s in step.writes(op):
                memory[s] = ("updated", s)
        elif op.id in forward.operator or op.id == "loss":
            for s in reads:
                forward_value(s)
        elif owner is None:  # a sum of gradients; a term that is read twice counts twice
            terms = [memory[step.tensor[x].storage or ""] for x in op.inputs]
            (target,) = step.writes(op)
            assert all(isinstance(t, int) for t in terms)
            memory[target] = sum(t for t in terms if isinstance(t, int))
        else:
            above = 1 if owner == "loss" else 0
            for s in reads:
                found = memory[s]
                if isinstance(found, int):
                    above += found
                else:
                    forward_value(s)
            for s in step.writes(op):
                of = s.removeprefix("d:")
                while of not in homes:  # a second gradient of the same storage has a number behind its name
                    of = of.rpartition(":")[0]
                memory[s] = above * slopes.of(owner, of)
    return updated


def check_gradients(forward: Graph, update: str, sum_in_place: bool) -> None:
    step = training_graph(forward, update=update, sum_in_place=sum_in_place)
    updated = run(forward, step)
    expected = Slopes(forward).expected()
    touched = {s for op in forward.operators for s in forward.reads(op)}
    trained = {s.id for s in forward.storages if s.kind in (StorageKind.WEIGHT, StorageKind.EXPERT)}
    assert set(updated) == trained & touched
    for parameter, gradient in updated.items():
        assert gradient == expected[parameter], parameter
