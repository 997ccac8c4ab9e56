"""The exact search: its proofs against brute force, what each trick saves, and bodies of every kind."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.solvers.packing import Body, Box, Packing, PackingProblem, check_packing, load_bound, pack
from tensorstow.solvers.packing.compact import Compact, compact
from tensorstow.solvers.packing.exact import STRATEGIES, Search
from tensorstow.solvers.packing.fit import hottest, large_orders, place_compiled
from tensorstow.solvers.packing.greedy import conflicts, place
from tensorstow.solvers.packing.kernel import Tricks
from tensorstow.solvers.result import Status

from .instances import crowded, cut_rectangle, network


@st.composite
def problems(draw: st.DrawFn) -> PackingProblem:
    """Up to five bodies with gaps, aliases, alignments, and sometimes one that is fixed."""
    bodies: list[Body] = []
    for _ in range(draw(st.integers(1, 5))):
        start, span = draw(st.integers(0, 6)), draw(st.integers(1, 5))
        boxes = [Box(start, start + span, 0, draw(st.integers(1, 6)))]
        if draw(st.booleans()):
            again, lo = draw(st.integers(0, 8)), draw(st.integers(0, 2))
            boxes.append(Box(again, again + draw(st.integers(1, 3)), lo, lo + draw(st.integers(1, 4))))
        bodies.append(Body(tuple(boxes), draw(st.sampled_from([1, 1, 2, 4]))))
    if draw(st.booleans()):
        bodies[0] = replace(bodies[0], alignment=1, fixed=draw(st.integers(0, 3)))
    return PackingProblem(tuple(bodies))


def least_peak(c: Compact) -> int:
    """Over first fit in all orders, in units."""
    meets = conflicts(c)
    orders = (np.array(order, dtype=np.int64) for order in itertools.permutations(range(len(c))))
    return min(place(c, order, meets, "").peak for order in orders)


def offsets(problem: PackingProblem, c: Compact, bases: np.ndarray) -> Packing:
    found = [body.fixed or 0 for body in problem.bodies]
    for index, base in zip(c.bodies, bases, strict=True):
        found[index] = int(base) * c.unit
    highest = max(int(bases[i]) + int(c.hi[k]) for k, i in enumerate(c.owner))
    return Packing(tuple(found), highest * c.unit)


NONE = Tricks(*(False for _ in Tricks._fields))


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, len(STRATEGIES) - 1), st.sampled_from([Tricks(), NONE]))
def test_every_strategy_agrees_with_brute_force(problem: PackingProblem, strategy: int, tricks: Tricks) -> None:
    c = compact(problem)
    least = least_peak(c)
    found = Search(c, tricks).attempt(least, strategy, 100_000)
    assert found.status == Status.FEASIBLE
    assert found.bases is not None
    assert check_packing(problem, offsets(problem, c, found.bases)) == ()
    below = Search(c, tricks).attempt(least - 1, strategy, 100_000)
    assert below.status == Status.INFEASIBLE


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(Tricks._fields))
def test_no_trick_changes_the_answer(problem: PackingProblem, name: str) -> None:
    c = compact(problem)
    least = least_peak(c)
    off = Tricks()._replace(**{name: False})
    assert Search(c, off).attempt(least, 1, 100_000).status == Status.FEASIBLE
    assert Search(c, off).attempt(least - 1, 1, 100_000).status == Status.INFEASIBLE


def nodes(cases: list[PackingProblem], strategy: int, limit: int, tricks: Tricks) -> int:
    """Decisions of one strategy at the load bounds; a case that takes more than the limit counts as the limit."""
    total = 0
    for problem in cases:
        c = compact(problem)
        total += Search(c, tricks).attempt(load_bound(problem) // c.unit, strategy, limit).nodes
    return total


def bridged(seed: int) -> PackingProblem:
    """Two crowds one after the other, and a body that lives through both."""
    bodies = (*crowded(30, seed), *crowded(30, seed + 1000, at=30), Body((Box(0, 55, 0, 50),)))
    return PackingProblem(bodies)


PLAIN = [PackingProblem(tuple(crowded(40, seed))) for seed in range(24)]
ALIKE = [PackingProblem(tuple(crowded(45, seed, alike=3))) for seed in range(40)]
BRIDGED = [bridged(seed) for seed in range(12)]
CUT = [cut_rectangle(n, seed) for n in (30, 40) for seed in range(6)]


@pytest.mark.parametrize(
    ("trick", "cases", "strategy"),
    [
        ("section_inference", CUT, 0),
        ("release_dates", PLAIN, 0),
        ("not_first", PLAIN, 0),
        ("dominance", PLAIN, 0),
        ("twins", ALIKE, 0),
        ("decomposition", BRIDGED, 1),
        ("learning", CUT, 2),
    ],
)
def test_each_trick_saves_work(trick: str, cases: list[PackingProblem], strategy: int) -> None:
    limit = 1_000
    assert nodes(cases, strategy, limit, Tricks()) < nodes(cases, strategy, limit, Tricks()._replace(**{trick: False}))


@pytest.mark.parametrize("seed", range(4))
def test_full_rectangles_are_packed_without_waste(seed: int) -> None:
    problem = cut_rectangle(60, seed)
    c = compact(problem)
    assert problem.capacity is not None
    found = Search(c).run(problem.capacity // c.unit, time.monotonic() + 600.0, most_nodes=40_000)
    assert found.bases is not None
    packing = offsets(problem, c, found.bases)
    assert packing.peak == load_bound(problem) == problem.capacity
    assert check_packing(problem, packing) == ()


def test_workers_do_not_change_the_answer() -> None:
    problem = cut_rectangle(70, 5)
    c = compact(problem)
    runs = [Search(c, seed=7).run((1 << 20) // c.unit, time.monotonic() + 600.0, 2, most_nodes=20_000) for _ in "ab"]
    assert runs[0].status == runs[1].status == Status.FEASIBLE
    assert runs[0].bases is not None
    assert runs[0].bases.tolist() == (runs[1].bases.tolist() if runs[1].bases is not None else None)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_compiled_first_fit_is_the_first_fit(problem: PackingProblem) -> None:
    c = compact(problem)
    for order in large_orders(c).values():
        expected = place(c, order, conflicts(c), "")
        found = place_compiled(c, order)
        assert found is not None
        assert found.bases.tolist() == expected.bases.tolist()
        assert found.peak == expected.peak
        assert place_compiled(c, order, stop_above=expected.peak - 1) is None


def test_the_hottest_bodies_cross_the_peak() -> None:
    c = compact(network(300, 4))
    assert sorted(hottest(c, 10_000).tolist()) == list(range(len(c)))
    first = int(hottest(c, 1)[0])
    loads = np.zeros(c.live_sets)
    for k in range(len(c.owner)):
        loads[c.first[k] : c.last[k]] += c.hi[k]
    assert loads[c.first[first] : c.last[first]].max() == loads.max()


def test_thousands_go_hot_first() -> None:
    problem = network(2500, 3)
    result = pack(problem, time_limit_s=2.0)
    assert result.solution is not None
    assert check_packing(problem, result.solution) == ()
    assert result.bound is not None
    c = compact(problem)
    by_size = place_compiled(c, large_orders(c)["size-start"])
    assert by_size is not None
    assert load_bound(problem) <= result.bound <= result.solution.peak <= by_size.peak * c.unit


def test_without_numba_the_reason_is_told() -> None:
    code = """
import sys
sys.modules["numba"] = None
from tensorstow.solvers.packing import Body, Box, PackingProblem, pack
sizes = ((0, 2, 3), (1, 4, 3), (3, 6, 3), (0, 6, 2), (2, 5, 4), (4, 8, 5), (5, 9, 3), (1, 7, 2))
result = pack(PackingProblem(tuple(Body((Box(a, b, 0, n),)) for a, b, n in sizes), capacity=13), time_limit_s=20)
print(result.status.value, result.detail)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split()[0] in {"optimal", "feasible", "infeasible", "unknown"}, done.stdout


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = """
from tensorstow.solvers import jit
@jit.compiled
def double(n: int) -> int:
    return 2 * n
print(double(4), jit.uncached)
"""
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"TENSORSTOW_CACHE": str(tmp_path / "file")}
    source = tmp_path / "probe.py"
    source.write_text(code)
    done = subprocess.run([sys.executable, source], capture_output=True, text=True, check=True, timeout=300, env=env)
    assert done.stdout.startswith("8 [")
    assert "compiled code is not kept" in done.stdout
    assert str(tmp_path / "file") in done.stdout


def test_any_whole_number_is_a_seed() -> None:
    c = compact(PackingProblem(tuple(crowded(12, 3))))
    for seed in (-1, -(2**40), 2**70):
        found = Search(c, seed=seed).attempt(1 << 20, 0, 1, shuffled=1)
        assert found.status in (Status.FEASIBLE, Status.UNKNOWN, Status.INFEASIBLE)
