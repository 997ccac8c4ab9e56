"""COSMA and what it is compared with: plans that hold, the exact optimum where it is small, parts that stay valid."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import TimeLimitError
from tensorstow.planner.build import plan_graph
from tensorstow.planner.cosma import Cosma, pose_pass
from tensorstow.planner.cosma_parts import solve_parts
from tensorstow.planner.stays import make_stays
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.tflite import allocate, farthest, least_bytes, replace_tensors
from tensorstow.solvers.exact import check_traffic, moved_nbytes, solve_traffic
from tensorstow.solvers.result import Status

from ..graphs import KIB, chain, machine
from .test_traffic import random_graph, tight

LONG = Effort(time_limit_s=600.0)


@pytest.mark.parametrize("seed", range(5))
def test_small_graphs_move_the_exact_optimum_of_one_pass(seed: int) -> None:
    """Order and residency: what the oracle proves; only addresses may cost more, and then the plan still holds."""
    instance = tight(random_graph(seed + 200, 6), (seed % 4) * 0.1)
    wanted = solve_traffic(pose_pass(instance), time_limit_s=600.0, engine="highs")
    assert wanted.status is Status.OPTIMAL and wanted.objective is not None
    plan = Cosma(offset_steps=0).plan(instance, LONG)
    assert not check(plan, instance.graph, instance.machine)
    moved = sum(plan.certificate.moved_nbytes.values())
    assert moved >= wanted.objective
    posed = pose_pass(instance)
    wide = replace(posed, capacity_nbytes=posed.capacity_nbytes + sum(t.room for t in posed.tensors))
    assert moved_nbytes(wide, solve_parts(wide, 6, time_limit_s=600.0, engine="highs")) <= moved


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_parts_make_a_valid_pass(seed: int, length: int) -> None:
    """Whatever the cuts, the parts add up to a pass that the oracle's validator accepts; none is below the optimum."""
    instance = tight(random_graph(seed + 300, 7), 0.05)
    problem = pose_pass(instance)
    solution = solve_parts(problem, length, time_limit_s=600.0, engine="highs")
    assert not check_traffic(problem, solution)
    whole = solve_traffic(problem, time_limit_s=600.0, engine="highs")
    assert whole.status is Status.OPTIMAL and whole.objective is not None
    assert moved_nbytes(problem, solution) >= whole.objective
    if length == 1:
        assert solution.order == tuple(range(problem.steps))


def test_one_part_is_the_exact_optimum() -> None:
    problem = pose_pass(tight(random_graph(320, 6), 0.05))
    solution = solve_parts(problem, 6, time_limit_s=600.0, engine="highs")
    assert moved_nbytes(problem, solution) == solve_traffic(problem, time_limit_s=600.0).objective


def test_every_weight_comes_once_in_a_pass_however_large_the_memory() -> None:
    """One pass: what is compulsory is loaded, and nothing else where there is room."""
    graph = chain([64 * KIB] * 6)
    for name in ("cosma", "tflite-belady", "tflite-greedy"):
        plan = plan_graph(graph, machine(1 << 20), strategy=name)
        assert sum(plan.certificate.moved_nbytes.values()) == 6 * 64 * KIB, name


def test_cosma_is_never_above_its_baselines_on_one_order() -> None:
    for seed in range(3):
        instance = tight(random_graph(seed + 400, 12), 0.05)
        ours = sum(Cosma(part_steps=4).plan(instance, Effort(20.0)).certificate.moved_nbytes.values())
        for name in ("tflite-belady", "tflite-greedy"):
            try:
                plan = strategies([name])[0].plan(instance, LONG)
            except TimeLimitError:
                continue
            assert not check(plan, instance.graph, instance.machine)
            assert ours <= sum(plan.certificate.moved_nbytes.values())


def test_belady_takes_the_farthest_and_greedy_the_fewest_bytes() -> None:
    instance = tight(random_graph(1, 6), 1.0)
    items = {i: item.nbytes for i, item in enumerate(instance.items)}
    nexts = {i: 10 + i for i in items}
    assert farthest(instance, nexts, 1) == [max(items)]
    assert farthest(instance, nexts, 0) == []
    wanted = sorted(items.values())[1]
    chosen = sum(items[i] for i in least_bytes(instance, nexts, wanted))
    assert wanted <= chosen <= sum(items[i] for i in farthest(instance, nexts, wanted))
    assert set(least_bytes(instance, nexts, sum(items.values()))) == set(items)


@pytest.mark.parametrize("seed", range(6))
def test_the_replacement_stays_within_its_room(seed: int) -> None:
    from tensorstow.planner.stays import live_peak

    instance = tight(random_graph(seed + 500, 10), 0.2)
    for victims in (farthest, least_bytes):
        evicted = replace_tensors(instance, instance.capacity_nbytes, victims)
        stays = make_stays(instance, evicted)
        assert live_peak(instance, stays) <= instance.capacity_nbytes
        placed = allocate(instance, stays)
        assert placed is None or max(p.offset + p.nbytes for p in placed) <= instance.capacity_nbytes


def test_time_that_runs_out_leaves_the_programs_order() -> None:
    instance = tight(random_graph(600, 12), 0.1)
    plan = Cosma().plan(instance, Effort(1e-9))
    assert tuple(s.op for s in plan.steps) == instance.order
    assert not check(plan, instance.graph, instance.machine)
