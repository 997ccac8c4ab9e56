"""In which order operators run: the problem, what an order holds at every step, and the check of an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """Bytes that live from the first operator that touches them to the last: from the beginning if `given`, to the end
    if `kept`."""

    nbytes: int
    given: bool = False
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """A call: the values that it reads or writes, its time, and bytes that it needs only while it runs (a weight that
    is fetched for it, a workspace)."""

    touches: tuple[int, ...]
    duration_ns: int = 1
    own_nbytes: int = 0


@dataclass(frozen=True)
class OrderingProblem:
    """Operators in a valid order, the program's, and which of them must stay before which: `precedence` holds pairs
    (a, b) with a < b. In-place writes, and whatever else may not be exchanged, are pairs too.

    A value that several operators write lives from the first of them. Every value is touched by some operator.

    Raises:
        ValueError: numbers out of range or negative, pairs that contradict the program order, untouched values.
    """

    operators: tuple[Operator, ...]
    values: tuple[Value, ...]
    precedence: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        touched = [False] * len(self.values)
        for o, operator in enumerate(self.operators):
            if operator.duration_ns < 0 or operator.own_nbytes < 0:
                raise ValueError(
                    f"operator {o}: negative numbers ({operator.duration_ns} ns, {operator.own_nbytes} bytes)"
                )
            if len(set(operator.touches)) < len(operator.touches):
                raise ValueError(f"operator {o} names a value twice: {operator.touches}; name each once")
            for v in operator.touches:
                if not 0 <= v < len(self.values):
                    raise ValueError(f"operator {o} touches value {v} of {len(self.values)}")
                touched[v] = True
        for v, value in enumerate(self.values):
            if value.nbytes < 0:
                raise ValueError(f"value {v}: negative size {value.nbytes}")
            if not touched[v]:
                raise ValueError(f"value {v} is touched by no operator; leave it out")
        for a, b in self.precedence:
            if not 0 <= a < b < len(self.operators):
                raise ValueError(f"precedence ({a}, {b}) of {len(self.operators)} operators is against their order")

    @property
    def steps(self) -> int:
        """Number of operators."""
        return len(self.operators)

    @cached_property
    def after(self) -> tuple[tuple[int, ...], ...]:
        """For each operator those that must follow it, as far as `precedence` names them."""
        found: list[list[int]] = [[] for _ in self.operators]
        for a, b in sorted(set(self.precedence)):
            found[a].append(b)
        return tuple(map(tuple, found))

    @cached_property
    def before(self) -> tuple[tuple[int, ...], ...]:
        """For each operator those that must precede it."""
        found: list[list[int]] = [[] for _ in self.operators]
        for a, b in sorted(set(self.precedence)):
            found[b].append(a)
        return tuple(map(tuple, found))

    @cached_property
    def touchers(self) -> tuple[tuple[int, ...], ...]:
        """For each value the operators that touch it."""
        found: list[list[int]] = [[] for _ in self.values]
        for o, operator in enumerate(self.operators):
            for v in operator.touches:
                found[v].append(o)
        return tuple(map(tuple, found))

    @cached_property
    def fixed(self) -> bool:
        """Whether the program order is the only one: exactly then each operator must follow the one before it."""
        return all(o + 1 in self.after[o] for o in range(self.steps - 1))

    @cached_property
    def working_set_nbytes(self) -> int:
        """The most that one operator needs with what it touches: no order holds less at its peak."""
        return max((op.own_nbytes + sum(self.values[v].nbytes for v in op.touches) for op in self.operators), default=0)


def mirrored(problem: OrderingProblem) -> OrderingProblem:
    """The problem backwards: operator o becomes steps - 1 - o. An order of it, read backwards, holds as much."""
    last = problem.steps - 1
    return OrderingProblem(
        problem.operators[::-1],
        tuple(Value(v.nbytes, given=v.kept, kept=v.given) for v in problem.values),
        tuple((last - b, last - a) for a, b in problem.precedence),
    )


def live_profile(problem: OrderingProblem, order: Sequence[int]) -> list[int]:
    """Bytes that are live while each step of an order runs."""
    place = [0] * problem.steps
    for t, o in enumerate(order):
        place[o] = t
    change = [0] * (problem.steps + 1)
    for value, touchers in zip(problem.values, problem.touchers, strict=True):
        change[0 if value.given else min(place[o] for o in touchers)] += value.nbytes
        change[problem.steps if value.kept else max(place[o] for o in touchers) + 1] -= value.nbytes
    live = accumulate(change[: problem.steps])
    return [nbytes + problem.operators[o].own_nbytes for nbytes, o in zip(live, order, strict=True)]


def peak(problem: OrderingProblem, order: Sequence[int]) -> int:
    """The most bytes that are live at once."""
    return max(live_profile(problem, order), default=0)


def excess(problem: OrderingProblem, order: Sequence[int], above_nbytes: int = 0) -> int:
    """Bytes above a level, times the nanoseconds that they are: with 0, all live bytes over time."""
    profile = live_profile(problem, order)
    pairs = zip(profile, order, strict=True)
    return sum(max(0, live - above_nbytes) * problem.operators[o].duration_ns for live, o in pairs)


def check_order(problem: OrderingProblem, order: Sequence[int]) -> tuple[str, ...]:
    """What is wrong with an order; empty where it is a valid one."""
    if sorted(order) != list(range(problem.steps)):
        return (f"{len(order)} entries, {len(set(order))} of them distinct, for {problem.steps} operators",)
    place = {o: t for t, o in enumerate(order)}
    return tuple(
        f"operator {b} stands at {place[b]}, before operator {a} at {place[a]}, which it must follow"
        for a, b in problem.precedence
        if place[a] > place[b]
    )
