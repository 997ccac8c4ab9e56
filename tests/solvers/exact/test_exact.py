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


def test_a_value_written_in_pieces_stays_until_it_is_whole() -> None:
    tensors = (Tensor(4), Tensor(3), Tensor(1, ends=End.FAST))
    operators = (Operator((), (0,)), Operator((), (1,)), Operator((1,), (0,)), Operator((0,), (2,)))
    hold(TrafficProblem(operators, tensors, 7, order=(0, 1, 2, 3)), "highs")
    hold(TrafficProblem(operators, tensors, 7), "highs")
    result = solve_traffic(TrafficProblem(operators, tensors, 6, order=(0, 1, 2, 3)))
    assert result.status is Status.INFEASIBLE
    assert "operator 1 needs 7 bytes on chip, the capacity is 6" in result.detail


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


def test_no_time_is_unknown_and_the_bound_still_holds() -> None:
    problem = random_problem(3)
    result = solve_traffic(problem, time_limit_s=0.0)
    assert result.status is Status.UNKNOWN
    assert result.bound is not None and result.bound <= (least_nbytes(problem) or 0)
