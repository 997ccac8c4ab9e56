"""The checker: right plans pass, and every kind of wrong plan is caught with its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.errors import InfeasibleError, TimeLimitError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import plan_graph

from ..graphs import KIB, chain, machine, training

GRAPH = chain([64 * KIB] * 6)
BOX = machine(200 * KIB, bytes_per_s=1e8)
# The third operator needs 192 KiB by itself: the activation that the last one reads again has to leave meanwhile.
SKIP = chain([64 * KIB, 64 * KIB, 128 * KIB, 64 * KIB, 64 * KIB, 64 * KIB], activation=32 * KIB, skip=5)
TIGHT = machine(200 * KIB, bytes_per_s=1e8)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_graph(GRAPH, BOX, strategy="on-demand")


def kinds(plan: Plan, graph: Graph = GRAPH, box: Machine = BOX) -> set[str]:
    return {v.kind for v in check(plan, graph, box)}


@pytest.mark.parametrize("strategy", ["stow", "on-demand", "lru", "belady", "belady-prefetch"])
def test_every_strategy_passes(strategy: str) -> None:
    assert not check(plan_graph(GRAPH, BOX, strategy=strategy), GRAPH, BOX)


def test_resident_passes() -> None:
    box = machine(1 << 20)
    assert not check(plan_graph(GRAPH, box, strategy="resident"), GRAPH, box)


def first(plan: Plan, test: Callable[[object], bool], what: str) -> int:
    return next(i for i, entry in enumerate(getattr(plan, what)) if test(entry))


def with_residency(plan: Plan, index: int, **changes: int | str) -> Plan:
    rs = list(plan.residencies)
    rs[index] = replace(rs[index], **changes)  # type: ignore[arg-type]
    return replace(plan, residencies=tuple(rs))


def with_transfer(plan: Plan, index: int, **changes: int | str) -> Plan:
    ts = list(plan.transfers)
    ts[index] = replace(ts[index], **changes)  # type: ignore[arg-type]
    return replace(plan, transfers=tuple(ts))


def test_wrong_digest(plan: Plan) -> None:
    assert kinds(replace(plan, graph="0" * 64)) == {"digest"}
    assert kinds(plan, box=machine(201 * KIB, bytes_per_s=1e8)) == {"digest"}


def test_absent_operand(plan: Plan) -> None:
    gone = tuple(r for r in plan.residencies if r.storage != "w3")
    assert "absent" in kinds(replace(plan, residencies=gone))


def test_part_of_an_operand_absent(plan: Plan) -> None:
    i = first(plan, lambda r: getattr(r, "storage") == "w3", "residencies")  # noqa: B009
    assert "absent" in kinds(with_residency(plan, i, hi=60 * KIB))


def test_overlap_in_address_and_time(plan: Plan) -> None:
    i = first(plan, lambda r: getattr(r, "storage") == "w3", "residencies")  # noqa: B009
    other = next(r for r in plan.residencies if r.storage == "a3")
    assert "overlap" in kinds(with_residency(plan, i, offset=other.offset // 4096 * 4096))


def test_beyond_the_arena_and_beyond_the_capacity(plan: Plan) -> None:
    i = first(plan, lambda r: getattr(r, "storage") == "w3", "residencies")  # noqa: B009
    assert "capacity" in kinds(with_residency(plan, i, offset=1 << 20))
    assert "capacity" in kinds(replace(plan, arena_nbytes={"dram": 201 * KIB}))


def test_misaligned(plan: Plan) -> None:
    i = first(plan, lambda r: getattr(r, "storage") == "w3", "residencies")  # noqa: B009
    assert "alignment" in kinds(with_residency(plan, i, offset=plan.residencies[i].offset + 1))


def test_one_byte_in_two_places(plan: Plan) -> None:
    i = first(plan, lambda r: getattr(r, "storage") == "w3", "residencies")  # noqa: B009
    again = replace(plan.residencies[i], offset=plan.residencies[i].offset + 80 * KIB)
    assert "twice" in kinds(replace(plan, residencies=(*plan.residencies, again)))


def test_load_that_comes_late_or_never(plan: Plan) -> None:
    i = first(plan, lambda t: getattr(t, "storage") == "w3", "transfers")  # noqa: B009
    t = plan.transfers[i]
    assert "unfilled" in kinds(with_transfer(plan, i, before=t.before + 1))
    assert "unfilled" in kinds(replace(plan, transfers=plan.transfers[:i] + plan.transfers[i + 1 :]))


def test_load_before_its_place_is_free(plan: Plan) -> None:
    i = first(plan, lambda t: getattr(t, "storage") == "w3", "transfers")  # noqa: B009
    assert "no-place" in kinds(with_transfer(plan, i, after=plan.transfers[i].after - 1))


def test_wrong_order(plan: Plan) -> None:
    steps = list(plan.steps)
    steps[1], steps[2] = steps[2], steps[1]
    assert "order" in kinds(replace(plan, steps=tuple(steps)))
    assert "order" in kinds(replace(plan, steps=(*plan.steps[:-1], plan.steps[0])))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"simulated_s": 1e-9}, "time"),
        ({"first_pass_s": 0.0}, "time"),
        ({"simulated_s": math.nan}, "time"),
        ({"first_pass_s": math.inf}, "time"),
        ({"bound_s": 1e9}, "bound"),
        ({"bound_s": math.nan}, "bound"),
        ({"bound_s": 1e-9, "status": "optimal"}, "status"),
        ({"status": "proven"}, "status"),
        ({"moved_nbytes": {"ssd->dram": 1}}, "moved"),
        ({"peak_nbytes": {"dram": 1}}, "peak"),
        ({"peak_nbytes": {"dram": 1, "ssd": 1}}, "peak"),
    ],
)
def test_wrong_certificate(plan: Plan, change: dict[str, object], kind: str) -> None:
    changed = replace(plan, certificate=replace(plan.certificate, **change))  # type: ignore[arg-type]
    assert kind in kinds(changed)


def test_steps_that_take_less_than_their_operators_were_measured_to_take(plan: Plan) -> None:
    """The simulator and the certificate agree on them, and say less than the truth."""
    steps = tuple(replace(s, duration_ns=0) for s in plan.steps)
    messages = [v.message for v in check(replace(plan, steps=steps), GRAPH, BOX)]
    assert "step 0 is to take 0 ns, 'op0' was measured to take 1000 ns" in messages


def test_workspace_counts_in_the_tier_that_the_kernel_computes_from() -> None:
    graph = replace(GRAPH, operators=tuple(replace(op, workspace_nbytes=8 * KIB) for op in GRAPH.operators))
    plan = plan_graph(graph, BOX, strategy="on-demand")
    assert plan.workspace_nbytes == {"dram": 8 * KIB}
    elsewhere = replace(plan, workspace_nbytes={"ssd": 8 * KIB})
    messages = [v.message for v in check(elsewhere, graph, BOX)]
    assert "a kernel that computes from 'dram' needs 8192 bytes of workspace there, the plan allows 0" in messages


@pytest.mark.parametrize("what", ["capacity_nbytes", "arena_nbytes", "workspace_nbytes"])
def test_tiers_that_do_not_exist_and_fewer_than_no_bytes(plan: Plan, what: str) -> None:
    stated: dict[str, int] = getattr(plan, what)
    for wrong in ({"moon": 0}, {"ssd": -1}):
        assert kinds(replace(plan, **{what: {**stated, **wrong}})) == {"capacity"}  # type: ignore[arg-type]


def test_more_bytes_than_the_link_can_move(plan: Plan) -> None:
    quick = replace(plan, certificate=replace(plan.certificate, simulated_s=1e-6, bound_s=0.0))
    assert "bandwidth" in kinds(quick)


def test_names_that_do_not_exist(plan: Plan) -> None:
    assert kinds(with_residency(plan, 0, storage="nobody")) == {"range"}
    assert kinds(with_transfer(plan, 0, origin="moon")) == {"range"}
    assert kinds(replace(plan, steps=(replace(plan.steps[0], op="nobody"), *plan.steps[1:]))) == {"step"}


@pytest.mark.parametrize("home", ["dram", "moon"])
def test_the_home_tier_is_one_that_nothing_computes_from(home: str) -> None:
    """What rests in memory for ever is filled before the first pass, unless memory is its home."""
    box = machine(2 << 20)
    resident = plan_graph(GRAPH, box, strategy="resident")
    assert kinds(replace(resident, home_tier=home), GRAPH, box) == {"home"}


def test_a_lane_whose_head_waits_for_its_tail_is_a_deadlock(plan: Plan) -> None:
    last = max(range(len(plan.transfers)), key=lambda i: plan.transfers[i].after)
    reordered = (plan.transfers[last], *plan.transfers[:last], *plan.transfers[last + 1 :])
    assert "deadlock" in kinds(replace(plan, transfers=reordered))


def spilled_plan() -> Plan:
    plan = plan_graph(SKIP, TIGHT)
    assert any(t.target == "ssd" for t in plan.transfers), "the fixture no longer spills"
    return plan


def test_a_spilled_activation_passes_and_its_mistakes_are_caught() -> None:
    plan = spilled_plan()
    assert not check(plan, SKIP, TIGHT)
    store = first(plan, lambda t: getattr(t, "target") == "ssd", "transfers")  # noqa: B009
    t = plan.transfers[store]
    assert "early" in kinds(with_transfer(plan, store, after=0), SKIP, TIGHT)
    without = replace(plan, transfers=plan.transfers[:store] + plan.transfers[store + 1 :])
    assert "no-source" in kinds(without, SKIP, TIGHT)
    i = first(plan, lambda r: getattr(r, "tier") == "ssd", "residencies")  # noqa: B009
    assert {"no-source", "no-place"} & kinds(with_residency(plan, i, start=t.before + 2), SKIP, TIGHT)


def test_a_capacity_that_the_machine_does_not_have(plan: Plan) -> None:
    have = plan.capacity_nbytes["dram"]
    assert "capacity" in kinds(replace(plan, capacity_nbytes={"dram": have + 1}))
    assert not kinds(replace(plan, capacity_nbytes={"dram": max(have - 1, plan.arena_nbytes["dram"])}))
    unstated = replace(plan, capacity_nbytes={})
    assert not kinds(unstated)
    assert "capacity" in kinds(replace(unstated, arena_nbytes={"dram": have + 1}))


def test_spilled_and_homed_bytes_must_fit_the_home_tier_together() -> None:
    plan = spilled_plan()
    scratch, homed = plan.arena_nbytes["ssd"], sum(s.nbytes for s in SKIP.storages if s.homed)
    for left, wrong in ((0, False), (-1, True)):
        box = TIGHT.with_capacity({"ssd": homed + scratch + left})
        assert ("capacity" in kinds(replace(plan, machine=digest(box)), SKIP, box)) is wrong
    small = TIGHT.with_capacity({"ssd": homed + scratch - 4096})
    with pytest.raises((InfeasibleError, TimeLimitError), match=r"--tier ssd=|more memory"):
        plan_graph(SKIP, small)
    with pytest.raises(InfeasibleError, match=rf"give it more: --tier ssd={homed + scratch}"):
        plan_graph(SKIP, small, strategy="offload-everything")


def test_a_repeated_operator_must_not_find_a_weight_updated() -> None:
    graph = training([64 * KIB] * 3)
    plan = plan_graph(graph, machine(2 << 20))
    ops = [s.op for s in plan.steps]
    updated = ops.index("u1")
    for at, wrong in ((updated, False), (updated + 1, True), (len(ops), True)):
        steps = (*plan.steps[:at], plan.steps[ops.index("f1")], *plan.steps[at:])
        messages = [v.message for v in check(replace(plan, steps=steps), graph, machine(2 << 20))]
        assert any("'u1', has changed 'w1', which it reads" in m for m in messages) is wrong
