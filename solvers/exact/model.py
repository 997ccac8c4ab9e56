"""The integer program of COSMA in PuLP: one constraint family a function, headed by its line of mathematics.

Over steps t = 0..T-1 and the instants 0..T before and after them, all binary:

    x[o,t]  operator o runs in step t            r[i,t]  tensor i is on chip in step t
    k[i,t]  i stays on chip over instant t       l[i,t]  i is loaded at instant t
    s[i,t]  i is stored at instant t             b[i,t]  a good copy of i lies below after instant t
    u[i,j,t]  i lies below j's addresses in step t;  A[i,t]  whole: the address of i, in multiples of its alignment

The objective is bytes: sum over i, t of nbytes_i (l[i,t] + s[i,t]), plus nbytes_i (1 - k[i,T]) for `End.ALIVE`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from .digits import at_most, objective_digits, unit_of
from .problem import Begin, End, TrafficProblem

MOST_UNITS = 1 << 20
"""Addresses inside the program are told apart by big-M rows: more than this many units of one another are not."""


@dataclass(slots=True, eq=False)
class Model:
    """The program and its variables. Entries that are impossible are the number 0, sure ones the number 1."""

    pulp: Any
    problem: TrafficProblem
    program: Any
    x: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    r: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    k: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    loads: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    stores: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    below: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    addresses: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    objective: list[Any] = field(default_factory=list[Any])

    def binary(self, name: str) -> Any:
        """A new 0-1 variable."""
        return self.pulp.LpVariable(name, 0, 1, self.pulp.LpInteger)

    def runs(self, operators: tuple[int, ...] | frozenset[int], t: int) -> Any:
        """sum of x[o,t] over some operators."""
        return self.pulp.lpSum(self.x[o, t] for o in operators)

    def done(self, o: int, until: int) -> Any:
        """sum of x[o,t] for t < until: 1 once operator o is complete."""
        return self.pulp.lpSum(self.x[o, t] for t in range(until))


def build(pulp: Any, problem: TrafficProblem) -> Model:
    """The program of `problem`. ValueError: addresses that differ by more units than it can tell apart."""
    model = Model(pulp, problem, pulp.LpProblem("traffic", pulp.LpMinimize))
    _variables(model)
    _each_operator_once(model)
    _precedence(model)
    _operands_are_present(model)
    _nothing_comes_from_nowhere(model)
    _what_stays_was_there(model)
    _loads_need_a_copy_below(model)
    _copies_are_stored_and_outdated(model)
    _stores_need_presence(model)
    _begins(model)
    _ends(model)
    _capacity(model)
    if problem.offsets:
        _addresses(model)
    _objective(model)
    return model


def _variables(model: Model) -> None:
    problem, steps = model.problem, model.problem.steps
    windows = _windows(problem)
    for o in range(steps):
        for t in range(steps):
            first, last = windows[o]
            sure = first == last == t
            model.x[o, t] = 1 if sure else model.binary(f"x_{o}_{t}") if first <= t <= last else 0
    for i, tensor in enumerate(problem.tensors):
        constant = tensor.begins in (Begin.BELOW, Begin.BOTH) and not problem.writers[i]
        for t in range(steps + 1):
            if t < steps:
                model.r[i, t] = model.binary(f"r_{i}_{t}")
                model.loads[i, t] = model.binary(f"l_{i}_{t}")
            model.k[i, t] = model.binary(f"k_{i}_{t}")
            model.stores[i, t] = 0 if constant or problem.one_way else model.binary(f"s_{i}_{t}")
            model.below[i, t] = 1 if constant else model.binary(f"b_{i}_{t}")


def _windows(problem: TrafficProblem) -> list[tuple[int, int]]:
    """First and last step of each operator: after all its ancestors, before all its descendants; or the given one."""
    steps = problem.steps
    if problem.order is not None:
        place = {o: t for t, o in enumerate(problem.order)}
        return [(place[o], place[o]) for o in range(steps)]
    after: list[set[int]] = [set() for _ in range(steps)]
    for a, b in problem.before:
        after[a].add(b)
    reach = [_reachable(after, o) for o in range(steps)]
    return [(sum(o in r for r in reach), steps - 1 - len(reach[o])) for o in range(steps)]


def _reachable(after: list[set[int]], start: int) -> set[int]:
    seen: set[int] = set()
    ahead = list(after[start])
    while ahead:
        o = ahead.pop()
        if o not in seen:
            seen.add(o)
            ahead += after[o]
    return seen


def _each_operator_once(model: Model) -> None:
    """sum_t x[o,t] = 1 for every o;  sum_o x[o,t] = 1 for every t. A given order is known to."""
    steps = model.problem.steps if model.problem.order is None else 0
    for n in range(steps):
        model.program += model.pulp.lpSum(model.x[n, t] for t in range(steps)) == 1
        model.program += model.pulp.lpSum(model.x[o, n] for o in range(steps)) == 1


def _precedence(model: Model) -> None:
    """sum_{q <= t} x[b,q] <= sum_{q < t} x[a,q] for a before b. A given order is known to keep to them."""
    for a, b in sorted(model.problem.before) if model.problem.order is None else ():
        for t in range(model.problem.steps):
            model.program += model.done(b, t + 1) <= model.done(a, t)


def _operands_are_present(model: Model) -> None:
    """r[i,t] >= sum of x[o,t] over the operators o that touch i."""
    for i in range(len(model.problem.tensors)):
        users = tuple(o for o, operator in enumerate(model.problem.operators) if i in operator.touches)
        for t in range(model.problem.steps):
            model.program += model.r[i, t] >= model.runs(users, t)


def _nothing_comes_from_nowhere(model: Model) -> None:
    """r[i,t] <= k[i,t] + l[i,t] + (1 if the maker of i runs in t, or i arrives in t = 0)."""
    for i, tensor in enumerate(model.problem.tensors):
        maker = model.problem.maker(i)
        makers = () if maker is None else (maker,)
        for t in range(model.problem.steps):
            arrives = 1 if t == 0 and tensor.begins is Begin.ARRIVES else 0
            model.program += model.r[i, t] <= model.k[i, t] + model.loads[i, t] + model.runs(makers, t) + arrives


def _what_stays_was_there(model: Model) -> None:
    """k[i,t] <= r[i,t-1] and k[i,t] <= r[i,t]."""
    for (i, t), stays in model.k.items():
        if t > 0:
            model.program += stays <= model.r[i, t - 1]
        if t < model.problem.steps:
            model.program += stays <= model.r[i, t]


def _loads_need_a_copy_below(model: Model) -> None:
    """l[i,t] <= b[i,t]."""
    for at, load in model.loads.items():
        model.program += load <= model.below[at]


def _copies_are_stored_and_outdated(model: Model) -> None:
    """b[i,t] <= b[i,t-1] + s[i,t];  b[i,t] <= s[i,t] + 1 - (1 if a writer of i runs in t-1);  before instant 0 as it
    begins, or b[i,T] if cyclic and it begins below."""
    for i, tensor in enumerate(model.problem.tensors):
        began = 1 if tensor.begins in (Begin.BELOW, Begin.BOTH) else 0
        began = model.below[i, model.problem.steps] if model.problem.wraps(i) else began
        for t in range(model.problem.steps + 1):
            before = model.below[i, t - 1] if t else began
            model.program += model.below[i, t] <= before + model.stores[i, t]
            if t and model.problem.writers[i]:
                written = model.runs(model.problem.writers[i], t - 1)
                model.program += model.below[i, t] <= model.stores[i, t] + 1 - written


def _stores_need_presence(model: Model) -> None:
    """s[i,t] <= r[i,t-1];  s[i,0] <= 1 if i begins on chip, else 0."""
    for (i, t), store in model.stores.items():
        there = model.problem.tensors[i].begins in (Begin.FAST, Begin.BOTH)
        model.program += store <= (model.r[i, t - 1] if t else int(there))


def _begins(model: Model) -> None:
    """k[i,0] <= 1 if i begins on chip; <= k[i,T] if cyclic and it begins below; else 0. r[i,0] = 1 if i arrives."""
    for i, tensor in enumerate(model.problem.tensors):
        if tensor.begins in (Begin.FAST, Begin.BOTH):
            continue
        model.program += model.k[i, 0] <= (model.k[i, model.problem.steps] if model.problem.wraps(i) else 0)
        if tensor.begins is Begin.ARRIVES and model.problem.steps:
            model.program += model.r[i, 0] >= 1


def _ends(model: Model) -> None:
    """Ends below: b[i,T] >= 1, but where the next pass begins with it: then its first use asks for it. Ends on chip:
    k[i,T] >= 1. Alive: k[i,T] + b[i,T] >= 1."""
    last = model.problem.steps
    for i, tensor in enumerate(model.problem.tensors):
        if tensor.ends in (End.BELOW, End.BOTH) and not model.problem.wraps(i):
            model.program += model.below[i, last] >= 1
        if tensor.ends in (End.FAST, End.BOTH):
            model.program += model.k[i, last] >= 1
        if tensor.ends is End.ALIVE:
            model.program += model.k[i, last] + model.below[i, last] >= 1


def _capacity(model: Model) -> None:
    """sum_i room_i r[i,t] <= capacity."""
    for t in range(model.problem.steps):
        terms = [(tensor.room, model.r[i, t]) for i, tensor in enumerate(model.problem.tensors)]
        at_most(model.pulp, model.program, terms, model.problem.capacity_nbytes, f"capacity_{t}")


def _addresses(model: Model) -> None:
    """alignment_i A[i,t] + room_i <= capacity;  |A[i,t] - A[i,t-1]| <= M (1 - k[i,t]);
    alignment_i A[i,t] + room_i <= alignment_j A[j,t] + M (1 - u[i,j,t]);
    u[i,j,t] + u[j,i,t] >= r[i,t] + r[j,t] - 1."""
    problem, program = model.problem, model.program
    unit = unit_of([n for t in problem.tensors if t.room for n in (t.room, t.alignment)])
    whole = problem.capacity_nbytes // unit
    if whole > MOST_UNITS:
        raise ValueError(
            f"addresses in {problem.capacity_nbytes} bytes at multiples of {unit} are {whole} places, the program "
            f"tells at most {MOST_UNITS} apart; leave offsets out and pack the result"
        )
    sizes = {i: t.room // unit for i, t in enumerate(problem.tensors) if 0 < t.room <= problem.capacity_nbytes}
    at: dict[tuple[int, int], Any] = {}
    for i, size in sizes.items():
        step = problem.tensors[i].alignment // unit
        for t in range(problem.steps):
            place = model.pulp.LpVariable(f"a_{i}_{t}", 0, (whole - size) // step, model.pulp.LpInteger)
            at[i, t] = step * place
            model.addresses[i, t] = problem.tensors[i].alignment * place
    for (i, t), address in at.items():
        before, moves = at[i, t - 1 if t else problem.steps - 1], whole * (1 - model.k[i, t])
        if t or problem.wraps(i):
            program += address - before <= moves
            program += before - address <= moves
    for t in range(problem.steps):
        for i, j in combinations(sizes, 2):
            under, over = model.binary(f"u_{i}_{j}_{t}"), model.binary(f"u_{j}_{i}_{t}")
            program += under + over >= model.r[i, t] + model.r[j, t] - 1
            program += at[i, t] + sizes[i] <= at[j, t] + whole * (1 - under) + sizes[i] * (1 - under)
            program += at[j, t] + sizes[j] <= at[i, t] + whole * (1 - over) + sizes[j] * (1 - over)


def _objective(model: Model) -> None:
    """min sum nbytes_i (l[i,t] + s[i,t]) + sum over alive i of nbytes_i (1 - k[i,T]), in digits."""
    terms: list[tuple[int, Any]] = []
    for moves in (model.loads, model.stores):
        terms += [
            (model.problem.tensors[i].nbytes, move) for (i, _), move in moves.items() if not isinstance(move, int)
        ]
    for i, tensor in enumerate(model.problem.tensors):
        if tensor.ends is End.ALIVE:
            away = model.binary(f"away_{i}")
            model.program += away >= 1 - model.k[i, model.problem.steps]
            terms.append((tensor.nbytes, away))
    model.objective = objective_digits(model.pulp, model.program, terms, "moved")
