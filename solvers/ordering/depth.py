"""Depth first: a branch is finished before the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from .problem import Order, OrderingProblem


def from_outputs(problem: OrderingProblem, *, by_need: bool = False) -> Order:
    """What an operator waits for runs just before it, from the last operators of the program backwards.

    Of several branches the first in the program comes first. `by_need`: the one whose need exceeds what it leaves by
    the most (Sethi and Ullman, JACM 17, 1970), which is the least peak on trees.
    """
    ranked = _by_need(problem) if by_need else problem.before
    entered, order = [False] * problem.steps, list[int]()
    for sink in range(problem.steps):
        if problem.after[sink] or entered[sink]:
            continue
        entered[sink] = True
        stack = [(sink, iter(ranked[sink]))]
        while stack:
            o, rest = stack[-1]
            below = next((b for b in rest if not entered[b]), None)
            if below is None:
                order.append(o)
                stack.pop()
            else:
                entered[below] = True
                stack.append((below, iter(ranked[below])))
    return tuple(order)


def _by_need(problem: OrderingProblem) -> list[Sequence[int]]:
    """For each operator those before it, the largest need beyond what it leaves first; shared branches count again."""
    leaves, need, ranked = [0] * problem.steps, [0] * problem.steps, list[Sequence[int]]()
    first = [min(t) for t in problem.touchers]
    for o, operator in enumerate(problem.operators):
        leaves[o] = sum(
            problem.values[v].nbytes for v in operator.touches if first[v] == o and not problem.values[v].given
        )
        own = sorted(problem.before[o], key=lambda b: (leaves[b] - need[b], b))
        held = 0
        for b in own:
            need[o] = max(need[o], held + need[b])
            held += leaves[b]
        need[o] = max(need[o], held + leaves[o] + operator.own_nbytes)
        ranked.append(own)
    return ranked


def from_inputs(problem: OrderingProblem) -> Order:
    """The operator that became ready last goes first; of several, the first in the program."""
    waits = [len(b) for b in problem.before]
    ready = [(0, o) for o in range(problem.steps) if not waits[o]]
    heapify(ready)
    order: list[int] = []
    while ready:
        _, o = heappop(ready)
        order.append(o)
        for b in problem.after[o]:
            waits[b] -= 1
            if not waits[b]:
                heappush(ready, (-len(order), b))
    return tuple(order)
