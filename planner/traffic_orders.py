"""Other orders of a graph's operators that keep what every operator reads and overwrites as it is."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from ..ir.graph import Graph


def operator_pairs(graph: Graph) -> frozenset[tuple[int, int]]:
    """Pairs (a, b) of operator numbers: a before b, because of a tensor that a makes and b reads, or of a storage that
    both touch and one of several writers writes (pieces, and versions made in place, keep their turns)."""
    made = {t: o for o, op in enumerate(graph.operators) for t in op.outputs}
    pairs = {(made[t], o) for o, op in enumerate(graph.operators) for t in op.inputs if t in made and made[t] != o}
    writers: dict[str, list[int]] = {}
    touchers: dict[str, list[int]] = {}
    for o, op in enumerate(graph.operators):
        for s in graph.writes(op):
            writers.setdefault(s, []).append(o)
        for s in graph.touches(op):
            touchers.setdefault(s, []).append(o)
    there = set(graph.storages_of(graph.inputs)) | {s.id for s in graph.storages if s.homed}
    for s, own in writers.items():
        if len(own) == 1 and s not in there:
            pairs.update((own[0], o) for o in touchers[s] if o != own[0])
            continue
        for w in own:
            pairs.update((min(w, o), max(w, o)) for o in touchers[s] if o != w)
    return frozenset(pairs)


def candidate_orders(graph: Graph) -> list[tuple[str, ...]]:
    """Valid orders other than the graph's own: fewest live bytes next, and depth first."""
    pairs = operator_pairs(graph)
    ids = tuple(op.id for op in graph.operators)
    found = [lean_order(graph, pairs), depth_first_order(graph, pairs)]
    orders = [tuple(ids[o] for o in order) for order in found]
    return [order for n, order in enumerate(orders) if order != ids and order not in orders[:n]]


def lean_order(graph: Graph, pairs: frozenset[tuple[int, int]]) -> list[int]:
    """A list schedule: of the operators that are ready, the one that adds the fewest live bytes; ties as in the
    program. What no later operator reads dies with its last reader."""
    uses: dict[str, int] = {}
    for op in graph.operators:
        for s in graph.touches(op):
            uses[s] = uses.get(s, 0) + 1
    keep = set(graph.storages_of(graph.outputs))
    live: set[str] = set(graph.storages_of(graph.inputs))

    def adds(o: int) -> int:
        touched = [graph.storage[s] for s in graph.touches(graph.operators[o])]
        made = sum(s.nbytes for s in touched if s.id not in live and not s.homed)
        return made - sum(s.nbytes for s in touched if uses[s.id] == 1 and s.id not in keep and not s.homed)

    def run(o: int) -> None:
        for s in graph.touches(graph.operators[o]):
            uses[s] -= 1
            live.add(s)

    return _list_schedule(len(graph.operators), pairs, adds, run)


def _list_schedule(
    count: int, pairs: frozenset[tuple[int, int]], key: Callable[[int], int], run: Callable[[int], None]
) -> list[int]:
    waits, after = _degrees(count, pairs)
    ready = [o for o in range(count) if not waits[o]]
    order: list[int] = []
    while ready:
        o = min(ready, key=lambda o: (key(o), o))
        ready.remove(o)
        order.append(o)
        run(o)
        for b in after[o]:
            waits[b] -= 1
            if not waits[b]:
                ready.append(b)
    return order


def depth_first_order(graph: Graph, pairs: frozenset[tuple[int, int]]) -> list[int]:
    """The operator that became ready last goes first: a branch is finished before the next one begins."""
    count = len(graph.operators)
    waits, after = _degrees(count, pairs)
    ready = [(0, o) for o in range(count) if not waits[o]]
    heapify(ready)
    order: list[int] = []
    while ready:
        _, o = heappop(ready)
        order.append(o)
        for b in after[o]:
            waits[b] -= 1
            if not waits[b]:
                heappush(ready, (-len(order), b))
    return order


def _degrees(count: int, pairs: frozenset[tuple[int, int]]) -> tuple[list[int], list[list[int]]]:
    """How many operators each one waits for, and which ones wait for it."""
    waits = [0] * count
    after: list[list[int]] = [[] for _ in range(count)]
    for a, b in sorted(pairs):
        waits[b] += 1
        after[a].append(b)
    return waits, after
