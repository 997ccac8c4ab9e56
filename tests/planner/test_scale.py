"""Large graphs in the small: the graphs of the benchmark are valid, and the coarse path certifies what it plans."""

from __future__ import annotations

import pytest

from bench.scale_graphs import KINDS, machine_for
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.validate import validate
from tensorstow.solvers.residency import lp
from tensorstow.solvers.result import Status


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
