"""What is done without us is taken in by `stow`, also where the clock says that there was no time."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError
from tensorstow.ir.graph import Graph
from tensorstow.ir.plan import Plan
from tensorstow.planner import order, polish, resorts, search, stow, usual
from tensorstow.planner.bounds import find_bound
from tensorstow.planner.build import run_strategy
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.order import StowBest
from tensorstow.planner.search import Search, warm_up
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.usual import Usual

from ..graphs import KIB, chain, machine, training

GRAPHS = {
    "chain": chain([24 * KIB, 64 * KIB, 40 * KIB, 96 * KIB, 8 * KIB, 56 * KIB, 72 * KIB, 16 * KIB] * 2, ns=40_000),
    "training": training([32 * KIB, 8 * KIB, 48 * KIB, 16 * KIB, 24 * KIB], activation=12 * KIB, ns=20_000),
}
EFFORT = Effort(2.0)


@dataclass
class Clock:
    """Stands for the module `time`: every look at it takes so many seconds, after `looks` that take none."""

    step_s: float
    looks: int = 0
    now: float = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        self.looks -= 1
        self.now += self.step_s if self.looks < 0 else 0.0
        return time.monotonic() + self.now


def put(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let the search read this clock. When it began it has from the true one."""
    for module in (order, polish, resorts, search, stow, usual):
        monkeypatch.setattr(module, "time", clock)


def posed(graph: Graph, share: float) -> Instance:
    """The graph in this share of the room between the largest working set and everything."""
    roomy = make_instance(graph, machine(1 << 30))
    least, most = max(roomy.base_nbytes), roomy.peak_of_all()
    return make_instance(graph, machine(least + int(share * (most - least)) + 8 * KIB))


@pytest.mark.parametrize("looks", [0, 8])
@pytest.mark.parametrize("share", [0.15, 0.6])
@pytest.mark.parametrize("name", GRAPHS)
def test_no_usual_plan_is_faster_however_little_time_there_was(
    name: str, share: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up()
    instance = posed(GRAPHS[name], share)
    bound = find_bound(instance, time_limit_s=10)
    usually: list[Plan] = []
    for strategy in strategies(["belady-prefetch", "lru", "on-demand", "offload-everything"]):
        with suppress(InfeasibleError):
            usually.append(run_strategy(strategy, instance, bound, EFFORT))
    assert usually
    put(monkeypatch, Clock(100.0, looks))
    ours = StowBest().plan(instance, EFFORT)
    assert check(ours, instance.graph, instance.machine) == ()
    for other in usually:
        # Addresses are searched for by the true clock: the same decisions may lie a little worse.
        assert ours.certificate.simulated_s <= other.certificate.simulated_s * 1.02, other.strategy


def test_what_cannot_be_better_is_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(GRAPHS["chain"], 0.4)
    best = StowBest().plan(instance, Effort(10.0))
    tried = Search(instance, "stow", 0, 1.0, 1.0, 0.0, best=best)
    scored: list[float] = []

    def score(decisions: object, packing_time_s: float) -> float:
        del decisions
        scored.append(packing_time_s)
        return float("inf")

    monkeypatch.setattr(tried, "score", score)
    known = Usual(tried)
    least = [known._least_s(d) for d in Usual(tried)._caches()]  # pyright: ignore[reportPrivateUsage]
    known.settle()
    worth = sum(s < best.certificate.simulated_s for s in least)
    assert worth <= len(scored) <= worth + 2
    assert len(scored) < len(least) + 2, "nothing was left out"


def test_on_large_graphs_nothing_is_settled_when_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(GRAPHS["chain"], 0.4)
    tried = Search(instance, "stow", 0, 1.0, 1.0, 0.0)
    monkeypatch.setattr(usual, "MANY_BODIES", len(instance.items) - 1)
    Usual(tried).settle()
    assert tried.best is None
    monkeypatch.setattr(usual, "MANY_BODIES", len(instance.items))
    Usual(tried).settle()
    assert tried.best is not None


def test_what_is_settled_late_has_half_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = posed(GRAPHS["chain"], 0.4)
    asked: dict[float, list[float]] = {}
    for spent in (0.0, 18.0, 30.0):
        tried = Search(instance, "stow", 0, 1.0, 20.0, 0.0, began=time.monotonic() - spent)
        given = asked.setdefault(spent, [])

        def score(decisions: object, packing_time_s: float, given: list[float] = given) -> float:
            del decisions
            given.append(packing_time_s)
            return float("inf")

        monkeypatch.setattr(tried, "score", score)
        Usual(tried).settle()
    assert asked[0.0][:2] == [5.0, 2.5]
    assert 0.9 < asked[18.0][0] <= 1.0
    assert asked[30.0][0] == search.PACKING_S
