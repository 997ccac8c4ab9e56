"""Every engine gives the same optimum, alone, one after another, and beside the others in one process."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.residency import (
    ResidencyProblem,
    check_residency,
    improve_residency,
    solve_residency,
)
from tensorstow.solvers.residency.lp import Relaxer
from tensorstow.solvers.result import Status

from .cases import brute_force, problems, random_problem, solved


@pytest.mark.parametrize("engine", ["cbc", "cpsat"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_engines_agree_on_whole_tensors(engine: str, data: st.DataObject) -> None:
    problem = data.draw(problems(periodic=True, dirty=True))
    relaxed = solved(problem)
    reference = improve_residency(problem, relaxed, time_limit_s=5.0, relative_gap=1e-6)
    other = improve_residency(problem, relaxed, time_limit_s=10.0, relative_gap=1e-6, engine=engine)
    assert reference.objective is not None
    assert other.objective is not None
    assert other.bound is not None
    assert other.objective == pytest.approx(reference.objective, rel=1e-5)  # pyright: ignore[reportUnknownMemberType]
    assert other.bound <= float(brute_force(problem)) * (1 + 1e-9)
    assert other.method == f"MIP by {engine}"


def test_an_engine_that_breaks_down_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("basis is singular")

    monkeypatch.setattr("tensorstow.solvers.residency.lp.Highs", crash)
    result = solve_residency(random_problem(steps=12, items=8, seed=4, share=0.4))
    assert result.status is Status.ERROR
    assert "highs broke down: basis is singular" in result.detail
    assert result.bound is not None


@pytest.mark.parametrize("engine", ["auto", "highs", "glop", "cbc", "cpsat"])
def test_engines_agree(engine: str) -> None:
    problem = random_problem(steps=12, items=8, seed=4, share=0.4)
    reference = solved(problem)
    other = solved(problem, engine)
    assert other.bound == pytest.approx(reference.bound, rel=1e-6)  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize("engine", ["highs", "glop"])
def test_other_capacities_one_after_another_are_as_good_as_alone(engine: str) -> None:
    problem = random_problem(steps=60, items=80, seed=3, share=0.5)
    room = problem.capacity_nbytes - max(problem.base_nbytes)
    relaxer = Relaxer(problem, engine=engine)
    for share in (0.0, 0.3, 0.1, 0.6, -0.2, 0.3):  # below zero: more than the first had
        capacity = problem.capacity_nbytes - int(share * room)
        warm = relaxer.solve(capacity, time_limit_s=30)
        cold = solve_residency(replace(problem, capacity_nbytes=capacity), engine=engine)
        assert warm.status == cold.status == Status.OPTIMAL
        assert warm.objective == pytest.approx(cold.objective, rel=1e-5)
        assert warm.bound == pytest.approx(cold.bound, rel=1e-5)
        assert warm.solution is not None
        assert not check_residency(replace(problem, capacity_nbytes=capacity), warm.solution)


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="'abacus' is unknown; choose one of auto, highs, glop, cbc, cpsat"):
        solve_residency(ResidencyProblem((), (), (), 0, 1.0, 1.0, True), engine="abacus")


@pytest.mark.parametrize("first", ["highspy", "ortools.sat.python.cp_model"])
def test_engines_share_a_process(first: str) -> None:
    second = "ortools.sat.python.cp_model" if first == "highspy" else "highspy"
    code = f"""
import {first}, {second}
from tensorstow.solvers.residency import Gap, ResidencyProblem, solve_residency
from tensorstow.solvers.packing import Body, Box, PackingProblem, pack
p = ResidencyProblem((10**9, 10**9), (100, 50), (Gap(0, 100, 0, 2, True),), 100, 10.0, 10.0, True)
assert all(abs(solve_residency(p, engine=e).objective - 7e9) < 7e3 for e in ("highs", "glop"))
sizes = ((0, 2, 3), (1, 4, 3), (3, 6, 3), (0, 6, 2))
assert pack(PackingProblem(tuple(Body((Box(a, b, 0, n),)) for a, b, n in sizes))).objective == 8
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
