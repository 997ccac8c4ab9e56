"""Large graphs in the small: the graphs of the benchmark are valid, and the coarse path certifies what it plans."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.scale_graphs import KINDS, machine_for
from tensorstow.ir.errors import InputError
from tensorstow.planner import place as placement
from tensorstow.planner import search, spread
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.spread import finish
from tensorstow.planner.stays import Decisions, Placed
from tensorstow.planner.validate import validate
from tensorstow.solvers.linear import Highs, LinearAnswer
from tensorstow.solvers.residency import lp
from tensorstow.solvers.residency.problem import ResidencySolution
from tensorstow.solvers.result import Result, Status


def instance_of(kind: str, operators: int, share: float) -> Instance:
    """A graph of the benchmark with a share of the bytes between its largest working set and its peak."""
    graph = KINDS[kind](operators)
    roomy = make_instance(graph, machine_for(graph, 1 << 60))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return make_instance(graph, machine_for(graph, least + int(share * (most - least))))


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_valid_and_about_as_large_as_asked(kind: str) -> None:
    graph = KINDS[kind](300)
    validate(graph, machine_for(graph, 1 << 60))
    assert 240 <= len(graph.operators) <= 330


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_pass_too_large_for_the_fine_program_is_bounded_below_it(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = instance_of(kind, 200, share)
    exact = fine.relax(fine.capacity_nbytes, time_limit_s=120.0)
    assert exact.status == Status.OPTIMAL
    monkeypatch.setattr(lp, "FINE_SIZE", 10)
    coarse = instance_of(kind, 200, share)
    found = coarse.relax(coarse.capacity_nbytes, time_limit_s=120.0)
    assert found.method.startswith("coarse")
    assert found.bound is not None
    assert found.objective is not None
    assert exact.objective is not None
    assert 0.98 * exact.objective <= found.bound <= exact.objective * (1 + 1e-6) <= found.objective * (1 + 2e-6)


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_thousands_of_values_that_move_are_first_tried_with_room_to_spare(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MANY_BODIES", 10)
    instance = instance_of(kind, 200, 0.3)
    tried = search.Search(instance, "stow", seed=0, time_s=60.0, most_s=60.0, good_enough=0.001)
    room = instance.capacity_nbytes - max(instance.base_nbytes)
    assert sorted(tried.ranked_cuts()) == sorted(tried.cuts())
    if kind == "training":
        assert abs(tried.ranked_cuts()[0] / room - search.FIRST_OF_MANY) < 0.02
    else:
        assert tried.ranked_cuts() == tried.cuts()


@pytest.mark.parametrize(
    ("kind", "share"), [("training", 0.0), ("training", 0.3), ("inference", 0.3), ("branching", 0.0)]
)
def test_what_is_placed_at_once_passes_the_checker(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = list[int]()

    def counted(instance: Instance, pieces: list[Placed], bottom: int, decisions: Decisions) -> None:
        finished.append(len(pieces))
        finish(instance, pieces, bottom, decisions)

    monkeypatch.setattr(placement, "MEETINGS", 0)
    monkeypatch.setattr(placement, "finish", counted)
    instance = instance_of(kind, 200, share)
    plan = plan_graph(instance.graph, instance.machine, time_limit_s=2.0)
    assert finished
    assert plan.certificate.simulated_s >= plan.certificate.bound_s > 0


def test_sweeps_say_what_a_search_for_each_says() -> None:
    """In a placed training step: since when the addresses of each load are free."""
    instance = instance_of("training", 200, 0.3)
    tried = search.Search(instance, "stow", seed=0, time_s=60.0, most_s=60.0, good_enough=0.0)
    compared = list[int]()

    class Compared(spread.Yard):
        def free_sinces(self, loads: Sequence[int]) -> list[int]:
            found = super().free_sinces(loads)
            assert found == [self.free_since(i) for i in loads]
            compared.append(len(found))
            return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(spread, "Yard", Compared)
        for cut in tried.cuts()[:3]:
            tried.try_cut(cut, roundings=2)
    assert sum(compared) > 50


@pytest.mark.slow
def test_a_training_step_of_ten_thousand_operators_is_planned() -> None:
    instance = instance_of("training", 10_000, 0.1)
    plan = plan_graph(instance.graph, instance.machine, time_limit_s=10.0)
    assert plan.certificate.gap < 0.1


@pytest.mark.parametrize("fault", [RuntimeError("crashed"), MemoryError("no memory left")])
def test_a_large_graph_is_planned_without_an_engine_and_certified_by_what_is_compulsory(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Highs, time_limit_s: float) -> LinearAnswer:
        raise fault

    monkeypatch.setattr(Highs, "solve", broken)
    monkeypatch.setattr(lp, "FINE_SIZE", 10)
    instance = instance_of("training", 120, 0.5)
    plan = plan_graph(instance.graph, instance.machine, time_limit_s=3.0)
    assert plan.certificate.simulated_s >= plan.certificate.bound_s > 0


def test_a_time_limit_that_is_no_number_is_refused() -> None:
    graph = KINDS["inference"](20)
    with pytest.raises(InputError, match="the time limit is nan"):
        plan_graph(graph, machine_for(graph, 1 << 40), time_limit_s=float("nan"))


def test_no_program_is_solved_for_more_room_than_what_was_too_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = instance_of("training", 120, 0.3)
    tried = search.Search(instance, "stow", seed=0, time_s=60.0, most_s=60.0, good_enough=0.0)
    cuts = sorted(tried.cuts())
    solved: list[int] = []
    relax = Instance.relax

    def counted(self: Instance, capacity_nbytes: int, *, time_limit_s: float) -> Result[ResidencySolution]:
        solved.append(self.capacity_nbytes - capacity_nbytes)
        return relax(self, capacity_nbytes, time_limit_s=time_limit_s)

    monkeypatch.setattr(Instance, "relax", counted)
    for cut in cuts:
        tried.try_cut(cut, roundings=1)
    assert tried.best is not None
    assert cuts[0] < tried.dear_nbytes < cuts[-1]
    assert max(solved) == tried.dear_nbytes
