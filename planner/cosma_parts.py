"""A pass solved exactly part by part, each from the state that the one before it left."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

from ..ir.errors import TimeLimitError
from ..solvers.exact import Begin, End, Operator, Tensor, TrafficProblem, TrafficSolution, solve_traffic
from ..solvers.result import Result, Status


def solve_parts(
    problem: TrafficProblem, length: int, *, time_limit_s: float, engine: str, first: int | None = None
) -> TrafficSolution:
    """A pass part by part, `length` operators of the given numbering at a time (all of them: the exact optimum), the
    first part `first`.

    A part that time leaves without an answer in a free order keeps its own. TimeLimitError: one has none even so.
    """
    began = time.monotonic()
    state = _Pass(problem)
    parts = divide(problem.steps, length, length if first is None else first)
    for number, part in enumerate(parts):
        left = time_limit_s - (time.monotonic() - began)
        state.run(part, time_limit_s=left / (len(parts) - number), engine=engine)
    return TrafficSolution(
        tuple(state.order), tuple(state.present), (*state.loads, ()), (*state.stores, state.late), state.chip
    )


def divide(steps: int, length: int, first: int) -> list[tuple[int, ...]]:
    """Runs of `length` operators, the first of `first`, the last of what is left."""
    begins = [0, *range(first, steps, length)] if steps else []
    return [tuple(range(a, b)) for a, b in pairwise([*begins, steps])]


class _Pass:
    """What has been decided of a pass so far, and the state in which its last part ended."""

    def __init__(self, problem: TrafficProblem) -> None:
        self.problem = problem
        self.begins = [t.begins for t in problem.tensors]
        self.order: list[int] = []
        self.present: list[tuple[int, ...]] = []
        self.loads: list[tuple[int, ...]] = []
        self.stores: list[tuple[int, ...]] = []
        self.late: tuple[int, ...] = ()  # stored at the instant at which the next part begins
        self.chip: tuple[int, ...] = ()

    def run(self, part: tuple[int, ...], *, time_limit_s: float, engine: str) -> None:
        """Decide one part from the state that is, and leave the state that it ends in."""
        members, local = self._pose(part)
        result = _solve_part(local, time_limit_s, engine)
        found = result.solution
        if found is None:
            raise TimeLimitError(f"a part of {len(part)} operators: {result.status.value}, {result.detail}")

        def named(moves: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
            return [tuple(members[i] for i in now) for now in moves]

        stores = named(found.stores)
        self.order += [part[o] for o in found.order]
        self.present += named(found.present)
        self.loads += named(found.loads)[:-1]
        self.stores += [tuple(sorted({*self.late, *stores[0]})), *stores[1:-1]]
        self.late = stores[-1]
        self.chip = tuple(members[i] for i in found.at_end)
        below = _below_after(local, found)
        for i, tensor in enumerate(local.tensors):
            on = i in found.at_end
            if on or i in below:
                self.begins[members[i]] = Begin.BELOW if not on else Begin.BOTH if i in below else Begin.FAST
            elif tensor.begins is not Begin.MADE or local.writers[i]:
                self.begins[members[i]] = Begin.MADE  # gone for good

    def _pose(self, part: tuple[int, ...]) -> tuple[list[int], TrafficProblem]:
        """The part as a problem of its own: the tensors that it uses or finds on chip, as they are now; those that
        later parts need are alive at its end."""
        problem = self.problem
        later = {i for o in range(part[-1] + 1, problem.steps) for i in problem.operators[o].touches}
        last = part[-1] == problem.steps - 1
        touched = {i for o in part for i in problem.operators[o].touches}
        on_chip = {i for i, b in enumerate(self.begins) if b in (Begin.FAST, Begin.BOTH, Begin.ARRIVES)}
        demanded = {i for i, t in enumerate(problem.tensors) if last and t.ends is not End.FREE}
        members = sorted(touched | on_chip | demanded)
        number = {i: n for n, i in enumerate(members)}
        tensors: list[Tensor] = []
        for i in members:
            tensor = problem.tensors[i]
            alive = not last and (i in later or tensor.ends is not End.FREE)
            ends = tensor.ends if last else End.ALIVE if alive else End.FREE
            tensors.append(replace(tensor, begins=self.begins[i], ends=ends))
        operators = tuple(
            Operator(tuple(number[i] for i in op.inputs), tuple(number[i] for i in op.outputs))
            for op in (problem.operators[o] for o in part)
        )
        place = {o: n for n, o in enumerate(part)}
        # What a tensor's writers and readers ask of the order holds where the part finds it made, too.
        pairs = tuple((place[a], place[b]) for a, b in sorted(problem.before) if a in place and b in place)
        order = tuple(range(len(part))) if problem.order is not None else None
        capacity = problem.capacity_nbytes
        return members, TrafficProblem(operators, tuple(tensors), capacity, pairs, order, one_way=problem.one_way)


def _solve_part(local: TrafficProblem, time_limit_s: float, engine: str) -> Result[TrafficSolution]:
    """The part with a free order, and where that is not proven with its own as well: the better of both."""
    fixed = replace(local, order=local.order or tuple(range(local.steps)))
    first = solve_traffic(local, time_limit_s=0.7 * time_limit_s, engine=engine)
    if first.status is Status.OPTIMAL:
        return first
    second = solve_traffic(fixed, time_limit_s=0.3 * time_limit_s, engine=engine)
    return min((r for r in (first, second) if r.solution is not None), key=lambda r: r.objective or 0, default=second)


def _below_after(problem: TrafficProblem, solution: TrafficSolution) -> set[int]:
    """Tensors with a good copy below when the part ends."""
    below = {i for i, t in enumerate(problem.tensors) if t.begins in (Begin.BELOW, Begin.BOTH)}
    for t, o in enumerate(solution.order):
        below |= set(solution.stores[t])
        below -= set(problem.operators[o].outputs)
    return below | set(solution.stores[-1])
