"""Large neighbourhoods: a window of an order is opened and closed again in the best way, over and over.

A window is a span of the order; of its operators some are free, the others keep their turns among themselves. Free are
operators that touch what is live where most is, so that the windows are as irregular as the graph. A window is a small
`OrderingProblem`: what lives on both sides of it is a constant, what lives on one side given or kept. It is solved over
its downsets, and by CP-SAT where those are too many.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import pairwise

from .cpsat import improve_by_cpsat
from .exact import solve_exact, solve_excess
from .problem import Operator, Order, OrderingProblem, Value, check_order, live_profile, peak

SPANS, FREE = (14, 20, 40, 80), 14
STATES, CPSAT_SPAN = 4_000, 22
FRUITLESS = 60
"""So many windows in a row without gain end the search."""
NEAR_PEAK = 0.97

Score = tuple[int, int, int]


def improve(
    problem: OrderingProblem,
    order: Order,
    *,
    above_nbytes: int | None = None,
    time_limit_s: float = 5.0,
    rounds: int = 400,
    seed: int = 0,
) -> Order:
    """An order no worse than `order`: in bytes above `above_nbytes` over time if that is given, then in its peak, then
    in live bytes over time. At most `rounds` windows; the same answer for the same seed where time does not run out.

    Raises:
        ValueError: `order` is not a valid order of the problem.
    """
    wrong = check_order(problem, order)
    if wrong:
        raise ValueError(f"the order to improve is not valid: {wrong[0]}")
    if problem.fixed:
        return order
    search = _Search(problem, list(order), above_nbytes, random.Random(seed), time.monotonic() + time_limit_s)
    fruitless = 0
    for _ in range(rounds):
        if fruitless >= FRUITLESS or search.left_s <= 0 or search.settled:
            break
        fruitless = 0 if search.step() else fruitless + 1
    return tuple(search.order)


@dataclass
class _Search:
    problem: OrderingProblem
    order: list[int]
    above: int | None
    rng: random.Random
    deadline: float

    def __post_init__(self) -> None:
        self.profile = live_profile(self.problem, self.order)
        self.durations = [op.duration_ns for op in self.problem.operators]
        self.place = [0] * len(self.order)
        self._renumber(0)

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def settled(self) -> bool:
        """Whether nothing above the level is left, or the peak is the largest working set."""
        level = self.problem.working_set_nbytes if self.above is None else self.above
        return max(self.profile) <= level

    def step(self) -> bool:
        """One window; whether the order became better."""
        begin, end = self._span()
        if end - begin < 2:
            return False
        if self.rng.random() < 0.25:
            new = self._moved(begin, end)
        else:
            window = self._open(begin, end, self._chosen(begin, end))
            if window.fixed:
                return False
            new = self._closed(window, begin)
        return new is not None and self._accept(new, begin, end)

    def _span(self) -> tuple[int, int]:
        """Around a step that holds nearly the most, mostly; elsewhere now and then."""
        steps, length = len(self.order), self.rng.choice(SPANS)
        if self.rng.random() < 0.8:
            most = max(self.profile)
            level = int(NEAR_PEAK * most) if self.above is None else min(self.above, most - 1)
            centre = self.rng.choice([t for t, nbytes in enumerate(self.profile) if nbytes >= level])
        else:
            centre = self.rng.randrange(steps)
        begin = max(0, min(steps - length, centre - self.rng.randrange(length)))
        return begin, min(steps, begin + length)

    def _open(self, begin: int, end: int, free: set[int] | None) -> OrderingProblem:
        return open_window(self.problem, self.order, self.place, begin, end, free, self.profile[begin])

    def _chosen(self, begin: int, end: int) -> set[int]:
        """The free operators: all of a short span; else neighbours by the values that they share, from one outwards."""
        inside = self.order[begin:end]
        if len(inside) <= FREE:
            return set(inside)
        first = self.rng.choice(inside)
        found, seen, near = list[int](), {first}, [first]
        while len(found) < FREE:
            if not near:
                near = [o for o in inside if o not in seen][:1]
                if not near:
                    break
                seen.update(near)
            o = near.pop(self.rng.randrange(len(near)))
            found.append(o)
            for v in self.problem.operators[o].touches:
                users = self.problem.touchers[v]
                if len(users) <= 4 * FREE:
                    fresh = [p for p in users if p not in seen and begin <= self.place[p] < end]
                    seen.update(fresh)
                    near += fresh
        return set(found)

    def _closed(self, window: OrderingProblem, begin: int) -> list[int] | None:
        """The window in a better order: a lower peak, or less above the level."""
        start = tuple(range(window.steps))
        highest, limit_s = peak(window, start), max(0.0, min(2.0, self.left_s))
        raises_peak = highest == max(self.profile) and self.above is None
        level = self.above or 0
        if raises_peak:
            result = solve_exact(window, states=STATES, time_limit_s=limit_s)
        else:
            limit = max(self.profile)
            result = solve_excess(window, limit_nbytes=limit, above_nbytes=level, states=STATES, time_limit_s=limit_s)
        order = result.solution
        if result.status != "optimal" and window.steps <= CPSAT_SPAN:
            limit, above = (highest, None) if raises_peak else (max(self.profile), level)
            order = improve_by_cpsat(
                window,
                limit_nbytes=limit,
                above_nbytes=above,
                time_limit_s=max(0.0, min(1.0, self.left_s)),
                seed=self.rng.randrange(2**31),
            )
        inside = self.order[begin : begin + window.steps]
        return None if order is None else [inside[o] for o in order]

    def _moved(self, begin: int, end: int) -> list[int] | None:
        """One operator elsewhere in the span, where what it waits for and what waits for it let it go."""
        inside = self.order[begin:end]
        at = self.rng.randrange(len(inside))
        o = inside[at]
        first = max((self.place[b] + 1 for b in self.problem.before[o]), default=0) - begin
        last = min((self.place[b] - 1 for b in self.problem.after[o]), default=len(self.order)) - begin
        places = [t for t in range(max(0, first), min(len(inside) - 1, last) + 1) if t != at]
        if not places:
            return None
        inside.insert(self.rng.choice(places), inside.pop(at))
        return inside

    def _accept(self, new: list[int], begin: int, end: int) -> bool:
        """Keep it if the whole order is no worse; whether it is better."""
        old = self.order[begin:end]
        if new == old:
            return False
        window = self._open(begin, end, None)
        number = {o: i for i, o in enumerate(old)}
        profile = live_profile(window, [number[o] for o in new])
        outside = max(max(self.profile[:begin], default=0), max(self.profile[end:], default=0))
        before = self._score(self.profile[begin:end], old, outside)
        after = self._score(profile, new, outside)
        if after > before:
            return False
        self.order[begin:end], self.profile[begin:end] = new, profile
        self._renumber(begin, end)
        return after < before

    def _score(self, profile: list[int], operators: list[int], outside: int) -> Score:
        pairs = list(zip(profile, operators, strict=True))
        level = self.above
        over = 0 if level is None else sum(max(0, live - level) * self.durations[o] for live, o in pairs)
        return over, max(outside, *profile), sum(live * self.durations[o] for live, o in pairs)

    def _renumber(self, begin: int, end: int | None = None) -> None:
        for t in range(begin, len(self.order) if end is None else end):
            self.place[self.order[t]] = t


def open_window(
    problem: OrderingProblem,
    order: list[int],
    place: list[int],
    begin: int,
    end: int,
    free: set[int] | None,
    live_nbytes: int,
) -> OrderingProblem:
    """Steps [begin, end) of an order as a problem of their own. Operators that are not `free` keep their turns; None:
    all are free. What lives throughout and is touched by none of them counts as their own bytes: `live_nbytes` are live
    at step `begin`."""
    inside = order[begin:end]
    touched = dict.fromkeys(v for o in inside for v in problem.operators[o].touches)
    number = {v: i for i, v in enumerate(touched)}
    values = list[Value]()
    for v in touched:
        value, users = problem.values[v], [place[o] for o in problem.touchers[v]]
        given, kept = value.given or min(users) < begin, value.kept or max(users) >= end
        values.append(Value(value.nbytes, given, kept))
    pairs = [(place[a] - begin, place[b] - begin) for a in inside for b in problem.after[a] if place[b] < end]
    if free is not None:
        turns = [t for t, o in enumerate(inside) if o not in free]
        pairs += pairwise(turns)
    bare = OrderingProblem(_renamed(problem, inside, number, 0), tuple(values), tuple(pairs))
    base = live_nbytes - live_profile(bare, range(bare.steps))[0]
    return OrderingProblem(_renamed(problem, inside, number, base), tuple(values), tuple(pairs))


def _renamed(
    problem: OrderingProblem, inside: list[int], number: dict[int, int], base_nbytes: int
) -> tuple[Operator, ...]:
    operators = [problem.operators[o] for o in inside]
    return tuple(
        Operator(tuple(number[v] for v in op.touches), op.duration_ns, op.own_nbytes + base_nbytes) for op in operators
    )
