"""Placement: parts of items, stores that take their time, training graphs through the checker and above the bound."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, TimeLimitError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.planner import place as placement
from tensorstow.planner.build import find_bound, run_strategy
from tensorstow.planner.instance import make_instance
from tensorstow.planner.place import place
from tensorstow.planner.realise import realise
from tensorstow.planner.spread import joined
from tensorstow.planner.stays import Decisions, Placed, Stay, bodies_of, live_peak, stays_of
from tensorstow.planner.strategies import Effort, strategies
from tensorstow.solvers.packing.problem import Packing, PackingProblem
from tensorstow.solvers.packing.solve import pack
from tensorstow.solvers.result import Result

from ..graphs import KIB, chain, machine, training


def test_a_range_that_stays_and_one_that_leaves_lie_side_by_side() -> None:
    graph = chain([64 * KIB] * 4)
    instance = make_instance(graph, machine(1 << 20))
    item = next(i for i, it in enumerate(instance.items) if it.storage == "w1")
    decisions = Decisions(frozenset({(item, 0)}), {(item, 0): 24 * KIB})
    stays = [s for s in stays_of(instance, decisions) if s.item == item]
    assert [(s.lo, s.hi, s.always) for s in stays] == [(0, 24 * KIB, True), (24 * KIB, 64 * KIB, False)]
    assert [len(b) for b in bodies_of(instance, stays)] == [2]
    placed = place(instance, stays_of(instance, decisions), decisions, packing_time_s=1)
    assert placed is not None
    bases = {p.offset - p.lo for p in placed if p.stay.item == item}
    assert len(bases) == 1
    plan = realise(instance, placed, "parts")
    assert [(t.lo, t.hi) for t in plan.transfers] == [(24 * KIB, 64 * KIB)]
    assert not [v for v in check(plan, graph, machine(1 << 20)) if v.kind != "bound"]


def test_an_optimizer_state_that_leaves_is_stored_after_its_write() -> None:
    graph = training([64 * KIB] * 4, activation=16 * KIB)
    box = machine(360 * KIB, bytes_per_s=4e10)
    plan = strategies(["stow"])[0].plan(make_instance(graph, box), Effort(5))
    written = {"m0", "m1", "m2", "m3", "w0", "w1", "w2", "w3"}
    stores = [t for t in plan.transfers if t.target == "ssd" and t.storage in written]
    assert stores
    last = {s: max(i for i, step in enumerate(plan.steps) if step.op == f"u{s[1:]}") for s in written}
    for t in stores:
        assert not t.after <= last[t.storage] < t.before
    assert not [v for v in check(plan, graph, box) if v.kind != "bound"]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.integers(1, 12),
    st.floats(0.0, 1.0),
    st.sampled_from([1e9, 1e11]),
)
def test_training_plans_pass_the_checker_and_stay_above_the_bound(
    layers: list[int], activation: int, room: float, rate: float
) -> None:
    graph = training([n * 8 * KIB for n in layers], activation=activation * 4 * KIB)
    roomy = make_instance(graph, machine(1 << 40, bytes_per_s=rate))
    least = max(roomy.base_nbytes)
    box = machine(least + int(room * (roomy.peak_of_all() - least)) + 1, bytes_per_s=rate)
    instance = make_instance(graph, box)
    bound = find_bound(instance, time_limit_s=20)
    for name in ("stow", "on-demand", "belady-prefetch"):
        try:
            plan = run_strategy(strategies([name])[0], instance, bound, Effort(1))
        except (InfeasibleError, TimeLimitError):
            continue
        own_order = tuple(s.op for s in plan.steps) == instance.order
        bound_s = bound.seconds if own_order else plan.certificate.bound_s
        assert plan.certificate.simulated_s >= bound_s * (1 - 1e-9)


def test_reserved_loads_keep_place_and_time() -> None:
    graph = chain([64 * KIB] * 8, ns=100_000)
    box = machine(300 * KIB)
    instance = make_instance(graph, box)
    evicted = frozenset((g.item, g.before) for g in instance.gaps)
    item = next(i for i, it in enumerate(instance.items) if it.storage == "w5")
    decisions = Decisions(evicted, reserved=frozenset({(item, 5)}))
    assert live_peak(instance, stays_of(instance, decisions)) <= instance.capacity_nbytes
    placed = place(instance, stays_of(instance, decisions), decisions, packing_time_s=1)
    assert placed is not None
    (load,) = [p for p in placed if p.stay.item == item]
    assert load.start < 5
    assert not [v for v in check(realise(instance, placed, "r"), graph, box) if v.kind != "bound"]


def overlapping(seed: int, *, values: int = 24, steps: int = 16) -> Graph:
    """Values of 4 to 48 KiB that live from one step to a later one, and a weight of a block for each step."""
    rng = random.Random(seed)
    storages = [Storage("x", 64, StorageKind.INPUT), Storage("y", 64, StorageKind.OUTPUT)]
    storages += [Storage(f"w{t}", 4 * KIB, StorageKind.WEIGHT) for t in range(steps)]
    reads: list[list[str]] = [[f"w{t}"] for t in range(steps)]
    writes: list[list[str]] = [[] for _ in range(steps)]
    reads[0].append("x")
    writes[-1].append("y")
    for v in range(values):
        first = rng.randrange(steps - 1)
        last = min(steps - 1, first + 1 + int(rng.expovariate(0.25)))
        storages.append(Storage(f"v{v}", rng.randint(1, 12) * 4 * KIB, StorageKind.ACTIVATION))
        writes[first].append(f"v{v}")
        reads[last].append(f"v{v}")
    storages += [Storage(f"t{t}", 64, StorageKind.ACTIVATION) for t in range(steps - 1)]
    for t in range(steps - 1):
        writes[t].append(f"t{t}")
        reads[t + 1].append(f"t{t}")
    operators = tuple(
        Operator(f"op{t}", "Op", tuple(reads[t]), tuple(writes[t]), measured_ns=100_000) for t in range(steps)
    )
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    return Graph("overlapping", tuple(storages), tensors, operators, ("x",), ("y",))


def test_what_no_first_fit_packs_is_searched_for_before_loads_have_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = overlapping(8)
    roomy = make_instance(graph, machine(1 << 30))
    evicted = frozenset((g.item, g.before) for g in roomy.gaps if roomy.items[g.item].homed)
    live = live_peak(roomy, stays_of(roomy, Decisions(evicted)))
    instance = make_instance(graph, machine(live + 8 * KIB))
    asked: list[tuple[int, int | None, bool]] = []

    def spied(problem: PackingProblem, *, time_limit_s: float, seed: int) -> Result[Packing]:
        found = pack(problem, time_limit_s=time_limit_s, seed=seed)
        fits = found.solution is not None and found.solution.peak <= instance.capacity_nbytes
        asked.append((len(problem.bodies), problem.capacity, fits))
        return found

    monkeypatch.setattr(placement, "pack", spied)
    monkeypatch.setattr(placement, "SOON_SHARE", 0.0)
    decisions = Decisions(evicted)
    placed = place(instance, stays_of(instance, decisions), decisions, packing_time_s=20)
    made = sum(not item.homed for item in instance.items)
    assert asked == [(made, None, False), (made, instance.capacity_nbytes, True)]
    assert placed is not None
    assert sum(p.start < p.stay.first for p in placed if p.stay.loads) > len(evicted) / 2
    assert not [v for v in check(realise(instance, placed, "held"), graph, instance.machine) if v.kind != "bound"]


def test_a_graph_that_trains_runs_in_less_than_all_of_it() -> None:
    graph = training([64 * KIB] * 5, activation=16 * KIB)
    roomy = make_instance(graph, machine(1 << 40))
    box = machine(int(roomy.peak_of_all() * 0.7), bytes_per_s=1e11)
    instance = make_instance(graph, box)
    bound = find_bound(instance, time_limit_s=20)
    plan = run_strategy(strategies(["stow"])[0], instance, bound, Effort(10))
    assert plan.certificate.simulated_s <= 1.3 * bound.seconds
    with pytest.raises(InfeasibleError):
        strategies(["resident"])[0].plan(instance, Effort(1))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), min_size=1, max_size=8),
    st.integers(1, 7),
    st.integers(0, 9),
)
@example([(1, 0), (1, 0), (1, 1)], 3, 0)
@example([(1, 5), (1, 0), (2, 7)], 3, 0)
def test_joined_parts_are_free_when_they_begin(lengths: list[tuple[int, int]], alignment: int, least: int) -> None:
    """Whole blocks that cover the range, each free no sooner than every byte of it."""
    parts: list[tuple[int, int, float]] = []
    for length, free in lengths:
        lo = parts[-1][1] if parts else 0
        parts.append((lo, lo + length, float(free)))
    found = joined(parts, alignment, least)
    assert [lo for lo, _, _ in found] == [0, *(hi for _, hi, _ in found[:-1])]
    assert found[-1][1] == parts[-1][1]
    for lo, hi, free in found:
        assert lo % alignment == 0
        assert free >= max(f for a, b, f in parts if a < hi and lo < b)
    assert len(found) == 1 or min(hi - lo for lo, hi, _ in found[:-1]) >= min(least, found[0][1])


def test_pending_stores_get_less_and_less_room_until_the_loads_have_some() -> None:
    """After two shares in vain it is asked whether loads find room where nothing is pending: if not, nothing helps."""

    def asked(enough: float) -> tuple[list[float], float | None]:
        shares: list[float] = []

        def tried(share: float) -> list[Placed] | None:
            shares.append(share)
            return [Placed(Stay(0, 0, 1, 0, 0), round(100 * share), 0, 1)] if share <= enough else None

        (found,) = placement._with_most_pending(tried, placement.PENDING_SHARES) or [None]  # pyright: ignore[reportPrivateUsage]
        return shares, None if found is None else found.offset / 100

    assert asked(1.0) == ([1.0], 1.0)
    assert asked(0.96) == ([1.0, 0.95], 0.95)
    assert asked(0.8) == ([1.0, 0.95, 0.0, 0.9, 0.85, 0.8], 0.8)
    assert asked(0.1) == ([1.0, 0.95, 0.0, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4], 0.0)
    assert asked(-1.0) == ([1.0, 0.95, 0.0], None)
