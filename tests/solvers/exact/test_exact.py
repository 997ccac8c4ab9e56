"""The oracle against everything tried, at ordinary and at hostile scales; its validator; its ways to fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tensorstow.solvers.exact import (
    Begin,
    End,
    Operator,
    Tensor,
    TrafficProblem,
    check_traffic,
    moved_nbytes,
    solve_traffic,
)
from tensorstow.solvers.exact import solve as solve_module
from tensorstow.solvers.result import Status

from .brute import least_nbytes, random_problem

LONG_S = 600.0


def hold(problem: TrafficProblem, engine: str) -> None:
    """The oracle's answer is what trying everything finds."""
    wanted = least_nbytes(problem)
    result = solve_traffic(problem, time_limit_s=LONG_S, engine=engine)
    if wanted is None:
        assert result.status is Status.INFEASIBLE, result
        return
    assert result.status is Status.OPTIMAL, result
    assert result.solution is not None
    assert result.objective == result.bound == wanted
    assert not check_traffic(problem, result.solution)
    assert moved_nbytes(problem, result.solution) == wanted


@pytest.mark.parametrize("engine", ["cbc", "highs"])
@pytest.mark.parametrize("seed", range(9))
def test_order_and_residency(seed: int, engine: str) -> None:
    hold(random_problem(seed), engine)


@pytest.mark.parametrize("seed", range(12, 20))
def test_residency_in_a_fixed_order(seed: int) -> None:
    hold(random_problem(seed, operators=6, fixed=True), "cbc")


@pytest.mark.parametrize("seed", [40, 41, 42, 43, 44, 45, 46, 48, 50, 51])
def test_what_changes_in_place_or_in_pieces(seed: int) -> None:
    """Values and weights that several operators write, in a free and in a given order, for one pass and for many."""
    problem = random_problem(seed, writes=0.6, fixed=seed % 3 == 0)
    for cyclic in (False, True):
        hold(replace(problem, cyclic=cyclic), "highs")


@pytest.mark.parametrize("seed", [60, 61, 62, 64, 65])
def test_where_nothing_can_be_stored(seed: int) -> None:
    """What is made stays while it is needed, what is dropped is gone: some orders have no pass at all."""
    problem = replace(random_problem(seed, fixed=seed % 2 == 0), one_way=True)
    hold(problem, "highs")
    roomy = replace(problem, capacity_nbytes=sum(t.room for t in problem.tensors))
    hold(roomy, "highs")
    found = solve_traffic(replace(problem, one_way=False), engine="highs").solution
    assert found is not None
    stores = any(found.stores)
    assert stores == any("nothing can be stored" in w for w in check_traffic(problem, found))


def test_addresses_of_what_changes_in_place() -> None:
    hold(replace(random_problem(44, operators=3, offsets=True, writes=0.6), cyclic=True), "highs")


@pytest.mark.parametrize("engine", ["cbc", "highs"])
@pytest.mark.parametrize("seed", [20, 21, 24])
def test_order_residency_and_addresses(seed: int, engine: str) -> None:
    hold(random_problem(seed, operators=3, offsets=True), engine)


def test_addresses_cost_bytes_where_they_do_not_fit() -> None:
    """Single bytes that die with others between them leave holes: with addresses something may have to move."""
    tensors = (
        *(Tensor(n) for n in (1, 2, 1, 2)),
        Tensor(1, ends=End.FAST),
    )
    operators = (
        Operator((), (0,)),
        Operator((), (1,)),
        Operator((), (2,)),
        Operator((0, 2), (4,)),
        Operator((1,), (3,)),
        Operator((3, 4), ()),
    )
    free = TrafficProblem(operators, tensors, 5, order=(0, 1, 2, 3, 4, 5))
    packed = replace(free, offsets=True)
    hold(free, "highs")
    hold(packed, "highs")
    aligned = replace(packed, tensors=tuple(replace(t, alignment=2) for t in tensors))
    hold(aligned, "highs")


@pytest.mark.parametrize("engine", ["cbc", "highs"])
@pytest.mark.parametrize(
    ("unit", "odd"),
    [(1, 0), (10**12, 0), (1 << 40, 1), ((1 << 40) + 1, 7), (1 << 53, 3), ((1 << 60) + 12345, 9), (10**30, 1)],
)
@pytest.mark.parametrize("seed", [5])
def test_no_scale_turns_into_a_wrong_optimum(seed: int, unit: int, odd: int, engine: str) -> None:
    """Sizes that differ in their last byte beside 2^40 and more: what an engine's tolerance cannot see."""
    hold(random_problem(seed, operators=4, unit=unit, odd=odd), engine)


@pytest.mark.parametrize("engine", ["cbc", "highs"])
def test_one_byte_in_a_terabyte_decides(engine: str) -> None:
    """Two values of almost the same size, of which one must leave: the smaller by one byte leaves."""
    big = 1 << 40
    tensors = (Tensor(big + 1), Tensor(big), Tensor(big), Tensor(big), Tensor(1, ends=End.FAST))
    operators = (
        Operator((), (0,)),
        Operator((), (1,)),
        Operator((), (2, 3)),
        Operator((2, 3), (4,)),
        Operator((0, 1), ()),
    )
    problem = TrafficProblem(operators, tensors, 3 * big + 2, order=(0, 1, 2, 3, 4))
    result = solve_traffic(problem, time_limit_s=LONG_S, engine=engine)
    assert result.objective == result.bound == 2 * big
    hold(problem, engine)
    tight = replace(problem, capacity_nbytes=3 * big + 1)
    result = solve_traffic(tight, time_limit_s=LONG_S, engine=engine)
    assert result.objective == 2 * (big + 1), "one byte less, and only the larger one makes room"


def test_addresses_at_a_hostile_scale_are_refused() -> None:
    problem = random_problem(3, operators=3, unit=1 << 40, odd=1)
    with pytest.raises(ValueError, match="leave offsets out and pack"):
        solve_traffic(replace(problem, offsets=True))
    hold(replace(random_problem(21, operators=3, offsets=False), offsets=False), "cbc")


def test_large_addresses_with_a_common_divisor_are_fine() -> None:
    small = random_problem(20, operators=3, offsets=True)
    scaled = replace(
        small,
        tensors=tuple(replace(t, nbytes=t.nbytes << 40, alignment=1 << 40) for t in small.tensors),
        capacity_nbytes=small.capacity_nbytes << 40,
    )
    result = solve_traffic(scaled, time_limit_s=LONG_S)
    assert result.objective == (least_nbytes(small) or 0) << 40


def test_a_value_written_in_pieces_may_leave_between_them() -> None:
    """Its first piece goes below while what the second is made of is worked out, and comes back for it."""
    tensors = (Tensor(4), Tensor(3), Tensor(1), Tensor(1, ends=End.FAST))
    uses = ((), 0), ((), 1), ((1,), 2), ((2,), 0), ((0,), 3)
    operators = tuple(Operator(reads, (written,)) for reads, written in uses)
    problem = TrafficProblem(operators, tensors, 8, order=(0, 1, 2, 3, 4))
    for capacity, moved in ((8, 0), (7, 8), (5, 8)):
        hold(replace(problem, capacity_nbytes=capacity), "highs")
        assert solve_traffic(replace(problem, capacity_nbytes=capacity)).objective == moved
        hold(replace(problem, capacity_nbytes=capacity, order=None), "highs")
    result = solve_traffic(replace(problem, capacity_nbytes=4))
    assert result.status is Status.INFEASIBLE
    assert "operator 3 needs 5 bytes on chip, the capacity is 4" in result.detail


def test_what_begins_below_is_loaded_before_it_is_written() -> None:
    """Another operator's write into it is a change, as is the first: only what is nowhere comes into being by it."""
    tensors = (Tensor(5, Begin.BELOW, End.BELOW), Tensor(1, ends=End.FAST))
    for inputs in ((0,), ()):
        problem = TrafficProblem((Operator(inputs, (0,)), Operator((), (1,))), tensors, 6)
        hold(problem, "highs")
        solution = solve_traffic(problem).solution
        assert solution is not None and moved_nbytes(problem, solution) == 10
        wrong = check_traffic(problem, replace(solution, loads=((),) * 3))
        assert any("0 is on chip and came from nowhere" in w for w in wrong)


def test_what_passes_change_and_keep_is_never_stored() -> None:
    """Passes that follow one another: it stays while there is room; where it must leave, its change goes with it."""
    tensors = (Tensor(5, Begin.BELOW, End.BELOW), Tensor(3), Tensor(1, ends=End.FAST))
    operators = (Operator((0,), (0,)), Operator((), (1,)), Operator((1,), (2,)))
    problem = TrafficProblem(operators, tensors, 9, order=(0, 1, 2), cyclic=True)
    for capacity, moved in ((9, 0), (8, 10), (7, 10)):
        hold(replace(problem, capacity_nbytes=capacity), "highs")
        assert solve_traffic(replace(problem, capacity_nbytes=capacity)).objective == moved
    solution = solve_traffic(replace(problem, capacity_nbytes=7)).solution
    assert solution is not None
    wrong = check_traffic(replace(problem, capacity_nbytes=7), replace(solution, stores=((),) * 4))
    assert any("loads 0, which is not below" in w for w in wrong)
    once = solve_traffic(replace(problem, cyclic=False))
    assert once.objective == 10, "one pass alone loads it and stores it"


def test_what_must_end_on_chip_and_below() -> None:
    tensors = (Tensor(5, Begin.BELOW, End.BOTH), Tensor(3))
    problem = TrafficProblem((Operator((0,), (0,)), Operator((), (1,))), tensors, 8, order=(0, 1))
    hold(problem, "highs")
    assert solve_traffic(problem).objective == 10
    assert solve_traffic(replace(problem, capacity_nbytes=7)).status is Status.INFEASIBLE


def test_states_at_the_boundaries_of_a_part() -> None:
    """FAST, BOTH and ALIVE: what the parts of a longer order hand to one another."""
    tensors = (
        Tensor(5, Begin.FAST, End.ALIVE),
        Tensor(4, Begin.BOTH, End.ALIVE),
        Tensor(6),
        Tensor(2, ends=End.ALIVE),
    )
    operators = (Operator((), (2,)), Operator((2,), (3,)))
    for capacity in range(8, 18):
        hold(TrafficProblem(operators, tensors, capacity), "highs")


def test_a_pass_without_steps() -> None:
    assert solve_traffic(TrafficProblem((), (), 0)).objective == 0
    problem = TrafficProblem((), (Tensor(3, Begin.FAST, End.BELOW),), 5)
    assert solve_traffic(problem).status is Status.INFEASIBLE


def test_the_validator_sees_every_kind_of_fault() -> None:
    problem = random_problem(20, operators=3, offsets=True)
    solution = solve_traffic(problem, time_limit_s=LONG_S).solution
    assert solution is not None and solution.offsets is not None
    steps = problem.steps
    faults = {
        "came from nowhere": replace(
            solution, present=tuple(tuple(range(len(problem.tensors))) for _ in range(steps)), offsets=None
        ),
        "is needed": replace(solution, present=((),) * steps, offsets=((),) * steps),
        "not below": replace(solution, loads=((len(problem.tensors) - 1,), *solution.loads[1:])),
        "not on chip": replace(solution, stores=((len(problem.tensors) - 1,), *solution.stores[1:])),
        "runs before": replace(solution, order=tuple(reversed(solution.order))),
        "no addresses": replace(solution, offsets=None),
        "share addresses": replace(solution, offsets=tuple((0,) * len(o) for o in solution.offsets)),
        "bytes long, of": replace(solution, offsets=tuple((10**6,) * len(o) for o in solution.offsets)),
        "states in": replace(solution, present=solution.present[1:]),
    }
    for words, wrong in faults.items():
        assert any(words in w for w in check_traffic(problem, wrong)), words
    small = replace(problem, capacity_nbytes=1, offsets=False)
    assert any("the capacity is 1" in w for w in check_traffic(small, solution))


def test_bad_problems_are_named() -> None:
    one = (Tensor(3),)
    with pytest.raises(ValueError, match="names tensor 4; there are 1"):
        TrafficProblem((Operator((4,), ()),), one, 5)
    with pytest.raises(ValueError, match="reads tensor 0, which is neither there nor made"):
        TrafficProblem((Operator((0,), ()),), one, 5)
    with pytest.raises(ValueError, match="negative capacity -1"):
        TrafficProblem((), one, -1)
    with pytest.raises(ValueError, match="tensor 0: -3 bytes"):
        TrafficProblem((), (Tensor(-3),), 5)
    two = (Operator((), (0,)), Operator((0,), ()))
    with pytest.raises(ValueError, match="before operator 0 that it needs"):
        TrafficProblem(two, one, 5, order=(1, 0))
    with pytest.raises(ValueError, match="not each of the 2 operators once"):
        TrafficProblem(two, one, 5, order=(1, 1))
    with pytest.raises(ValueError, match="which is a circle"):
        TrafficProblem(two, one, 5, precedence=((1, 0),))
    with pytest.raises(ValueError, match="no engine is called 'guess'"):
        solve_traffic(TrafficProblem(two, one, 5), engine="guess")


def test_an_engine_that_dies_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pulp

    dying = tmp_path / "cbc"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o755)
    api: Any = pulp
    path = str(dying)
    monkeypatch.setattr(solve_module, "_engine", lambda *_: api.COIN_CMD(path=path, msg=False))  # pyright: ignore[reportUnknownLambdaType]
    result = solve_traffic(random_problem(3))
    assert result.status is Status.ERROR
    assert "cbc broke down" in result.detail


def test_a_program_too_large_is_not_built() -> None:
    tensors = tuple(Tensor(1) for _ in range(600))
    result = solve_traffic(TrafficProblem(tuple(Operator((), (i,)) for i in range(600)), tensors, 600))
    assert result.status is Status.ERROR
    assert "fix the order, or solve parts" in result.detail


def test_a_program_of_too_many_terms_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of operators is a sum over all steps at each of them: few variables may stand in very many places."""

    def builds(*_: object) -> None:
        raise AssertionError("it is built")

    monkeypatch.setattr(solve_module, "build", builds)
    steps = 150
    pairs = tuple((a, b) for a in range(steps) for b in range(a + 1, steps))
    problem = TrafficProblem((Operator((), (0,)),) + (Operator((0,), ()),) * (steps - 1), (Tensor(1),), 1, pairs)
    result = solve_traffic(problem)
    assert result.status is Status.ERROR
    assert "entries in its rows" in result.detail and "fix the order" in result.detail
    with pytest.raises(AssertionError, match="it is built"):
        solve_traffic(replace(problem, order=tuple(range(steps))))


def test_no_time_is_unknown_and_the_bound_still_holds() -> None:
    problem = random_problem(3)
    result = solve_traffic(problem, time_limit_s=0.0)
    assert result.status is Status.UNKNOWN
    assert result.bound is not None and result.bound <= (least_nbytes(problem) or 0)
