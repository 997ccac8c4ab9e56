"""Everything tried: all orders, all choices of what stays, and (where asked) all addresses, by a search over states."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
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
        for kept, dirty in _beginnings(problem, wraps)
        for start in _placings(problem, frozenset(), [*begin, *kept])
        for n in [_cheapest(problem, start, dirty)]
        if n is not None
    ]
    return min(found, default=None)


def _beginnings(problem: TrafficProblem, wraps: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """What the pass before left on chip, and for which of it nothing good lies below: only what passes change."""
    changed = {i for o in problem.operators for i in o.outputs}
    return ((kept, dirty) for kept in _sets(wraps) for dirty in _sets([i for i in kept if i in changed]))


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


def _cheapest(problem: TrafficProblem, start: Chip, dirty: list[int]) -> int | None:
    """Dijkstra over (operators done, chip, what lies below)."""
    clean = {i for i, t in enumerate(problem.tensors) if t.begins in (Begin.BELOW, Begin.BOTH)} - set(dirty)
    below = frozenset(clean)
    wrapped = {(i, at) for i, at in start if problem.tensors[i].begins is Begin.BELOW}
    again = {i for i in clean if problem.cyclic and problem.tensors[i].begins is Begin.BELOW}
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
            total = _finish(problem, cost, chip, below, wrapped, again)
            best = total if best is None or (total is not None and total < best) else best
            continue
        for o in range(problem.steps):
            fixed = problem.order is not None and problem.order[len(done)] != o
            if not fixed and o not in done and all(a in done for a, b in problem.before if b == o):
                for more, state, copies in _steps(problem, o, not done, chip, below):
                    heappush(queue, (cost + more, next(number), done | {o}, state, copies))
    return best


def _steps(
    problem: TrafficProblem, o: int, first: bool, chip: Chip, below: frozenset[int]
) -> Iterator[tuple[int, Chip, frozenset[int]]]:
    tensors, operator = problem.tensors, problem.operators[o]
    arrives = {i for i, t in enumerate(tensors) if first and t.begins is Begin.ARRIVES}
    made = {
        i
        for i in operator.outputs
        if tensors[i].begins is Begin.MADE and not any(i in other.outputs for other in problem.operators[:o])
    } | arrives
    for kept in subsets(chip):
        there = {i for i, _ in kept}
        dropped = {i for i, _ in chip - kept}
        for stored in _sets([] if problem.one_way else sorted(dropped - below)):
            copies = below | set(stored)
            needed = (operator.touches | arrives) - there
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
    problem: TrafficProblem,
    cost: int,
    chip: Chip,
    below: frozenset[int],
    wrapped: set[tuple[int, int]],
    again: set[int],
) -> int | None:
    """What a pass costs that ends so. The next one begins with the chip `wrapped`, and with `again` below."""
    there = {i for i, _ in chip}
    if not wrapped <= chip:
        return None
    for i, tensor in enumerate(problem.tensors):
        demanded = tensor.ends in (End.BELOW, End.BOTH) and not (problem.cyclic and tensor.begins is Begin.BELOW)
        if (demanded or i in again) and i not in below:
            if i not in there or problem.one_way:
                return None
            cost += tensor.nbytes
        if tensor.ends in (End.FAST, End.BOTH) and i not in there:
            return None
        if tensor.ends is End.ALIVE and i not in there:
            if i not in below:
                return None
            cost += tensor.nbytes
    return cost


def random_problem(
    seed: int,
    *,
    operators: int = 5,
    unit: int = 1,
    odd: int = 0,
    offsets: bool = False,
    fixed: bool = False,
    writes: float = 0.0,
) -> TrafficProblem:
    """A random program: values, weights (shared ones among them), branches; sizes of a few units, plus up to `odd`.
    A share `writes` of the operators change what is there, in place or in pieces, instead of making a value."""
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
        if writes and o < operators - 1 and rng.random() < writes:
            changed = rng.choice([*values, *weights])
            if tensors[changed].begins is Begin.BELOW:
                tensors[changed] = replace(tensors[changed], ends=End.BELOW)
            inputs = (*reads, changed) if rng.random() < 0.5 else tuple(i for i in reads if i != changed)
            made.append(Operator(inputs, (changed,)))
            continue
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
        tuple(made), tuple(tensors), capacity,
        precedence=in_program_order(made), order=order, offsets=offsets, cyclic=rng.random() < 0.4,
    )  # fmt: skip


def in_program_order(operators: list[Operator]) -> tuple[tuple[int, int], ...]:
    """Pairs that keep what each reads: a write stands behind the uses before it, a read behind the write before it."""
    pairs: set[tuple[int, int]] = set()
    for b, later in enumerate(operators):
        for a, earlier in enumerate(operators[:b]):
            if set(later.outputs) & earlier.touches or set(earlier.outputs) & later.touches:
                pairs.add((a, b))
    return tuple(sorted(pairs))
