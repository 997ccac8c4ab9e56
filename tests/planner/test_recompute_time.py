"""The time limit of `stow-recompute` by a clock of the test's own, which each stage moves by all that it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tensorstow.ir.errors import TimeLimitError
from tensorstow.ir.plan import Plan
from tensorstow.planner import recompute
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.recompute import LAST_S, LAST_SHARE, LAST_TRIES, StowRecompute
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort
from tensorstow.solvers.result import Result, Status

from ..graphs import KIB, machine, training
from .test_recompute_spill import posed

LIMIT_S = 200.0


@dataclass
class Clock:
    """In place of the module `time`: seconds pass when a stage says so."""

    now_s: float = 0.0

    def monotonic(self) -> float:
        """Seconds since the beginning."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of a search whose stages all take as long as they may, and of which none finds anything."""
    found = Clock()
    nothing: Result[Any] = Result(Status.UNKNOWN, None, None, None, 0.0, "none")

    def spends(result: Any, name: str = "time_limit_s") -> Callable[..., Any]:
        def stage(*_: object, **given: Any) -> Any:
            found.now_s += given[name]
            return result

        return stage

    def plan(self: object, instance: Instance, effort: Effort) -> Plan:
        del self, instance
        found.now_s += effort.time_limit_s
        raise TimeLimitError("none")

    monkeypatch.setattr(recompute, "time", found)
    monkeypatch.setattr(recompute, "joint_solution", spends(nothing))
    monkeypatch.setattr(recompute, "solve_recompute", spends(nothing))
    monkeypatch.setattr(recompute, "expected_ns", spends(1.0))
    monkeypatch.setattr(recompute, "relax_coarsely", spends(None))
    monkeypatch.setattr(recompute, "resident_plan", spends(None, "packing_time_s"))
    for strategy in (Stow, recompute.TorchKnapsack, recompute.Memo, recompute.Capuchin, recompute.Checkmate):
        monkeypatch.setattr(strategy, "plan", plan)
    return found


def crowded() -> Instance:
    """With room below for all that is spilled."""
    graph = training([4 * KIB] * 12, activation=64 * KIB)
    roomy = make_instance(graph, machine(1 << 30), mode="training")
    return make_instance(graph, machine(max(roomy.base_nbytes) + 128 * KIB), mode="training")


@pytest.mark.parametrize("instance", [crowded(), posed(6)], ids=["room below", "little room below"])
def test_stages_that_take_all_they_are_given_keep_the_limit_together(clock: Clock, instance: Instance) -> None:
    search = recompute._Search(StowRecompute(), instance, Effort(LIMIT_S), began=0.0)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(TimeLimitError):
        search.run()
    # Half of what is left each time, and then a little for each of the last tries.
    assert clock.now_s <= LIMIT_S * (1 + LAST_SHARE) + (LAST_TRIES + 1) * LAST_S * 1.25
    assert clock.now_s > 0.7 * LIMIT_S, "the time that there is was used"
