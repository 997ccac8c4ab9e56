"""Tests of planner/search.py, resorts.py and polish.py: what is tried, and how long that may take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.planner import place as placement
from tensorstow.planner import polish, resorts
from tensorstow.planner import search as search_module
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.polish import favour
from tensorstow.planner.resorts import descend, everything
from tensorstow.planner.search import Search, warm_up
from tensorstow.planner.stays import Decisions
from tensorstow.solvers.residency.problem import ResidencySolution
from tensorstow.solvers.result import Result

from ..graphs import KIB, machine, training


def posed(share: float) -> Instance:
    graph = training([64 * KIB] * 12, activation=16 * KIB)
    roomy = make_instance(graph, machine(1 << 40))
    return make_instance(graph, machine(int(roomy.peak_of_all() * share), bytes_per_s=1e11))


def searching(instance: Instance, spent_s: float = 0.0) -> Search:
    return Search(instance, "test", 0, 10.0, 10.0, 0.001, began=time.monotonic() - spent_s)


def test_when_the_time_is_over_the_cuts_are_descended() -> None:
    instance = posed(0.6)
    warm_up()
    late, resort = searching(instance, 100), searching(instance, 100)
    late.try_cut(0)
    assert late.best is None and late.finished
    descend(late)
    everything(resort)
    assert late.best is not None and resort.best is not None
    assert late.best.certificate.simulated_s < resort.best.certificate.simulated_s
    assert not [v for v in check(late.best, instance.graph, instance.machine) if v.kind != "bound"]


def test_descending_ends_with_the_first_cut_that_is_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(0.6)
    late = searching(instance, 100)
    largest = sorted(late.cuts(), reverse=True)
    scores = iter([3.0, 2.0, float("inf"), 1.0])

    def score(_: Decisions) -> float:
        return next(scores)

    monkeypatch.setattr(late, "score", score)
    descend(late)
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


@dataclass
class Clock:
    """Stands for the module `time`: every look at it takes so many seconds."""

    step_s: float
    now: float = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        self.now += self.step_s
        return self.now


def test_the_descent_ends_when_its_own_time_is_over_and_there_is_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(0.6)
    late, plan = searching(instance, 100), searching(instance)
    plan.try_cut(sorted(plan.cuts())[-1], roundings=1)
    assert plan.best is not None
    most = resorts.DESCENT_SHARE * late.most_s
    monkeypatch.setattr(resorts, "time", Clock(most * 0.4))
    scored: list[Decisions] = []

    def score(decisions: Decisions) -> float:
        scored.append(decisions)
        late.best = plan.best
        return 3.0

    monkeypatch.setattr(late, "score", score)
    descend(late)
    assert len(scored) == 2
    assert len(late.cuts()) > 4


def test_no_program_has_more_time_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(0.6)
    given: list[float] = []
    relax = Instance.relax

    def watched(self: Instance, capacity_nbytes: int, *, time_limit_s: float) -> Result[ResidencySolution]:
        if capacity_nbytes < self.capacity_nbytes:
            given.append(time_limit_s)
        return relax(self, capacity_nbytes, time_limit_s=time_limit_s)

    search = searching(instance)
    first, second, third = sorted(search.cuts())[1:4]
    monkeypatch.setattr(Instance, "relax", watched)
    search.relaxed(first, 0.25)
    search.relaxed(second, 100.0)
    search.relaxed(third, -1.0)
    whole = instance.relax(instance.capacity_nbytes, time_limit_s=10.0)
    assert given == [0.25, max(search_module.AGAIN * whole.seconds, search_module.QUICK_S)]


def test_decisions_that_are_known_are_not_placed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searching(posed(0.6))
    search.try_cut(sorted(search.cuts())[-1], roundings=1)
    (seconds, decisions, _), *_ = search.found
    placed: list[float] = []

    def place(*_: object, packing_time_s: float, seed: int) -> None:
        placed.append(packing_time_s)

    monkeypatch.setattr(search_module, "place", place)
    assert search.score(decisions) == seconds
    assert placed == []
    changed = Decisions(decisions.evicted)
    assert [search.score(changed, s) for s in (1.0, 0.5, 1.0, 2.0)] == [float("inf")] * 4
    assert placed == [1.0, 2.0]


def test_the_bytes_of_the_program_are_those_that_its_links_move() -> None:
    instance = posed(0.35)
    search = searching(instance)
    solution = instance.relax(instance.capacity_nbytes, time_limit_s=10.0).solution
    assert solution is not None
    assert sum(solution.ahead) > 0
    flows = (
        solution.loaded_waiting, solution.loaded_running, solution.stored_waiting, solution.stored_running,
        solution.ahead_waiting, solution.ahead_running,
    )  # fmt: skip
    assert search.relaxed_nbytes == pytest.approx(sum(map(sum, flows)), rel=1e-4)


def made_twice() -> Graph:
    """a is made, used, used again after a pause; and in an order that calls its operator twice once more later."""
    sizes = {"x": 64, "a": 64 * KIB, "b": 4 * KIB, "c": 4 * KIB, "d": 4 * KIB, "y": 64}
    kinds = {"x": StorageKind.INPUT, "y": StorageKind.OUTPUT}
    storages = tuple(Storage(s, n, kinds.get(s, StorageKind.ACTIVATION)) for s, n in sizes.items())
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    calls = {"A": ("x", "a"), "B": ("a", "b"), "C": ("b", "c"), "D": ("ac", "d"), "E": ("ad", "y")}
    operators = (Operator(n, "Any", tuple(r), (w,), measured_ns=1000) for n, (r, w) in calls.items())
    return Graph("made twice", storages, tensors, tuple(operators), ("x",), ("y",))


def test_what_comes_late_is_the_life_that_is_used_then() -> None:
    box = machine(1 << 20, bytes_per_s=1e9)
    instance = make_instance(made_twice(), box, order=("A", "B", "C", "D", "A", "E"))
    lives = [i for i, item in enumerate(instance.items) if item.storage == "a"]
    assert [instance.items[i].touches for i in lives] == [(0, 1, 3), (4, 5)]
    search = searching(instance)
    decisions = Decisions(frozenset({(lives[0], 1)}))
    search.score(decisions)
    assert search.last is not None
    assert polish._late_loads(search, search.last, decisions) == [(lives[0], 3)]  # pyright: ignore[reportPrivateUsage]


def test_nothing_is_favoured_where_all_is_placed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(0.35)
    scored: list[Decisions] = []
    for meetings in (placement.MEETINGS, 0):
        search = searching(instance)
        monkeypatch.setattr(placement, "MEETINGS", meetings)
        for cut in search.cuts()[:2]:
            search.try_cut(cut, roundings=1)
        assert any(
            polish._late_loads(search, plan, decisions)  # pyright: ignore[reportPrivateUsage]
            for _, decisions, plan in search.found
        )

        def score(decisions: Decisions) -> float:
            scored.append(decisions)
            return float("inf")

        monkeypatch.setattr(search, "score", score)
        favour(search)
        assert bool(scored) is bool(meetings)
        scored.clear()
