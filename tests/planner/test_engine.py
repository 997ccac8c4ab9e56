"""The engine of a plan's programs: any gives a plan as good, and one that is none is refused."""

from __future__ import annotations

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError
from tensorstow.planner.build import plan_graph
from tensorstow.planner.compare import compare
from tensorstow.solvers.engines import NAMES

from ..graphs import KIB, chain, machine

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
