"""Tests of planner/search.py: what is done where nothing could be placed."""

import time

import pytest

from tensorstow.ir.check import check
from tensorstow.planner import search as search_module
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.search import Search
from tensorstow.planner.stays import Decisions

from ..graphs import KIB, machine, training


def posed(share: float) -> Instance:
    graph = training([64 * KIB] * 12, activation=16 * KIB)
    roomy = make_instance(graph, machine(1 << 40))
    return make_instance(graph, machine(int(roomy.peak_of_all() * share), bytes_per_s=1e11))


def searching(instance: Instance, spent_s: float = 0.0) -> Search:
    return Search(instance, "test", 0, 10.0, 10.0, 0.001, began=time.monotonic() - spent_s)


def test_when_the_time_is_over_the_cuts_are_descended() -> None:
    instance = posed(0.6)
    late, resort = searching(instance, 100), searching(instance, 100)
    late.try_cut(0)
    assert late.best is None and late.finished
    late.descend()
    resort.everything()
    assert late.best is not None and resort.best is not None
    assert late.best.certificate.simulated_s < 0.9 * resort.best.certificate.simulated_s
    assert not [v for v in check(late.best, instance.graph, instance.machine) if v.kind != "bound"]


def test_descending_ends_with_the_first_cut_that_is_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(0.6)
    late = searching(instance, 100)
    largest = sorted(late.cuts(), reverse=True)
    scores = iter([3.0, 2.0, float("inf"), 1.0])

    def score(_: Decisions) -> float:
        return next(scores)

    monkeypatch.setattr(late, "score", score)
    late.descend()
    assert [late.scores.get(cut) for cut in largest[:4]] == [3.0, 2.0, float("inf"), None]


def test_each_cut_that_fails_keeps_the_next_one_further_away(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(0.6)
    room = instance.capacity_nbytes - max(instance.base_nbytes)
    late, tried = searching(instance), list[float]()

    def score(*_: object) -> float:
        return float("inf")

    monkeypatch.setattr(late, "score", score)
    for share in (0.0, 0.01, 0.03, 0.05, 0.08, 0.12, 0.18, 0.3, 0.5, 0.7, 1.0):
        late.try_cut(int(share * room), roundings=1)
        if int(share * room) in late.scores:
            tried.append(share)
    assert tried == [0.0, 0.03, 0.08, 0.18, 0.5, 1.0]
    assert search_module.LIKE_CUT == 0.01 and search_module.MOST_LIKE == 0.3
