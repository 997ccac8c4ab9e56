"""Engines agree with one another and with brute force, whatever the units; what they cannot do they say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers import cbc, engines
from tensorstow.solvers.builder import ProgramBuilder
from tensorstow.solvers.cpsat import solve_cpsat
from tensorstow.solvers.engines import NAMES, WHOLE, linear_engine, solve_whole, whole_engines
from tensorstow.solvers.linear import ENGINES, LinearAnswer, LinearProgram
from tensorstow.solvers.result import Status


def covering(costs: list[float], weights: list[int], demand: int, unit: float = 1.0, most: int = 1) -> LinearProgram:
    """The cheapest choice of whole x <= `most` whose weights (in `unit`) reach the demand."""
    builder = ProgramBuilder()
    x = builder.add_columns(len(costs), float(most))
    row = builder.add_rows(1, demand * unit, math.inf)
    builder.put(np.repeat(row, len(x)), x, np.array(weights, dtype=np.float64) * unit)
    return replace(builder.program(np.array(costs)), integer=np.ones(len(costs), dtype=np.bool_))


def cheapest(costs: list[float], weights: list[int], demand: int, most: int = 1) -> Fraction | None:
    choices = itertools.product(range(most + 1), repeat=len(costs))
    found = [
        sum((Fraction(c) * n for c, n in zip(costs, chosen, strict=True)), Fraction(0))
        for chosen in choices
        if sum(w * n for w, n in zip(weights, chosen, strict=True)) >= demand
    ]
    return min(found, default=None)


@pytest.mark.parametrize("engine", ["highs", "cbc", "cpsat"])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
@pytest.mark.parametrize("row_unit", [2.0**-30, 1.0, 2.0**40])
def test_no_unit_makes_a_wrong_optimum(engine: str, unit: float, row_unit: float) -> None:
    costs, weights = [unit * c for c in (31, 27, 53, 12, 40, 22)], [5, 4, 9, 2, 7, 3]
    best = cheapest(costs, weights, 16)
    assert best is not None
    answer = solve_whole(covering(costs, weights, 16, row_unit), engine, 10.0)
    assert answer.status is Status.OPTIMAL, answer
    assert answer.values is not None
    assert answer.bound is not None
    assert float(np.array(costs) @ answer.values) == pytest.approx(float(best), rel=1e-9)
    assert Fraction(answer.bound) <= best * (1 + Fraction(1, 10**9))
    assert answer.bound >= float(best) * (1 - 2e-5)


@pytest.mark.parametrize("engine", ["highs", "cbc", "cpsat"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_mixed_units_make_no_wrong_optimum(engine: str, data: st.DataObject) -> None:
    """Costs from 1e-9 to 1e12 in one objective: the dearest column says nothing of what the optimum costs."""
    count = data.draw(st.integers(2, 5))
    costs = [data.draw(st.integers(1, 99)) * 10.0 ** data.draw(st.integers(-9, 12)) for _ in range(count)]
    weights = [data.draw(st.integers(1, 9)) for _ in range(count)]
    demand = data.draw(st.integers(0, sum(weights) * 2))
    best = cheapest(costs, weights, demand, most=2)
    assert best is not None
    answer = solve_whole(covering(costs, weights, demand, most=2), engine, 10.0)
    assert answer.status is Status.OPTIMAL, answer
    assert answer.values is not None
    assert float(np.array(costs) @ answer.values) == pytest.approx(float(best), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_counted_form_of_a_program_bounds_it(data: st.DataObject) -> None:
    """Mixed programs: the bound of CP-SAT is below the optimum of HiGHS, and near it."""
    count, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    numbers = st.integers(-9, 9)
    scale = 10.0 ** data.draw(st.integers(-3, 3))
    builder = ProgramBuilder()
    x = builder.add_columns(count, np.array([float(data.draw(st.integers(0, 5))) for _ in range(count)]))
    y = builder.add_columns(2, 7.3 * scale, -1.1 * scale)
    both = np.concatenate([x, y])
    for _ in range(rows):
        row = builder.add_rows(1, -math.inf, float(data.draw(st.integers(-5, 20))) * scale)
        builder.put(np.repeat(row, len(both)), both, np.array([data.draw(numbers) * scale for _ in both]))
    cost = np.array([float(data.draw(numbers)) for _ in both])
    program = replace(builder.program(cost), integer=np.arange(len(both)) < count)
    reference, counted = solve_whole(program, "highs", 10.0), solve_cpsat(program, 10.0)
    if reference.status is Status.INFEASIBLE:
        return  # the counted form may be feasible by what it rounds off
    assert reference.values is not None
    assert counted.bound is not None
    best = float(cost @ reference.values)
    size = 1e-6 * (1 + float(np.abs(cost) @ np.maximum(np.abs(program.col_lower), program.col_upper)))
    assert counted.bound <= best + size / 10
    whole = solve_whole(program, "cpsat", 10.0)
    if whole.status is Status.OPTIMAL:
        assert whole.values is not None
        assert float(cost @ whole.values) == pytest.approx(best, abs=size)
    else:  # what was rounded off let it choose what does not hold, and it says so
        assert whole.status in (Status.ERROR, Status.FEASIBLE), whole


@pytest.mark.parametrize("engine", ["highs", "cbc", "cpsat"])
def test_infeasible_and_out_of_time_are_different_words(engine: str) -> None:
    impossible = covering([1.0, 2.0], [1, 1], 3)
    assert solve_whole(impossible, engine, 10.0).status is Status.INFEASIBLE
    late = solve_whole(impossible, engine, 0.0)
    assert late.status is Status.UNKNOWN
    assert late.values is None
    hinted = solve_whole(
        covering([1.0, 2.0], [1, 1], 1), engine, 0.0, hint=(np.arange(2, dtype=np.int32), np.array([0.0, 1.0]))
    )
    assert hinted.status is Status.FEASIBLE
    assert hinted.values is not None
    assert hinted.values.tolist() == [0.0, 1.0]


def test_an_engine_that_breaks_down_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = covering([1.0, 2.0], [1, 1], 1)

    def crash(*_: object) -> LinearAnswer:
        raise RuntimeError("basis is singular")

    for name in WHOLE:
        with monkeypatch.context() as patched:
            patched.setitem(engines.WHOLE, name, crash)
            broken = solve_whole(program, name, 5.0)
            assert broken.status is Status.ERROR
            assert "broke down: RuntimeError: basis is singular" in broken.detail
    with monkeypatch.context() as patched:  # unless it was not asked for
        patched.setitem(engines.WHOLE, "highs", crash)
        assert solve_whole(program, "auto", 5.0).status is Status.OPTIMAL


def test_cbc_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import pulp

    def dies(*_: object, **__: object) -> int:
        raise pulp.PulpSolverError("Pulp: Error while executing cbc")

    monkeypatch.setattr(pulp.PULP_CBC_CMD, "actualSolve", dies)
    answer = cbc.solve_cbc(covering([1.0], [1], 1), 5.0)
    assert answer.status is Status.ERROR
    assert "CBC broke down" in answer.detail


def test_answers_that_do_not_hold_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    program = covering([1.0, 2.0], [1, 1], 2)
    wrong = LinearAnswer(Status.OPTIMAL, np.array([1.0, 0.0]), None, 1.0)

    def says(*_: object) -> LinearAnswer:
        return wrong

    monkeypatch.setitem(engines.WHOLE, "highs", says)
    answer = solve_whole(program, "highs", 5.0)
    assert answer.status is Status.ERROR
    assert "row 0 is 1, outside [2, inf]" in answer.detail


@pytest.mark.parametrize(
    "second",
    [
        LinearAnswer(Status.FEASIBLE, np.array([0.0, 1.0, 1.0, 0.0]), None, 0.1),
        LinearAnswer(Status.INFEASIBLE, None, None, detail="proven"),
        LinearAnswer(Status.UNKNOWN, None, None, detail="time ran out"),
    ],
)
def test_an_answer_in_hand_is_not_lost_to_a_later_run(monkeypatch: pytest.MonkeyPatch, second: LinearAnswer) -> None:
    """The second search, among what costs no more than the first answer, may end with less than that."""
    costs = [1e6, 2.0, 2.0, 3.0]
    program = covering(costs, [2, 1, 1, 2], 2)
    first = np.array([0.0, 0.0, 0.0, 1.0])
    answers = iter([LinearAnswer(Status.OPTIMAL, first, None, 2.99999e-6), second])

    def says(*_: object) -> LinearAnswer:
        return next(answers)

    monkeypatch.setitem(engines.WHOLE, "highs", says)
    answer = solve_whole(program, "highs", 5.0)
    assert next(answers, None) is None
    assert answer.status in (Status.OPTIMAL, Status.FEASIBLE)
    assert answer.values is not None
    assert answer.values.tolist() == first.tolist()
    assert answer.bound is not None and 2.99 < answer.bound <= 3.0


def test_a_hint_disproves_that_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(*_: object) -> LinearAnswer:
        return LinearAnswer(Status.INFEASIBLE, None, None, detail="proven")

    monkeypatch.setitem(engines.WHOLE, "highs", says)
    hint = (np.arange(2, dtype=np.int32), np.array([0.0, 1.0]))
    answer = solve_whole(covering([1.0, 2.0], [1, 1], 1), "highs", 5.0, hint=hint)
    assert answer.status is Status.FEASIBLE
    assert answer.values is not None and answer.values.tolist() == [0.0, 1.0]
    assert answer.bound is None
    assert "calls infeasible what has an answer" in answer.detail


@pytest.mark.parametrize("bound", [0.0126, 1234.5678, -0.0004, 0.0])
def test_what_cbc_prints_of_a_bound_is_read_as_no_more_than_the_bound(bound: float, tmp_path: Path) -> None:
    """CBC's log ends with `%s bound: %.3f`; what it says on the way may be of another program."""
    log = tmp_path / "log"
    log.write_text(
        "Cbc0010I After 100 nodes, 50 on tree, 99 best solution, best possible 98.5 (0.01 seconds)\n"
        " best possible 98.5\n"
        "Result - Stopped on time limit\n\n"
        f"Objective value:                99.00000000\nLower bound:                    {bound:.3f}\n"
    )
    found = cbc._bound(log, covering([1.0], [1], 1))  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    assert bound - 0.0011 <= found <= bound


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_a_limit_may_be_years_or_none(engine: str) -> None:
    program = covering([1.0, 2.0], [1, 1], 1)
    for limit in (1e12, math.inf):
        answer = ENGINES[engine](replace(program, integer=None), limit)
        assert answer.status is Status.OPTIMAL, answer


@pytest.mark.parametrize("engine", sorted(WHOLE))
def test_so_may_that_of_a_search_in_whole_numbers(engine: str) -> None:
    for limit in (1e12, math.inf):
        assert solve_whole(covering([1.0, 2.0], [1, 1], 1), engine, limit).status is Status.OPTIMAL


@pytest.mark.parametrize("engine", ["auto", "highs", "cbc", "cpsat"])
def test_a_program_that_a_presolve_of_highs_gets_wrong(engine: str) -> None:
    """min 2x + 3z with x + z >= 4.5, z whole: 9, where HiGHS 1.14.0 says 15 (its issue 3043)."""
    builder = ProgramBuilder()
    x, z = builder.add_columns(1, 10.0), builder.add_columns(1, 10.0)
    row = builder.add_rows(1, 4.5, math.inf)
    builder.put(np.repeat(row, 2), np.concatenate([x, z]), 1.0)
    program = replace(builder.program(np.array([2.0, 3.0])), integer=np.array([False, True]))
    answer = solve_whole(program, engine, 5.0)
    assert answer.status is Status.OPTIMAL
    assert answer.values is not None
    assert answer.values.tolist() == pytest.approx([4.5, 0.0], abs=1e-6)


def test_names() -> None:
    for name in NAMES:
        assert linear_engine(name) in ENGINES
        assert set(whole_engines(name)) <= set(WHOLE)
    for choose in (linear_engine, whole_engines):
        with pytest.raises(ValueError, match="'abacus' is unknown; choose one of auto, highs, glop, cbc, cpsat"):
            choose("abacus")


def test_nothing_is_left_in_the_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cbc.solve_cbc(covering([1.0, 2.0], [1, 1], 1), 5.0).status is Status.OPTIMAL
    assert not list(tmp_path.iterdir())
