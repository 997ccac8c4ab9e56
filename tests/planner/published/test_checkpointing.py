"""Published strategies with recomputation: right plans, above the joint bound, or a reason."""

from __future__ import annotations

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, NotApplicableError, TimeLimitError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan
from tensorstow.planner.instance import make_instance
from tensorstow.planner.published import checkmate
from tensorstow.planner.published.capuchin import Capuchin
from tensorstow.planner.published.checkmate import Checkmate
from tensorstow.planner.published.checkpointing import CheckpointMinCut, CheckpointSqrt
from tensorstow.planner.published.memo import Memo, equal_layers, largest_alpha, layer_policy
from tensorstow.planner.published.poet import Poet
from tensorstow.planner.recompute_bound import flow_of, recompute_bound
from tensorstow.planner.strategies import Effort
from tensorstow.solvers.residency.recompute_stages import StageSolution
from tensorstow.solvers.result import Result, Status

from ...graphs import KIB, chain, machine, training

EFFORT = Effort(time_limit_s=8.0)
ALL = (CheckpointSqrt(), CheckpointMinCut(), Capuchin(), Memo(), Checkmate(), Poet())
NO_TRANSFERS = (CheckpointSqrt(), CheckpointMinCut(), Checkmate())


def budget(graph: Graph, room: float, rate: float) -> Machine:
    """A machine with this share of the room between the largest working set and everything."""
    roomy = make_instance(graph, machine(1 << 40, bytes_per_s=rate))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return machine(least + int(room * (most - least)) + 1, bytes_per_s=rate)


GRAPHS = {
    "even": training([KIB] * 5, activation=32 * KIB, ns=20_000),
    "uneven": training([4 * KIB, 16 * KIB, 8 * KIB], activation=24 * KIB, ns=9_000),
}


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("name", GRAPHS)
def test_plans_are_right_and_above_the_joint_bound(strategy: CheckpointSqrt, name: str) -> None:
    graph = GRAPHS[name]
    found = 0
    for room in (1.0, 0.9, 0.6, 0.0):
        box = budget(graph, room, 3e9)
        instance = make_instance(graph, box)
        try:
            plan = strategy.plan(instance, EFFORT)
        except (InfeasibleError, NotApplicableError, TimeLimitError) as error:
            assert strategy.name in str(error)
            continue
        found += 1
        assert plan.strategy == strategy.name
        assert not check(plan, graph, box)
        assert plan.certificate.simulated_s >= recompute_bound(instance)[0] * (1 - 1e-9)
        if strategy in NO_TRANSFERS:
            assert not plan.transfers
    assert found or strategy.name == "memo" or name == "uneven"


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_with_ample_memory_nothing_is_repeated_or_moved(strategy: CheckpointSqrt) -> None:
    graph = GRAPHS["even"]
    instance = make_instance(graph, machine(1 << 30))
    plan = strategy.plan(instance, EFFORT)
    if strategy.name != "memo":  # its policy knows the link, not the memory
        assert len(plan.steps) == instance.steps and not plan.transfers


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_without_long_waits_they_do_not_apply(strategy: CheckpointSqrt) -> None:
    graph = chain([KIB])
    with pytest.raises(NotApplicableError, match=strategy.name):
        strategy.plan(make_instance(graph, machine(1 << 20)), EFFORT)


def test_the_exact_program_computes_no_more_than_segments_or_cuts() -> None:
    graph = GRAPHS["even"]
    instance = make_instance(graph, budget(graph, 0.9, 1e9))
    exact, segments = (_calls(s.plan(instance, EFFORT)) for s in (Checkmate(), CheckpointSqrt()))
    assert sum(instance.durations_ns) <= exact <= segments


def test_paging_helps_the_stage_program() -> None:
    graph = GRAPHS["even"]
    instance = make_instance(graph, budget(graph, 0.8, 1e10))
    paged = Poet().plan(instance, EFFORT)
    assert paged.transfers and _calls(paged) <= _calls(Checkmate().plan(instance, EFFORT))


def test_layers_are_found_and_treated_alike() -> None:
    instance = make_instance(GRAPHS["even"], machine(1 << 30, bytes_per_s=1e9))
    flow = flow_of(instance)
    layers = equal_layers(flow)
    assert layers == (("f0", "f1"), ("f2", "f3"))
    assert 0.0 <= largest_alpha(instance, flow, layers) <= 1.0
    swapped, again = layer_policy(flow, layers, 1.0)
    assert not again
    assert set(swapped) == {"x", "a0", "a1", "a2", "a3"}


def test_too_large_a_graph_for_stages_is_told() -> None:
    graph = training([KIB] * 40, activation=32 * KIB, ns=20_000)
    instance = make_instance(graph, budget(graph, 0.8, 1e9))
    with pytest.raises(TimeLimitError, match="grows with the square"):
        Poet().plan(instance, EFFORT)


def test_larger_graphs_are_rounded() -> None:
    graph = training([KIB] * 12, activation=32 * KIB, ns=20_000)
    box = budget(graph, 0.9, 1e9)
    plan = Checkmate(exact_steps=0).plan(make_instance(graph, box), EFFORT)
    assert not check(plan, graph, box)


def test_a_proof_that_nothing_fits_names_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage program says that there is none, and not how much more it would take: one byte seldom does."""
    graph = training([16 * KIB] * 3)
    instance = make_instance(graph, machine(make_instance(graph, machine(1 << 30)).peak_of_all()))

    def none(*given: object, **named: object) -> Result[StageSolution]:
        del given, named
        return Result(Status.INFEASIBLE, None, None, None, 0.0, "stages, exact")

    monkeypatch.setattr(checkmate, "solve_stages", none)
    for strategy in (Checkmate(), Poet()):
        with pytest.raises(InfeasibleError, match="no choice of what else stays") as caught:
            strategy.plan(instance, Effort(5.0))
        assert caught.value.smallest_nbytes is None
        assert "--tier" not in str(caught.value)


def _calls(plan: Plan) -> int:
    return sum(s.duration_ns for s in plan.steps)
