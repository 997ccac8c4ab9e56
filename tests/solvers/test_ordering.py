"""Orders: every schedule is valid, the exact answers are those of trying all, search never ends worse than it began."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.ordering import (
    Operator,
    Order,
    OrderingProblem,
    Value,
    check_order,
    excess,
    from_outputs,
    improve,
    list_order,
    live_profile,
    mirrored,
    peak,
    portfolio,
    simple_orders,
    solve_exact,
    solve_excess,
)
from tensorstow.solvers.ordering.cpsat import improve_by_cpsat
from tensorstow.solvers.ordering.search import open_window
from tensorstow.solvers.result import Status

LONG_S = 600.0


def program(problem: OrderingProblem) -> Order:
    return tuple(range(problem.steps))


def random_problem(seed: int, operators: int) -> OrderingProblem:
    """Operators that read some earlier values, write one or two, and sometimes write an old one in place."""
    rng = random.Random(seed)
    values: list[Value] = [Value(rng.randint(1, 9), given=True, kept=rng.random() < 0.2)]
    writer: list[int | None] = [None]
    readers: list[list[int]] = [[]]
    made: list[set[int]] = []
    pairs: set[tuple[int, int]] = set()
    for o in range(operators):
        touches = set(rng.sample(range(len(values)), min(len(values), rng.randint(0, 3))))
        for v in touches:
            if (w := writer[v]) is not None:
                pairs.add((w, o))
            if rng.random() < 0.2:
                pairs.update((r, o) for r in readers[v])
                writer[v], readers[v] = o, []
            else:
                readers[v].append(o)
        for _ in range(rng.randint(1, 2)):
            touches.add(len(values))
            values.append(Value(rng.randint(0, 9), kept=rng.random() < 0.15))
            writer.append(o)
            readers.append([])
        made.append(touches)
    used = sorted({v for touches in made for v in touches})
    number = {v: i for i, v in enumerate(used)}
    calls = [
        Operator(tuple(sorted(number[v] for v in t)), rng.randint(0, 5), rng.choice([0, 0, rng.randint(0, 6)]))
        for t in made
    ]
    return OrderingProblem(tuple(calls), tuple(values[v] for v in used), tuple(sorted(pairs)))


def all_orders(problem: OrderingProblem) -> list[Order]:
    return [order for order in permutations(range(problem.steps)) if not check_order(problem, order)]


def held_by_definition(problem: OrderingProblem, order: Order) -> list[int]:
    """Step by step, from what `Value` and `Operator` say."""
    held: list[int] = []
    for t, o in enumerate(order):
        live = problem.operators[o].own_nbytes
        for v, value in enumerate(problem.values):
            used = [n for n, p in enumerate(order) if v in problem.operators[p].touches]
            live += value.nbytes * ((value.given or used[0] <= t) and (value.kept or t <= used[-1]))
        held.append(live)
    return held


problems = st.builds(random_problem, st.integers(0, 10**6), st.integers(1, 30))
small = st.builds(random_problem, st.integers(0, 10**6), st.integers(1, 6))


@settings(deadline=None, max_examples=40)
@given(problems)
def test_every_schedule_is_valid(problem: OrderingProblem) -> None:
    found = simple_orders(problem)
    assert len(set(found.values())) == len(found)
    for name, order in found.items():
        assert not check_order(problem, order), name
        assert live_profile(problem, order) == held_by_definition(problem, order)
    back = mirrored(problem)
    turned = tuple(problem.steps - 1 - o for o in reversed(program(problem)))
    assert live_profile(back, turned) == live_profile(problem, program(problem))[::-1]


@settings(deadline=None, max_examples=60)
@given(small)
def test_the_least_peak_is_that_of_trying_all(problem: OrderingProblem) -> None:
    least = min(peak(problem, order) for order in all_orders(problem))
    result = solve_exact(problem, time_limit_s=LONG_S)
    assert result.status is Status.OPTIMAL
    assert result.solution is not None and not check_order(problem, result.solution)
    assert result.objective == result.bound == least == peak(problem, result.solution)


@settings(deadline=None, max_examples=60)
@given(small, st.integers(-2, 8), st.integers(0, 25))
def test_the_least_excess_is_that_of_trying_all(problem: OrderingProblem, slack: int, level: int) -> None:
    orders = all_orders(problem)
    limit = min(peak(problem, order) for order in orders) + slack
    within = [excess(problem, order, level) for order in orders if peak(problem, order) <= limit]
    result = solve_excess(problem, limit_nbytes=limit, above_nbytes=level, time_limit_s=LONG_S)
    if not within:
        assert result.status is Status.INFEASIBLE
        return
    assert result.status is Status.OPTIMAL and result.solution is not None
    assert peak(problem, result.solution) <= limit
    assert result.objective == min(within) == excess(problem, result.solution, level)


@pytest.mark.parametrize("seed", range(8))
def test_too_few_sets_prove_less_but_nothing_wrong(seed: int) -> None:
    problem = random_problem(seed, 12)
    best = solve_exact(problem, time_limit_s=LONG_S).objective
    for states in (1, 5, 20, 80):
        result = solve_exact(problem, states=states, time_limit_s=LONG_S)
        assert result.solution is not None and not check_order(problem, result.solution)
        assert result.bound is not None and result.objective is not None and best is not None
        assert result.bound <= best <= result.objective == peak(problem, result.solution)


@pytest.mark.parametrize("seed", range(10))
def test_cp_sat_finds_what_the_sets_find(seed: int) -> None:
    problem = random_problem(seed, 5)
    start = program(problem)
    highest = peak(problem, start)
    least = solve_exact(problem, time_limit_s=LONG_S).objective
    order = improve_by_cpsat(problem, limit_nbytes=highest, above_nbytes=None, time_limit_s=LONG_S, seed=0)
    assert (order is None) == (least == highest)
    assert order is None or (peak(problem, order) == least and not check_order(problem, order))
    order = improve_by_cpsat(problem, limit_nbytes=highest, above_nbytes=highest // 2, time_limit_s=LONG_S, seed=0)
    assert order is None or not check_order(problem, order)
    assert order is None or excess(problem, order, highest // 2) < excess(problem, start, highest // 2)
    assert order is None or peak(problem, order) <= highest


@settings(deadline=None, max_examples=15)
@given(problems, st.booleans(), st.integers(0, 1000))
def test_search_is_never_worse_than_its_start(problem: OrderingProblem, levelled: bool, seed: int) -> None:
    start = program(problem)
    level = peak(problem, start) // 2 if levelled else None

    def score(order: Order) -> tuple[int, int, int]:
        over = 0 if level is None else excess(problem, order, level)
        return over, peak(problem, order), excess(problem, order)

    order = improve(problem, start, above_nbytes=level, time_limit_s=LONG_S, rounds=12, seed=seed)
    assert not check_order(problem, order)
    assert score(order) <= score(start)
    assert order == improve(problem, start, above_nbytes=level, time_limit_s=LONG_S, rounds=12, seed=seed)


@settings(deadline=None, max_examples=40)
@given(problems, st.data())
def test_a_window_holds_what_the_whole_holds_there(problem: OrderingProblem, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, problem.steps - 1))
    end = data.draw(st.integers(begin + 1, problem.steps))
    order = list(program(problem))
    profile = live_profile(problem, order)
    window = open_window(problem, order, order, begin, end, None, profile[begin])
    inside = list_order(window)
    assert live_profile(window, range(window.steps)) == profile[begin:end]
    whole = [*order[:begin], *(begin + o for o in inside), *order[end:]]
    assert not check_order(problem, whole)
    assert live_profile(problem, whole)[begin:end] == live_profile(window, inside)


def branches(count: int, wide: int, narrow: int) -> OrderingProblem:
    """All wide values first, then one narrow result of each, then one of all: depth first holds one wide at a time."""
    values = [Value(wide)] * count + [Value(narrow)] * count + [Value(1, kept=True)]
    operators = [Operator((i,)) for i in range(count)] + [Operator((i, count + i)) for i in range(count)]
    operators.append(Operator((*range(count, 2 * count), 2 * count)))
    pairs = [(i, count + i) for i in range(count)] + [(count + i, 2 * count) for i in range(count)]
    return OrderingProblem(tuple(operators), tuple(values), tuple(pairs))


@pytest.mark.parametrize("count", [2, 5, 40])
def test_branches_one_after_another_hold_less(count: int) -> None:
    problem = branches(count, 100, 1)
    assert peak(problem, program(problem)) == 100 * count + 1
    for order in (list_order(problem), from_outputs(problem), from_outputs(problem, by_need=True)):
        assert peak(problem, order) == 100 + count
    if count < 10:  # twins are told apart: their sets are 3 ** count
        result = solve_exact(problem, time_limit_s=LONG_S)
        assert result.status is Status.OPTIMAL and result.objective == 100 + count


def test_search_finds_the_order_of_branches() -> None:
    problem = branches(6, 100, 1)
    assert peak(problem, improve(problem, program(problem), time_limit_s=LONG_S, seed=1)) == 106


def test_a_window_limits_how_far_an_operator_comes_forward() -> None:
    problem = random_problem(4, 60)
    for window in (1, 3, 10):
        done: set[int] = set()
        for o in list_order(problem, window):
            assert o < min(set(range(problem.steps)) - done) + window
            done.add(o)
    assert list_order(problem, 1) == program(problem)


def test_a_chain_has_one_order() -> None:
    count = 20_000
    calls = [Operator((o, o + 1) if o + 1 < count else (o,)) for o in range(count)]
    pairs = tuple((o, o + 1) for o in range(count - 1))
    problem = OrderingProblem(tuple(calls), (Value(5),) * count, pairs)
    assert problem.fixed
    assert list(portfolio(problem)) == ["program"]
    assert improve(problem, program(problem)) == program(problem)
    result = solve_exact(problem, states=0)
    assert result.status is Status.OPTIMAL and result.objective == 10


def test_long_graphs_are_scheduled() -> None:
    rng = random.Random(0)
    count = 20_000
    reads = [{o - 1 - int(rng.expovariate(0.05)) for _ in range(2)} for o in range(count)]
    calls = [Operator((o, *sorted(a for a in reads[o] if a >= 0))) for o in range(count)]
    pairs = tuple((a, o) for o in range(count) for a in reads[o] if a >= 0)
    problem = OrderingProblem(tuple(calls), tuple(Value(rng.randint(1, 99)) for _ in range(count)), pairs)
    for order in (list_order(problem, 64), from_outputs(problem, by_need=True)):
        assert not check_order(problem, order)


def test_no_operators() -> None:
    problem = OrderingProblem((), ())
    assert portfolio(problem) == {"program": ()}
    assert solve_exact(problem).objective == 0


def test_what_is_wrong_is_said() -> None:
    one = (Operator((0,)), Operator((0,)))
    with pytest.raises(ValueError, match=r"precedence \(1, 0\) of 2 operators is against their order"):
        OrderingProblem(one, (Value(1),), ((1, 0),))
    with pytest.raises(ValueError, match="value 1 is touched by no operator"):
        OrderingProblem(one, (Value(1), Value(2)))
    with pytest.raises(ValueError, match="value 0: negative size -1"):
        OrderingProblem(one, (Value(-1),))
    with pytest.raises(ValueError, match="operator 0 touches value 3 of 1"):
        OrderingProblem((Operator((3,)),), (Value(1),))
    problem = OrderingProblem(one, (Value(1),), ((0, 1),))
    assert "operator 1 stands at 0, before operator 0 at 1" in check_order(problem, (1, 0))[0]
    with pytest.raises(ValueError, match="not valid"):
        improve(problem, (1, 0))
