"""The order of a graph's operators as a problem of `solvers.ordering`, and other orders that compute the same."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Graph
from ..ir.operators import is_random
from ..solvers.ordering import Operator, OrderingProblem, Value, from_inputs, list_order


def operator_pairs(graph: Graph) -> frozenset[tuple[int, int]]:
    """Pairs (a, b) of operator numbers: a must stay before b."""
    return step_pairs(graph, tuple(op.id for op in graph.operators))


def step_pairs(graph: Graph, order: Sequence[str]) -> frozenset[tuple[int, int]]:
    """Pairs (a, b) of steps of `order`: a must stay before b, if every step is to read what it reads there.

    A tensor is made before it is read. A storage is read after its last write and before its next, and written in
    turn: so pieces, versions made in place and values made anew keep their turns. Random operators keep theirs too, as
    each draws from where the last one left the generator. What follows from two pairs may be left out.
    """
    pairs = set[tuple[int, int]]()
    made: dict[str, int] = {}
    last_write: dict[str, int] = {}
    reads: dict[str, list[int]] = {}
    last_random: int | None = None
    for t, name in enumerate(order):
        op = graph.operator[name]
        written = graph.writes(op)
        pairs.update((made[x], t) for x in op.inputs if x in made)
        pairs.update((last_write[s], t) for s in graph.touches(op) if s in last_write)
        for s in written:
            pairs.update((r, t) for r in reads.pop(s, ()))
        for s in graph.reads(op):
            if s not in written:
                reads.setdefault(s, []).append(t)
        last_write.update(dict.fromkeys(written, t))
        made.update(dict.fromkeys(op.outputs, t))
        if is_random(op):
            if last_random is not None:
                pairs.add((last_random, t))
            last_random = t
    return frozenset((a, b) for a, b in pairs if a != b)


def ordering_problem(
    graph: Graph, order: Sequence[str], lives: Sequence[tuple[str, int, Sequence[int]]], durations_ns: Sequence[int]
) -> OrderingProblem:
    """The steps of `order` as operators. `lives` are (storage, bytes, steps that touch it), one for each time that a
    storage is made; homed storages count for the steps that touch them alone, as they may leave between any two."""
    given, kept = set(graph.storages_of(graph.inputs)), set(graph.storages_of(graph.outputs))
    touches: list[list[int]] = [[] for _ in order]
    own = [0] * len(order)
    values = list[Value]()
    last_life = {storage: i for i, (storage, _, _) in enumerate(lives)}
    for i, (storage, nbytes, steps) in enumerate(lives):
        if graph.storage[storage].homed:
            for t in steps:
                own[t] += nbytes
        elif steps:
            for t in steps:
                touches[t].append(len(values))
            values.append(Value(nbytes, storage in given, storage in kept and last_life[storage] == i))
    operators = (Operator(tuple(touches[t]), durations_ns[t], own[t]) for t in range(len(order)))
    return OrderingProblem(tuple(operators), tuple(values), tuple(sorted(step_pairs(graph, order))))


def graph_problem(graph: Graph) -> OrderingProblem:
    """The program's order, bytes without padding, every operator as long as any other."""
    steps: dict[str, list[int]] = {}
    for t, op in enumerate(graph.operators):
        for s in graph.touches(op):
            steps.setdefault(s, []).append(t)
    lives = [(s.id, s.nbytes, steps[s.id]) for s in graph.storages if s.id in steps and not s.homed]
    return ordering_problem(graph, [op.id for op in graph.operators], lives, [1] * len(graph.operators))


def candidate_orders(graph: Graph) -> list[tuple[str, ...]]:
    """Valid orders other than the graph's own: fewest live bytes next, and depth first."""
    problem = graph_problem(graph)
    if problem.fixed:
        return []
    ids = tuple(op.id for op in graph.operators)
    orders = [tuple(ids[o] for o in found) for found in (list_order(problem), from_inputs(problem))]
    return [order for n, order in enumerate(orders) if order != ids and order not in orders[:n]]
