"""Comparisons: every strategy in its own row, whatever becomes of it; in this process and in workers."""

from __future__ import annotations

import math
import os
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from tensorstow.ir.errors import InputError
from tensorstow.planner import strategies as registry
from tensorstow.planner import workers
from tensorstow.planner.bounds import find_bound
from tensorstow.planner.compare import Comparison, Row, Trials, compare
from tensorstow.planner.instance import make_instance

from ..graphs import KIB, chain, machine
from . import fakes
from .test_bounds import other_order

GRAPH = chain([64 * KIB] * 6, ns=30_000)
BOX = machine(200 * KIB)
FAKES = (
    fakes.Raises,
    fakes.Dies,
    fakes.Hangs,
    fakes.Hungry,
    fakes.Killed,
    fakes.Elsewhere,
    fakes.Backwards,
    fakes.Lucky,
)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The strategies that go wrong, registered for one test."""
    registry.strategy_names()
    for fake in FAKES:
        monkeypatch.setitem(registry._REGISTRY, fake.name, fake)  # pyright: ignore[reportPrivateUsage]


def rows(comparison: Comparison) -> dict[str, Row]:
    return {r.strategy: r for r in comparison.rows}


def test_in_this_process() -> None:
    comparison = compare(GRAPH, BOX, ("resident", "on-demand", "belady", "elsewhere"))
    found = rows(comparison)
    assert {n: r.status for n, r in found.items()} == {
        "resident": "infeasible", "on-demand": "feasible", "belady": "feasible", "elsewhere": "not applicable",
    }  # fmt: skip
    assert found["elsewhere"].reason == "'chain' has no experts; use another strategy"
    assert comparison.best is found["belady"]
    assert [r.strategy for r in comparison.ranked] == ["belady", "on-demand", "resident", "elsewhere"]
    instance = make_instance(GRAPH, BOX)
    assert comparison.bound == find_bound(instance, time_limit_s=5)
    assert comparison.bound in comparison.bounds
    plan = found["belady"].plan
    assert plan is not None
    gap = comparison.gap(found["belady"])
    assert gap == pytest.approx(plan.certificate.simulated_s / comparison.bound.seconds - 1)
    assert comparison.gap(found["resident"]) is None


def test_a_bug_in_this_process_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        compare(GRAPH, BOX, ("lru", "raises"))


def test_workers_answer_as_this_process_does() -> None:
    names = ("resident", "on-demand", "lru")
    here = compare(GRAPH, BOX, names)
    there = compare(GRAPH, BOX, names, trials=Trials(workers=2))
    assert there.bound == here.bound
    for a, b in zip(here.rows, there.rows, strict=True):
        assert (a.strategy, a.plan, a.status, a.reason, a.bound) == (b.strategy, b.plan, b.status, b.reason, b.bound)


def test_what_breaks_costs_its_own_row() -> None:
    trials = Trials(workers=2, memory_limit_nbytes=1 << 29)
    said: list[str] = []
    comparison = compare(
        GRAPH, BOX, ("raises", "dies", "hungry", "killed", "elsewhere", "lru"), trials=trials,
        progress=lambda what, share: said.append(f"{what} {share:.2f}"),
    )  # fmt: skip
    found = rows(comparison)
    assert {n: r.status for n, r in found.items()} == {
        "raises": "crashed", "dies": "crashed", "hungry": "memory", "killed": "memory",
        "elsewhere": "not applicable", "lru": "feasible",
    }  # fmt: skip
    assert found["raises"].reason.startswith("ZeroDivisionError: 0 divided by nothing (fakes.py, line ")
    assert found["dies"].reason == "died of SIGSEGV while planning: free(): invalid pointer"
    assert found["hungry"].reason == "the strategy ran out of memory in 512.0 MiB"
    assert "killed, as the system does where memory runs out" in found["killed"].reason
    assert comparison.best is found["lru"]
    assert said[0] == "planning with raises 0.00"


def test_a_worker_that_is_lost_at_its_start_costs_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies while the task is being written to it, as where the system kills what is new."""

    def dies(process: object) -> None:
        del process
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(SpawnProcess, "start", dies)
    comparison = compare(GRAPH, BOX, ("lru", "on-demand"), trials=Trials(workers=1))
    assert [r.status for r in comparison.rows] == ["crashed", "crashed"]
    for row in comparison.rows:
        assert row.reason.startswith("the worker died before it had read what to plan")
        assert "Broken pipe" in row.reason


def test_a_limit_may_be_years() -> None:
    """Longer than the system counts in one wait; and none at all, here and in a worker."""
    names, trials = ("lru", "on-demand"), Trials(workers=2, time_limits={"lru": 1e9})
    there = compare(GRAPH, BOX, names, time_limit_s=math.inf, trials=trials)
    here = compare(GRAPH, BOX, names, time_limit_s=math.inf)
    assert [r.status for r in there.rows] == ["feasible", "feasible"]
    assert [r.plan for r in here.rows] == [r.plan for r in there.rows]


def test_what_hangs_is_stopped_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "child"
    monkeypatch.setenv("TENSORSTOW_TEST_CHILD", str(told))
    monkeypatch.setattr(workers, "GRACE_S", 3.0)
    trials = Trials(workers=2, time_limits={"hangs": 0.1})
    found = rows(compare(GRAPH, BOX, ("hangs", "lru"), trials=trials))
    assert found["lru"].status == "feasible"
    assert found["hangs"].status == "time limit"
    assert found["hangs"].reason.endswith(" s of planning; its limit was 0.1 s")
    assert found["hangs"].solve_s >= 3.2
    if told.exists():  # else it was stopped before there was a child
        child = int(told.read_text())
        for _ in range(200):
            if not alive(child):
                break
            time.sleep(0.05)
        assert not alive(child)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_seeds_are_runs_of_one_row() -> None:
    found = rows(compare(GRAPH, BOX, ("lucky", "on-demand"), trials=Trials(seeds=(1, 2, 4))))
    assert [(r.seed, r.status) for r in found["lucky"].runs] == [
        (1, "not applicable"),
        (2, "feasible"),
        (4, "feasible"),
    ]
    assert found["lucky"].status == "feasible"
    assert found["lucky"].reason == "1 of 3 runs have no plan; seed 1: seed 1 is odd"
    plan = found["on-demand"].plan
    assert plan is not None
    seconds = plan.certificate.simulated_s
    assert found["on-demand"].spread_s == (seconds, seconds, seconds)
    assert found["on-demand"].reason == ""
    only_odd = rows(compare(GRAPH, BOX, ("lucky",), trials=Trials(seeds=(1, 3))))
    assert (only_odd["lucky"].status, only_odd["lucky"].reason) == ("not applicable", "seed 1 is odd")
    assert only_odd["lucky"].spread_s is None


def test_plans_of_several_orders_share_the_least_bound() -> None:
    graph, box, instance = other_order()
    comparison = compare(graph, box, ("backwards", "on-demand"))
    found = rows(comparison)
    own = {n: r.bound for n, r in found.items()}
    assert own["on-demand"] == find_bound(instance, time_limit_s=5)
    assert own["backwards"] is not None
    assert own["on-demand"] is not None
    assert own["backwards"].kind != own["on-demand"].kind
    assert comparison.bound.seconds == min(own["backwards"].seconds, own["on-demand"].seconds)
    assert comparison.bound.kind.startswith("least of the 2 bounds of the plans shown: residency LP")
    for row in comparison.rows:
        assert row.plan is not None
        assert row.plan.certificate.simulated_s >= comparison.bound.seconds
        assert (comparison.gap(row) or 0) >= row.plan.certificate.gap - 1e-9


def test_comparisons_that_cannot_be() -> None:
    with pytest.raises(InputError, match="no strategy is called 'nobody'"):
        compare(GRAPH, BOX, ("lru", "nobody"))
    with pytest.raises(InputError, match="strategies lru, lru are not one or more different ones"):
        compare(GRAPH, BOX, ("lru", "lru"))
    with pytest.raises(InputError, match=r"strategies \(none\)"):
        compare(GRAPH, BOX, ())
    with pytest.raises(InputError, match="time limit is given for strategy 'stow', which is none of lru"):
        compare(GRAPH, BOX, ("lru",), trials=Trials(time_limits={"stow": 1.0}))
    with pytest.raises(InputError, match=r"seeds \[1, 1\]"):
        Trials(seeds=(1, 1))
    with pytest.raises(InputError, match="-1 workers"):
        Trials(workers=-1)
    with pytest.raises(InputError, match="'lru' is 0 s"):
        Trials(time_limits={"lru": 0.0})
    with pytest.raises(InputError, match="memory limit needs workers"):
        Trials(memory_limit_nbytes=1 << 30)
