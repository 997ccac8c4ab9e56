"""Recomputation: orders are right, the joint bound is below every plan, and the strategy is never worse than `stow`."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, TimeLimitError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.plan import Plan
from tensorstow.planner import recompute
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.place import place
from tensorstow.planner.published.capuchin import Capuchin
from tensorstow.planner.published.checkpointing import CheckpointMinCut, CheckpointSqrt
from tensorstow.planner.published.memo import Memo
from tensorstow.planner.realise import realise
from tensorstow.planner.recompute import StowRecompute
from tensorstow.planner.recompute_bound import flow_of, recompute_bound
from tensorstow.planner.recompute_choice import price_cut
from tensorstow.planner.recompute_orders import is_random, made_anew, recompute_order, repeatable, repeated
from tensorstow.planner.recompute_score import expected_ns
from tensorstow.planner.stays import Decisions, make_stays
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort

from ..graphs import KIB, machine, training
from .recompute_cases import EFFORT, budget

# Orders


def test_what_may_be_repeated() -> None:
    graph = training([4 * KIB, 8 * KIB])
    assert repeatable(graph) == {"f0", "f1", "b0", "b1"} == made_anew(graph)  # updates write what is at home
    assert is_random(Operator("d", "aten.native_dropout.default", (), ()))
    assert is_random(Operator("d", "RandomNormalLike", (), ())) and is_random(Operator("d", "Dropout", (), ()))
    assert is_random(Operator("d", "aten.rand_like", (), ()))
    assert not is_random(Operator("d", "Gemm", (), ())) and not is_random(Operator("d", "Expand", (), ()))


def test_what_is_given_up_is_made_again_just_before_its_use() -> None:
    instance = make_instance(training([4 * KIB] * 3), machine(1 << 30))
    flow = flow_of(instance)
    assert flow.order[flow.turn] == "b2"
    assert recompute_order(flow, {"f2"}) == ("f0", "f1", "f2", "f2", "b2", "b1", "b0", "u2", "u1", "u0")
    order = recompute_order(flow, {"f0", "f1"})
    assert order == ("f0", "f1", "f2", "f0", "f1", "b2", "b1", "b0", "u2", "u1", "u0")
    assert repeated(flow, order) == {"f0", "f1"}
    assert recompute_order(flow, {"b1", "u0"}) == flow.order  # behind the turn, and not repeatable


def test_nothing_is_made_again_from_what_has_changed() -> None:
    """The value that waits is read once more after the weight it was made from has been updated."""
    graph = training([4 * KIB, 4 * KIB])
    tensors = (*graph.tensors, Tensor("z", "uint8", (KIB,), "z", KIB))
    storages = (*graph.storages, Storage("z", KIB, StorageKind.OUTPUT))
    late = Operator("late", "Any", ("a0",), ("z",), measured_ns=1000)
    graph = Graph("late", storages, tensors, (*graph.operators, late), graph.inputs, (*graph.outputs, "z"))
    flow = flow_of(make_instance(graph, machine(1 << 30)))
    order = recompute_order(flow, {"f0"})
    assert order.index("b1") - 1 == order.index("f0", 1)  # b1 reads a0 before the update: it is made again there
    assert price_cut(flow, 1e6) <= {"f1"}  # a cut does not count on it for so long


# The strategy


@pytest.mark.parametrize(
    ("layers", "activation"), [([4 * KIB] * 4, 32 * KIB), ([4 * KIB, 16 * KIB, 8 * KIB], 16 * KIB)]
)
@pytest.mark.parametrize("room", [0.2, 0.5])
def test_never_worse_than_stow(
    layers: list[int], activation: int, room: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Than the very plan that stow gave: another run may end elsewhere, as it searches against the clock."""
    graph = training(layers, activation=activation, ns=20_000)
    box = budget(graph, room, 2e9)
    instance = make_instance(graph, box)
    plain: list[Plan] = []

    class Remembered(Stow):
        def plan(self, instance: Instance, effort: Effort) -> Plan:
            found = Stow().plan(instance, effort)
            if len(instance.order) == len(graph.operators):
                plain.append(found)
            return found

    monkeypatch.setattr(recompute, "Stow", Remembered)
    plan = StowRecompute().plan(instance, EFFORT)
    assert not check(plan, graph, box) and plan.strategy == "stow-recompute"
    assert recompute_bound(instance)[0] * (1 - 1e-9) <= plan.certificate.simulated_s
    without = instance.relax(instance.capacity_nbytes, time_limit_s=10).bound  # proves that stow need not be asked
    assert without is not None
    assert plan.certificate.simulated_s <= min((p.certificate.simulated_s for p in plain), default=without / 1e9)


def test_recomputation_is_found_where_swapping_is_slow() -> None:
    graph = training([4 * KIB] * 4, activation=64 * KIB, ns=20_000)
    instance = make_instance(graph, budget(graph, 0.8, 3e7))
    plan = StowRecompute().plan(instance, EFFORT)
    alone = instance.relax(instance.capacity_nbytes, time_limit_s=10).bound
    assert alone is not None and plan.certificate.simulated_s * 1e9 < 0.9 * alone  # below all that swapping can do
    assert len(plan.steps) > instance.steps


def test_what_is_published_is_never_better() -> None:
    """Also where the joint program is not asked and all is left to cuts."""
    graph = training([4 * KIB] * 6, activation=32 * KIB, ns=20_000)
    for room, options in ((0.7, StowRecompute()), (0.5, StowRecompute(windows=0))):
        box = budget(graph, room, 1e9)
        instance = make_instance(graph, box)
        plan = options.plan(instance, EFFORT)
        assert not check(plan, graph, box)
        for other in (CheckpointSqrt(), CheckpointMinCut(), Memo(), Capuchin()):
            with suppress(InfeasibleError, TimeLimitError):
                assert plan.certificate.simulated_s <= other.plan(instance, EFFORT).certificate.simulated_s * (1 + 1e-9)


def test_what_is_expected_of_an_order() -> None:
    graph = training([4 * KIB] * 3, activation=32 * KIB, ns=20_000)
    roomy = make_instance(graph, machine(1 << 30))
    assert expected_ns(roomy) == sum(roomy.durations_ns)
    tight = make_instance(graph, budget(graph, 0.3, 1e9))
    fine = tight.relax(tight.capacity_nbytes, time_limit_s=10).bound
    assert fine is not None and 0.9 * fine <= expected_ns(tight) <= fine * (1 + 1e-6)
    assert expected_ns(tight, (0.8, 0.9)) > expected_ns(tight)


def test_every_subset_of_a_small_step_can_be_realised() -> None:
    """Any set of operators gives a right plan where memory is ample: what is chosen is made again, or not needed."""
    graph = training([4 * KIB] * 3)
    box = machine(1 << 30)
    flow = flow_of(make_instance(graph, box))
    nothing = Decisions(frozenset(), {}, prefetch=False)
    for bits in product((0, 1), repeat=3):
        order = recompute_order(flow, {f"f{i}" for i in range(3) if bits[i]})
        assert repeated(flow, order) == {f"f{i}" for i in range(3) if bits[i]}
        posed = make_instance(graph, box, order=order)
        placed = place(posed, make_stays(posed, frozenset()), nothing, packing_time_s=1)
        assert placed is not None and not check(realise(posed, placed, "all"), graph, box)
