"""The engine of a plan's programs: any gives a plan as good, and one that is none is refused."""

from __future__ import annotations

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError
from tensorstow.planner.build import plan_graph
from tensorstow.planner.compare import compare
from tensorstow.planner.instance import make_instance
from tensorstow.planner.levels_bound import tiered_bound
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.traffic_choice import pose, solve_choice
from tensorstow.solvers import engines, linear
from tensorstow.solvers.engines import NAMES
from tensorstow.solvers.linear import LinearAnswer, LinearProgram
from tensorstow.solvers.residency.recompute_stages import StageProblem, solve_stages
from tensorstow.solvers.result import Status

from ..graphs import KIB, chain, machine
from .test_levels import three

GRAPH = chain([64 * KIB, 32 * KIB, 128 * KIB, 64 * KIB] * 2, ns=50_000)
BOX = machine(300 * KIB)


def test_every_engine_plans() -> None:
    bounds: list[float] = []
    for engine in NAMES:
        plan = plan_graph(GRAPH, BOX, time_limit_s=4.0, engine=engine)
        assert not check(plan, GRAPH, BOX)
        bounds.append(plan.certificate.bound_s)
    assert max(bounds) == pytest.approx(min(bounds), rel=1e-6)


def test_an_engine_that_is_none() -> None:
    message = "no engine is called 'abacus'; there are: auto, highs, glop, cbc, cpsat"
    with pytest.raises(InputError, match=message):
        plan_graph(GRAPH, BOX, engine="abacus")
    with pytest.raises(InputError, match=message):
        compare(GRAPH, BOX, ("lru",), engine="abacus")


def asked(monkeypatch: pytest.MonkeyPatch, name: str) -> list[LinearProgram]:
    """The linear programs that an engine is given from here on."""
    programs: list[LinearProgram] = []
    real = linear.ENGINES[name]

    def watched(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
        programs.append(program)
        return real(program, time_limit_s)

    monkeypatch.setitem(linear.ENGINES, name, watched)
    return programs


@pytest.mark.parametrize("engine", NAMES)
def test_the_fewest_bytes_are_the_same_by_any(engine: str) -> None:
    instance = make_instance(GRAPH, BOX, engine=engine)
    found = solve_choice(pose(instance, instance.capacity_nbytes), time_limit_s=20.0, engine=engine)
    assert found.method == {"cbc": "MIP by cbc", "cpsat": "CP-SAT"}.get(engine, "MIP by highs")
    assert found.status is Status.OPTIMAL
    known = solve_choice(pose(instance, instance.capacity_nbytes), time_limit_s=20.0)
    assert found.objective == found.bound == known.objective


@pytest.mark.parametrize("name", ["flexgen", "least-traffic", "cosma", "stow"])
def test_strategies_ask_the_engine_that_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = asked(monkeypatch, "glop")
    instance = make_instance(GRAPH, BOX, engine="glop")
    plan = strategies([name])[0].plan(instance, Effort(4.0))
    assert not check(plan, GRAPH, BOX)
    assert programs


def test_so_do_bounds_of_several_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = asked(monkeypatch, "glop")
    box = three(GRAPH, 0.6, 0.5, 1.0, 1.0)
    found = tiered_bound(make_instance(GRAPH, box, engine="glop"), 30.0)
    assert len(programs) == 2, "the least waiting, then the least time on the links"
    known = tiered_bound(make_instance(GRAPH, box), 30.0)
    assert found is not None and known is not None
    assert found[0] == pytest.approx(known[0], rel=1e-6)


def test_so_do_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four results wait for their uses in turn; there is room for three, so that one is made again."""
    reads = ((), (), (), (), (3,), (2,), (1,), (0,))
    problem = StageProblem((1, 1, 1, 1, 0, 0, 0, 0), (4,) * 4, (0, 1, 2, 3), reads, (7,) * 8, 12)
    known = solve_stages(problem, time_limit_s=20.0, exact=True)
    programs = asked(monkeypatch, "glop")
    relaxed = solve_stages(problem, time_limit_s=20.0, exact=False, engine="glop")
    assert len(programs) == 1 and relaxed.objective is not None
    whole: list[str] = []
    real = engines.WHOLE["cbc"]

    def watched(program: LinearProgram, time_limit_s: float, hint: engines.Hint | None, gap: float) -> LinearAnswer:
        whole.append("cbc")
        return real(program, time_limit_s, hint, gap)

    monkeypatch.setitem(engines.WHOLE, "cbc", watched)
    found = solve_stages(problem, time_limit_s=20.0, exact=True, engine="cbc")
    assert whole and found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(known.objective, rel=2e-3)
    assert relaxed.objective <= (found.objective or 0) * (1 + 1e-9)
