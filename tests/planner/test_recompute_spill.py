"""Where the tier below has room for a part of what waits only, the rest is computed again; and a plan comes even where
the time is too short."""

from __future__ import annotations

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, TimeLimitError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.recompute import EXPONENTS, StowRecompute
from tensorstow.planner.recompute_bound import flow_of
from tensorstow.planner.recompute_choice import closures_by_demand, price_cuts
from tensorstow.planner.recompute_orders import recompute_order
from tensorstow.planner.recompute_resident import (
    down_to_leanest,
    first_spilling_less,
    held_nbytes,
    homed_nbytes,
    overflows,
    room_nbytes,
)
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort

from ..graphs import KIB, machine, training

LAYERS, ACTIVATION = 12, 64 * KIB
FAST = 1e12
"""Bytes a second, by which everything would be moved that may."""


def posed(spilled: int, *, above: int = 2) -> Instance:
    """A training step of equal layers with room for so many activations below, and beside the largest operator."""
    graph = training([4 * KIB] * LAYERS, activation=ACTIVATION)
    roomy = make_instance(graph, machine(1 << 30, bytes_per_s=FAST), mode="training")
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    small: Machine = machine(max(roomy.base_nbytes) + above * ACTIVATION, bytes_per_s=FAST)
    return make_instance(graph, small.with_capacity({"ssd": homed + spilled * ACTIVATION}), mode="training")


@pytest.mark.parametrize("spilled", [5, 7])
def test_what_has_no_room_below_is_computed_again(spilled: int) -> None:
    instance = posed(spilled)
    assert overflows(instance)
    with pytest.raises((InfeasibleError, TimeLimitError)):  # without computing anything again there is no plan
        Stow().plan(instance, Effort(0.5))
    plan = StowRecompute().plan(instance, Effort(4.0))
    assert not check(plan, instance.graph, instance.machine)
    assert plan.arena_nbytes.get("ssd", 0) <= spilled * ACTIVATION
    assert len(plan.steps) > instance.steps


def test_with_room_for_all_nothing_is_computed_again() -> None:
    instance = posed(LAYERS + 2)
    assert not overflows(instance)
    plan = StowRecompute().plan(instance, Effort(4.0))
    assert len(plan.steps) == instance.steps


def test_a_plan_comes_where_the_time_is_too_short_for_any() -> None:
    instance = posed(6)
    plan = StowRecompute().plan(instance, Effort(0.05))
    assert not check(plan, instance.graph, instance.machine)
    assert plan.arena_nbytes.get("ssd", 0) <= 6 * ACTIVATION


def widening() -> Instance:
    """Layers that widen what they are given, by calls that take next to no time; room for some of the wide below."""
    kinds = {"c0": StorageKind.INPUT, "d0": StorageKind.OUTPUT}
    sizes = {f"{v}{i}": n * KIB for i in range(LAYERS + 1) for v, n in (("c", 4), ("w", 64), ("d", 4))}
    del sizes[f"w{LAYERS}"]
    storages = tuple(Storage(s, n, kinds.get(s, StorageKind.ACTIVATION)) for s, n in sizes.items())
    tensors = tuple(Tensor(s.id, "uint8", (s.nbytes,), s.id, s.nbytes) for s in storages)
    forward, backward = list[Operator](), list[Operator]()
    for i in range(LAYERS):
        forward.append(Operator(f"widen{i}", "Any", (f"c{i}",), (f"w{i}",), measured_ns=10 + i))
        forward.append(Operator(f"narrow{i}", "Any", (f"w{i}",), (f"c{i + 1}",), measured_ns=100_000))
        backward.append(Operator(f"b{i}", "Any", (f"d{i + 1}", f"w{i}"), (f"d{i}",), measured_ns=100_000))
    turn = Operator("turn", "Any", (f"c{LAYERS}",), (f"d{LAYERS}",), measured_ns=10)
    graph = Graph("widening", storages, tensors, (*forward, turn, *reversed(backward)), ("c0",), ("d0",))
    small = machine(200 * KIB, bytes_per_s=FAST).with_capacity({"ssd": 4 * ACTIVATION})
    return make_instance(graph, small, mode="training")


def test_the_sequence_of_cuts_begins_where_both_tiers_hold_what_waits() -> None:
    instance = widening()
    flow = flow_of(instance)
    cuts = down_to_leanest(instance, flow, list(price_cuts(flow, EXPONENTS)))
    sequence = closures_by_demand(flow, cuts)
    first = first_spilling_less(instance, flow, sequence)
    room = room_nbytes(instance)
    assert room is not None and 0 < first <= len(sequence)

    def waits(k: int) -> int:
        return held_nbytes(instance, flow, frozenset[str]().union(*sequence[:k])) - homed_nbytes(instance)

    assert waits(first) <= room < waits(first - 1)
    assert not overflows(instance.reordered(recompute_order(flow, frozenset[str]().union(*sequence[:first]))))


def test_cuts_are_taken_as_long_as_they_hold_less() -> None:
    instance = widening()
    flow = flow_of(instance)
    cuts = list(price_cuts(flow, EXPONENTS))
    leanest = down_to_leanest(instance, flow, cuts)
    held = [held_nbytes(instance, flow, frozenset[str]().union(*cuts[:n])) for n in range(len(cuts) + 1)]
    assert leanest == cuts[: len(leanest)] and held[len(leanest)] == min(held)
    assert down_to_leanest(instance, flow, [*cuts, frozenset[str]()]) == leanest
