"""COSMA and what it is compared with: plans that hold, the exact optimum where it is small, parts that stay valid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import TimeLimitError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.planner import cosma, cosma_parts, tflite, traffic
from tensorstow.planner.build import plan_graph
from tensorstow.planner.cosma import Cosma, pose_pass
from tensorstow.planner.cosma_parts import divide, solve_parts
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.stays import Stay, live_peak, make_stays
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.planner.tflite import allocate, farthest, least_bytes, replace_tensors
from tensorstow.solvers.exact import TrafficProblem, TrafficSolution, check_traffic, moved_nbytes, solve_traffic
from tensorstow.solvers.result import Result, Status

from ..graphs import KIB, chain, machine, training
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


@cache
def whole_pass(seed: int, writes: float) -> tuple[TrafficProblem, int]:
    """One pass of a random program, and the fewest bytes that it moves."""
    problem = pose_pass(tight(random_graph(seed, 7, writes), 0.05))
    whole = solve_traffic(problem, time_limit_s=600.0, engine="highs")
    assert whole.status is Status.OPTIMAL and isinstance(whole.objective, int)
    return problem, whole.objective


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("seed", "writes"), [(0, 0.0), (1, 0.0), (2, 0.5), (3, 0.5), (4, 0.7)])
def test_parts_make_a_valid_pass(seed: int, writes: float, length: int) -> None:
    """Whatever the cuts, the parts add up to a pass that the oracle's validator accepts; none is below the optimum."""
    problem, least = whole_pass(seed + 300, writes)
    solution = solve_parts(problem, length, time_limit_s=600.0, engine="highs")
    assert not check_traffic(problem, solution)
    assert moved_nbytes(problem, solution) >= least
    if length == 1:
        assert solution.order == tuple(range(problem.steps))


def test_parts_are_as_long_as_they_are_asked_to_be() -> None:
    assert divide(11, 4, 2) == [(0, 1), (2, 3, 4, 5), (6, 7, 8, 9), (10,)]
    assert divide(3, 4, 4) == [(0, 1, 2)]
    assert divide(0, 4, 4) == []


def test_a_sum_that_grows_all_through_the_pass_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of a residual stream, each added in place to the one before: no part is longer for it."""
    grown = in_place_chain(14)
    instance = make_instance(grown, machine(28 * KIB, alignment=512))
    solved: list[int] = []

    def watched(problem: TrafficProblem, **options: Any) -> Result[TrafficSolution]:
        solved.append(problem.steps)
        return solve_traffic(problem, **options)

    monkeypatch.setattr(cosma_parts, "solve_traffic", watched)
    problem = pose_pass(instance)
    solution = solve_parts(problem, 4, time_limit_s=600.0, engine="highs")
    assert not check_traffic(problem, solution)
    assert max(solved) == 4


def in_place_chain(adds: int) -> Graph:
    """s += w0; s += w1; ...: one storage that every operator reads and writes, each beside a weight of its own."""
    storages = [Storage("s", 4 * KIB, StorageKind.OUTPUT)]
    storages += [Storage(f"w{i}", 8 * KIB, StorageKind.WEIGHT, blob=f"w{i}") for i in range(adds)]
    tensors = [Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages[1:]]
    tensors += [Tensor(f"s{i}", "uint8", (4 * KIB,), "s", 4 * KIB) for i in range(adds)]
    operators = [
        Operator(f"add{i}", "Any", (*((f"s{i - 1}",) if i else ()), f"w{i}"), (f"s{i}",), measured_ns=1000)
        for i in range(adds)
    ]
    return Graph("adds", tuple(storages), tuple(tensors), tuple(operators), (), (f"s{adds - 1}",))


def test_a_training_step_has_a_plan() -> None:
    """Weights and states that are updated in place: what a pass changes goes below, and nothing is counted twice."""
    instance = tight(training([24 * KIB, 16 * KIB]), 0.1)
    plan = Cosma().plan(instance, LONG)
    assert not check(plan, instance.graph, instance.machine)
    # What the first and the last step use has no time to leave: against passes that follow one another.
    wanted = solve_traffic(replace(pose_pass(instance), cyclic=True), time_limit_s=600.0, engine="highs")
    assert wanted.status is Status.OPTIMAL and wanted.objective is not None
    assert sum(plan.certificate.moved_nbytes.values()) >= wanted.objective > 0


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


def test_all_that_it_does_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes a limit takes all of it; together that is the limit of the strategy, not several times that."""
    now = [1000.0]
    monkeypatch.setattr(cosma, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(name: str) -> Callable[..., Any]:
        real = getattr(cosma, name)

        def called(*given: Any, **named: Any) -> Any:
            limit = named["time_limit_s"] if "time_limit_s" in named else given[1].time_limit_s
            assert limit >= 0
            now[0] += limit
            return real(*given, **named)

        return called

    for name in ("search", "solve_parts", "solve_choice", "solve_traffic"):
        monkeypatch.setattr(cosma, name, slow(name))
    for strategy, operators in ((Cosma(part_steps=4), 12), (Cosma(), 5)):
        instance = tight(random_graph(400, operators), 0.05)
        began = now[0]
        plan = strategy.plan(instance, Effort(100.0))
        assert not check(plan, instance.graph, instance.machine)
        assert 50.0 < now[0] - began <= 100.0 * (1 + 1e-9)


def test_the_addresses_of_the_integer_program_stand_where_packing_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*given: object, **named: object) -> None:
        del given, named

    monkeypatch.setattr(traffic, "place", nothing)
    monkeypatch.setattr(cosma, "place", nothing)
    for seed in (200, 201):
        instance = tight(random_graph(seed, 4), 0.1)
        with pytest.raises(TimeLimitError, match="no addresses were found"):
            Cosma(offset_steps=0).plan(instance, LONG)
        plan = Cosma().plan(instance, LONG)
        assert not check(plan, instance.graph, instance.machine)
        least = solve_traffic(pose_pass(instance), time_limit_s=600.0, engine="highs").objective
        assert sum(plan.certificate.moved_nbytes.values()) >= (least or 0)


def test_an_order_that_does_not_fit_with_its_alignments_leaves_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The integer program counts bytes; beside what leaves last, three operands that begin at multiples of 64 are too
    much for a room that holds them in the program's order."""
    sizes = {"x": 64, "w1": 65, "w2": 65, "y": 65, "z": 65}
    kinds = {"x": StorageKind.INPUT, "y": StorageKind.OUTPUT, "z": StorageKind.OUTPUT}
    storages = tuple(
        Storage(n, b, kinds.get(n, StorageKind.WEIGHT), blob=None if n in kinds else n) for n, b in sizes.items()
    )
    tensors = tuple(Tensor(n, "uint8", (b,), n, b) for n, b in sizes.items())
    operators = (
        Operator("first", "Any", ("w1", "w2"), ("y",), measured_ns=1000),
        Operator("second", "Any", ("x",), ("z",), measured_ns=1000),
    )
    graph = Graph("ends", storages, tensors, operators, ("x",), ("y", "z"))
    instance = make_instance(graph, machine(440))

    def backwards(problem: TrafficProblem, length: int, **named: object) -> TrafficSolution:
        del length, named
        found = solve_traffic(replace(problem, order=(1, 0))).solution
        assert found is not None, "in bytes it fits"
        return found

    monkeypatch.setattr(cosma, "solve_parts", backwards)
    plan = Cosma().plan(instance, LONG)
    assert tuple(s.op for s in plan.steps) == ("first", "second")
    assert not check(plan, graph, instance.machine)


def test_replacement_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forty rooms for the replacement, none of which has an allocation, only the last is tried when time is over."""
    tried: list[int] = []

    def nowhere(instance: Instance, stays: list[Stay]) -> None:
        tried.append(live_peak(instance, stays))

    monkeypatch.setattr(tflite, "allocate", nowhere)
    instance = tight(random_graph(501, 10), 0.3)
    for name in ("tflite-belady", "tflite-greedy"):
        with pytest.raises(TimeLimitError, match="no greedy allocation"):
            strategies([name])[0].plan(instance, LONG)
        rooms, least = len(tried), tried[-1]
        assert rooms > 2
        tried.clear()
        with pytest.raises(TimeLimitError, match="no greedy allocation"):
            strategies([name])[0].plan(instance, Effort(0.0))
        assert len(tried) == 2 and tried[-1] == least
        tried.clear()


def test_the_allocation_is_greedy_by_size_at_the_best_fit() -> None:
    """Each stay lies in the smallest hole that holds it, or behind the last, among those before it that it meets."""
    for seed in range(4):
        instance = tight(random_graph(seed + 500, 10), 0.2)
        roomy = replace(instance, capacity_nbytes=1 << 40)
        stays = make_stays(instance, replace_tensors(instance, instance.capacity_nbytes, farthest))
        placed = allocate(roomy, stays)
        assert placed is not None
        for n, own in enumerate(placed):
            steps = {t % instance.steps for t in range(own.start, own.end)}
            around = [p for p in placed[:n] if steps & {t % instance.steps for t in range(p.start, p.end)}]
            taken = sorted((p.offset, p.offset + p.nbytes) for p in around)
            assert all(own.offset + own.nbytes <= lo or own.offset >= hi for lo, hi in taken)
            step = instance.alignment_of(own.stay.item)
            assert own.offset == 0 or any(0 <= own.offset - hi < step for _, hi in taken)
