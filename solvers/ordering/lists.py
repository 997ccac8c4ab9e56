"""List schedules: of the operators that are ready, the one that looks best runs next.

Running an operator adds what it touches first and frees what it touches last. As others run, the former can only
shrink and the latter only grow, so that a key in a heap is never too good: entries are pushed again when a value has
begun or has one user left, and the best one on the heap is true. That makes n operators O(n log n).
"""

from __future__ import annotations

from heapq import heappop, heappush

from .problem import Order, OrderingProblem, mirrored


class Progress:
    """Which operators have run, and what that leaves live. `live` are bytes now."""

    def __init__(self, problem: OrderingProblem) -> None:
        self.problem = problem
        self.live = sum(v.nbytes for v in problem.values if v.given)
        self.begun = [v.given for v in problem.values]
        self.users_left = [len(t) for t in problem.touchers]
        # Which user is left when it is one: the sum of those that have not run.
        self.users_sum = [sum(t) for t in problem.touchers]
        self.waits = [len(b) for b in problem.before]
        self.done = [False] * problem.steps

    def adds(self, o: int) -> int:
        """Bytes of what `o` would be the first to touch."""
        values, begun = self.problem.values, self.begun
        return sum(values[v].nbytes for v in self.problem.operators[o].touches if not begun[v])

    def frees(self, o: int) -> int:
        """Bytes of what `o` would be the last to touch."""
        values, left = self.problem.values, self.users_left
        touches = self.problem.operators[o].touches
        return sum(values[v].nbytes for v in touches if left[v] == 1 and not values[v].kept)

    def key(self, o: int) -> tuple[int, int, int]:
        """Fewest bytes more afterwards; then fewest more meanwhile; then as in the program."""
        adds = self.adds(o)
        return adds - self.frees(o), adds + self.problem.operators[o].own_nbytes, o

    def run(self, o: int) -> tuple[list[int], list[int]]:
        """Run `o`; the operators that became ready, and ready ones whose keys became better."""
        problem = self.problem
        self.live += self.adds(o) - self.frees(o)
        self.done[o] = True
        ready, better = list[int](), list[int]()
        for v in problem.operators[o].touches:
            self.users_left[v] -= 1
            self.users_sum[v] -= o
            if not self.begun[v]:
                self.begun[v] = True
                better += [p for p in problem.touchers[v] if not self.waits[p] and not self.done[p]]
            elif self.users_left[v] == 1 and not self.waits[self.users_sum[v]]:
                better.append(self.users_sum[v])
        for b in problem.after[o]:
            self.waits[b] -= 1
            if not self.waits[b]:
                ready.append(b)
        return ready, better


def list_order(problem: OrderingProblem, window: int | None = None) -> Order:
    """Always the ready operator that leaves the fewest bytes more, of those less than `window` places behind the first
    one of the program that has not run; None: of all."""
    window = window or problem.steps + 1
    progress = Progress(problem)
    heap = list[tuple[int, int, int]]()
    beyond = [o for o in range(problem.steps) if not progress.waits[o]]  # ascending, which is a heap
    order, front = list[int](), 0
    while len(order) < problem.steps:
        while front < problem.steps and progress.done[front]:
            front += 1
        while beyond and beyond[0] < front + window:
            heappush(heap, progress.key(heappop(beyond)))
        o = heappop(heap)[2]
        if progress.done[o]:
            continue
        order.append(o)
        ready, better = progress.run(o)
        for p in ready:
            heappush(beyond, p)
        for p in better:
            if p < front + window:
                heappush(heap, progress.key(p))
    return tuple(order)


def backward_list_order(problem: OrderingProblem, window: int | None = None) -> Order:
    """As `list_order`, from the end: the operator that runs last is chosen first."""
    last = problem.steps - 1
    return tuple(last - o for o in reversed(list_order(mirrored(problem), window)))


def lookahead_order(problem: OrderingProblem, depth: int = 12, breadth: int = 8) -> Order:
    """Looks `depth` operators ahead from each of the `breadth` best ready ones: what follows from it alone, up to where
    the fewest bytes are live. A run that frees is taken by its lowest hill, others by the deepest descent from
    hill to valley, the order of Liu (SIAM J. Alg. Disc. Meth. 8, 1987) for trees.

    Work is at most operators x `breadth` x `depth` keys.
    """
    progress = Progress(problem)
    heap = [progress.key(o) for o in range(problem.steps) if not progress.waits[o]]
    heap.sort()
    order = list[int]()
    while len(order) < problem.steps:
        entries = list[tuple[int, int, int]]()
        while heap and len(entries) < breadth:
            entry = heappop(heap)
            if not progress.done[entry[2]] and all(entry[2] != e[2] for e in entries):
                entries.append(entry)
        runs = [_run_ahead(progress, entry[2], depth) for entry in entries]
        hill, valley, chosen = min(runs, key=lambda r: (r[1] > 0, r[0] if r[1] <= 0 else r[1] - r[0], r[2]))
        del hill, valley
        for o in chosen:
            order.append(o)
            ready, better = progress.run(o)
            for p in {*ready, *better}:
                heappush(heap, progress.key(p))
        for entry in entries:
            if not progress.done[entry[2]]:
                heappush(heap, progress.key(entry[2]))
    return tuple(order)


def _run_ahead(progress: Progress, first: int, depth: int) -> tuple[int, int, Order]:
    """(hill, valley, operators up to the valley) of the run that begins with `first`, in bytes above what is live."""
    problem = progress.problem
    touched, arrived = dict[int, int](), dict[int, int]()
    operators, level, hill = list[int](), 0, 0
    valley, at_valley, hill_there = None, 0, 0
    ready = [first]
    while ready and len(operators) < depth:
        best: tuple[int, int, int] | None = None
        for o in ready:
            adds = frees = 0
            for v in problem.operators[o].touches:
                value, used = problem.values[v], touched.get(v, 0)
                adds += 0 if progress.begun[v] or used else value.nbytes
                frees += value.nbytes if progress.users_left[v] - used == 1 and not value.kept else 0
            key = (adds - frees, adds + problem.operators[o].own_nbytes, o)
            best = key if best is None or key < best else best
        assert best is not None
        net, meanwhile, o = best
        hill, level = max(hill, level + meanwhile), level + net
        operators.append(o)
        if valley is None or level < valley:
            valley, at_valley, hill_there = level, len(operators), hill
        ready.remove(o)
        for v in problem.operators[o].touches:
            touched[v] = touched.get(v, 0) + 1
        for b in problem.after[o]:
            arrived[b] = arrived.get(b, 0) + 1
            if arrived[b] == progress.waits[b]:
                ready.append(b)
    return hill_there, valley or 0, tuple(operators[:at_valley])
