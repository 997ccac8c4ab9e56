"""Everything tried: all orders, all choices of what stays, and (where asked) all addresses, by a search over states."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain, combinations, count

from tensorstow.solvers.exact import Begin, End, Operator, Tensor, TrafficProblem

Chip = frozenset[tuple[int, int]]  # (tensor, address); every address is 0 where addresses are not decided


def subsets(of: Iterable[tuple[int, int]]) -> Iterator[Chip]:
    members = sorted(of)
    return map(frozenset, chain.from_iterable(combinations(members, n) for n in range(len(members) + 1)))


def least_nbytes(problem: TrafficProblem) -> int | None:
    """The fewest bytes of a pass, None where there is none."""
    begin = [i for i, t in enumerate(problem.tensors) if t.begins in (Begin.FAST, Begin.BOTH)]
    wraps = [i for i, t in enumerate(problem.tensors) if problem.cyclic and t.begins is Begin.BELOW]
    found = [
        n
        for start in chain.from_iterable(_placings(problem, frozenset(), [*begin, *kept]) for kept in _sets(wraps))
        for n in [_cheapest(problem, start)]
        if n is not None
    ]
    return min(found, default=None)


def _sets(of: list[int]) -> Iterator[list[int]]:
    return (list(s) for n in range(len(of) + 1) for s in combinations(of, n))


def _placings(problem: TrafficProblem, chip: Chip, new: Iterable[int]) -> Iterator[Chip]:
    """The chip with `new` tensors added, at every address that is free."""
    new = list(new)
    if not new:
        yield chip
        return
    i, size = new[0], problem.tensors[new[0]].room
    last = problem.capacity_nbytes - size if problem.offsets else 0
    for at in range(0, last + 1, problem.tensors[i].alignment):
        free = not problem.offsets or all(
            at >= other + problem.tensors[j].room or other >= at + size for j, other in chip if problem.tensors[j].room
        )
        if free or not size:
            yield from _placings(problem, chip | {(i, at)}, new[1:])


def _cheapest(problem: TrafficProblem, start: Chip) -> int | None:
    """Dijkstra over (operators done, chip, what lies below)."""
    below = frozenset(i for i, t in enumerate(problem.tensors) if t.begins in (Begin.BELOW, Begin.BOTH))
    wrapped = {(i, at) for i, at in start if problem.tensors[i].begins is Begin.BELOW}
    number = count()
    queue: list[tuple[int, int, frozenset[int], Chip, frozenset[int]]] = [(0, 0, frozenset(), start, below)]
    seen: set[tuple[frozenset[int], Chip, frozenset[int]]] = set()
    best: int | None = None
    while queue:
        cost, _, done, chip, below = heappop(queue)
        if best is not None and cost >= best:
            return best
        if (done, chip, below) in seen:
            continue
        seen.add((done, chip, below))
        if len(done) == problem.steps:
            total = _finish(problem, cost, chip, below, wrapped)
            best = total if best is None or (total is not None and total < best) else best
            continue
        for o in range(problem.steps):
            fixed = problem.order is not None and problem.order[len(done)] != o
            if not fixed and o not in done and all(a in done for a, b in problem.before if b == o):
                for more, state, copies in _steps(problem, o, done, chip, below):
                    heappush(queue, (cost + more, next(number), done | {o}, state, copies))
    return best


def _steps(
    problem: TrafficProblem, o: int, done: frozenset[int], chip: Chip, below: frozenset[int]
) -> Iterator[tuple[int, Chip, frozenset[int]]]:
    tensors, operator = problem.tensors, problem.operators[o]
    arrives = {i for i, t in enumerate(tensors) if not done and t.begins is Begin.ARRIVES}
    made = {i for i in operator.outputs if problem.writers[i][0] == o} | arrives
    half = {i for i, w in enumerate(problem.writers) if len(w) > 1 and w[0] in done and w[-1] not in done}
    for kept in subsets(chip):
        there = {i for i, _ in kept}
        dropped = {i for i, _ in chip - kept}
        for stored in _sets(sorted(dropped - below)):
            copies = below | set(stored)
            needed = (operator.touches | arrives | half) - there
            loaded = needed - made
            if not loaded <= copies:
                continue
            if sum(tensors[i].room for i in there | needed) > problem.capacity_nbytes:
                continue
            cost = sum(tensors[i].nbytes for i in (*stored, *loaded))
            outdated = set(operator.outputs) | arrives
            for state in _placings(problem, kept, sorted(needed)):
                yield cost, state, copies - outdated


def _finish(
    problem: TrafficProblem, cost: int, chip: Chip, below: frozenset[int], wrapped: set[tuple[int, int]]
) -> int | None:
    there = {i for i, _ in chip}
    if not wrapped <= chip:
        return None
    for i, tensor in enumerate(problem.tensors):
        if tensor.ends is End.BELOW and i not in below:
            if i not in there:
                return None
            cost += tensor.nbytes
        if tensor.ends is End.FAST and i not in there:
            return None
        if tensor.ends is End.ALIVE and i not in there:
            if i not in below:
                return None
            cost += tensor.nbytes
    return cost


def random_problem(
    seed: int, *, operators: int = 5, unit: int = 1, odd: int = 0, offsets: bool = False, fixed: bool = False
) -> TrafficProblem:
    """A random program: values, weights (shared ones among them), branches; sizes of a few units, plus up to `odd`."""
    rng = random.Random(seed)

    def size() -> int:
        return rng.randint(1, 3 if offsets else 9) * unit + rng.randint(0, odd)

    tensors = [Tensor(size(), rng.choice((Begin.ARRIVES, Begin.BELOW)))]
    made: list[Operator] = []
    values, weights = [0], list[int]()
    for o in range(operators):
        reads = rng.sample(values, min(len(values), rng.randint(1, 2)))
        if weights and rng.random() < 0.3:
            reads.append(rng.choice(weights))
        elif rng.random() < 0.5:
            tensors.append(Tensor(size(), Begin.BELOW))
            weights.append(len(tensors) - 1)
            reads.append(weights[-1])
        ends = rng.choice((End.FAST, End.BELOW)) if o == operators - 1 else End.FREE
        tensors.append(Tensor(size(), ends=ends))
        values.append(len(tensors) - 1)
        made.append(Operator(tuple(reads), (values[-1],)))
    least = max(sum(tensors[i].room for i in o.touches) for o in made)
    most = sum(t.room for t in tensors)
    more = int(rng.random() * 0.4 * (most - least))
    capacity = least + (min(more, 1) if offsets else more)
    order = tuple(range(operators)) if fixed else None
    return TrafficProblem(
        tuple(made), tuple(tensors), capacity, order=order, offsets=offsets, cyclic=rng.random() < 0.4
    )
