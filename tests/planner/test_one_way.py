"""A machine whose fast tier is filled and never emptied: what operators make or change stays, weights come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, NotApplicableError, TensorstowError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.planner.build import plan_graph
from tensorstow.planner.cosma import Cosma, pose_pass
from tensorstow.planner.instance import make_instance
from tensorstow.planner.one_way import bound_nbytes, removable_gaps
from tensorstow.planner.realise import realise
from tensorstow.planner.round import fluid, kept_profile, repair, threshold
from tensorstow.planner.stays import Placed, make_stays
from tensorstow.planner.strategies import Effort
from tensorstow.planner.tflite import farthest, least_bytes, replace_tensors
from tensorstow.planner.traffic import LeastTraffic
from tensorstow.planner.traffic_choice import pose, solve_choice
from tensorstow.solvers.exact import solve_traffic

from ..graphs import KIB, chain, machine, training

WAITS = chain([64 * KIB, 128 * KIB, 128 * KIB, 16 * KIB], activation=4 * KIB, skip=1)
"""Its first value waits for the last operator, beside two large weights, one after the other."""

TIGHT = (128 + 3 * 4 + 14) * KIB
"""Room for them and for what waits, but not for the small weight too: a store of what waits would spare its load."""


def one_way(capacity_nbytes: int) -> Machine:
    box = machine(capacity_nbytes, alignment=512)
    return replace(box, name="flash", links=box.links[:1])


@pytest.mark.parametrize("name", ["stow", "least-traffic", "cosma", "tflite-belady", "tflite-greedy", "flexgen", "lru"])
def test_what_waits_stays_and_weights_move(name: str) -> None:
    box = one_way(TIGHT)
    plan = plan_graph(WAITS, box, strategy=name, time_limit_s=2.0)
    assert not check(plan, WAITS, box)
    assert all(t.target == "dram" and t.storage.startswith("w") for t in plan.transfers)


@pytest.mark.parametrize(
    "name", ["stow", "stow-recompute", "least-traffic", "cosma", "tflite-belady", "capuchin", "poet"]
)
def test_a_training_step_has_a_plan_or_a_reason(name: str) -> None:
    """Weights and states are updated in place: they never leave, and what a layer made may be made again only."""
    graph = training([16 * KIB, 16 * KIB, 16 * KIB], activation=8 * KIB)
    roomy = make_instance(graph, one_way(1 << 30))
    for share in (0.6, 0.95):
        box = one_way(int(share * roomy.peak_of_all()))
        try:
            plan = plan_graph(graph, box, strategy=name, mode="training", time_limit_s=2.0)
        except TensorstowError:
            continue
        assert not check(plan, graph, box), share


def test_memo_says_that_it_does_not_apply() -> None:
    graph = training([KIB] * 5, activation=32 * KIB)
    with pytest.raises(NotApplicableError, match="machine 'flash' has no link from tier 'dram' to 'ssd'"):
        plan_graph(graph, one_way(1 << 30), strategy="memo", mode="training")


@pytest.mark.parametrize("name", ["stow", "least-traffic", "cosma", "tflite-belady", "tflite-greedy"])
def test_what_cannot_leave_and_does_not_fit_is_proven_infeasible(name: str) -> None:
    """All but the value that waits fits: a machine with a way back would move it."""
    nbytes = (128 + 2 * 4 + 2) * KIB
    both = machine(nbytes, alignment=512)
    assert not check(plan_graph(WAITS, both, strategy="least-traffic", time_limit_s=2.0), WAITS, both)
    with pytest.raises(InfeasibleError, match="has no link from tier 'dram' to 'ssd'") as caught:
        plan_graph(WAITS, one_way(nbytes), strategy=name, time_limit_s=2.0)
    smallest = caught.value.smallest_nbytes
    assert smallest is not None
    enough = one_way(smallest)
    assert not check(plan_graph(WAITS, enough, strategy=name, time_limit_s=2.0), WAITS, enough)


def test_no_choice_and_no_replacement_takes_what_cannot_leave() -> None:
    instance = make_instance(WAITS, one_way(TIGHT))
    free = {(g.item, g.before) for g in removable_gaps(instance)}
    stuck = {(g.item, g.before) for g in instance.gaps} - free
    assert stuck and all(instance.items[i].storage == "a0" for i, _ in stuck)
    choice = pose(instance, instance.capacity_nbytes)
    assert set(choice.gaps) == free
    found = solve_choice(choice, time_limit_s=60.0)
    problem = replace(pose_pass(instance), order=tuple(range(instance.steps)), cyclic=True)
    assert found.objective == solve_traffic(problem, engine="highs").objective
    assert (found.objective or 0) > (solve_traffic(replace(problem, one_way=False), engine="highs").objective or 0)
    for victims in (farthest, least_bytes):
        for capacity in (instance.capacity_nbytes, max(instance.base_nbytes), 0):
            assert replace_tensors(instance, capacity, victims) <= free


def test_roundings_leave_it_where_it_is() -> None:
    instance = make_instance(WAITS, one_way(TIGHT))
    gaps = instance.gaps
    absent = [0.0 if gap.clean else 0.9 for gap in gaps]
    assert not threshold(instance, absent)
    assert not fluid(instance, absent, 1)[0]
    assert int(kept_profile(instance, set(range(len(gaps)))).max()) == max(bound_nbytes(instance))
    evicted: set[int] = set()
    assert repair(instance, absent, evicted, max(bound_nbytes(instance)))
    assert evicted and all(gaps[g].clean for g in evicted)
    assert not repair(instance, absent, set(evicted), max(instance.base_nbytes)), "it would have to leave"


def test_decisions_that_store_are_refused_by_name() -> None:
    instance = make_instance(WAITS, one_way(1 << 20))
    waits = next(g for g in instance.gaps if not g.clean)
    stays = make_stays(instance, {(waits.item, waits.before)})
    placed = [Placed(s, n << 17, s.first, instance.steps if s.always else s.last + 1) for n, s in enumerate(stays)]
    with pytest.raises(InfeasibleError, match="strategy 'mine' would store 'a0'"):
        realise(instance, placed, "mine")


def test_another_order_may_hold_what_the_programs_cannot() -> None:
    """Three wide values side by side do not fit, one after another they do."""
    sizes = {"x": KIB, "y": KIB} | dict.fromkeys("abc", 32 * KIB) | dict.fromkeys(("as", "bs", "cs"), KIB)
    kinds = {"x": StorageKind.INPUT, "y": StorageKind.OUTPUT}
    storages = tuple(Storage(n, b, kinds.get(n, StorageKind.ACTIVATION)) for n, b in sizes.items())
    operators = [Operator(n, "Any", ("x",), (n,), measured_ns=100) for n in "abc"]
    operators += [Operator(n + "s", "Any", (n,), (n + "s",), measured_ns=100) for n in "abc"]
    operators.append(Operator("y", "Any", ("as", "bs", "cs"), ("y",), measured_ns=100))
    tensors = tuple(Tensor(n, "uint8", (b,), n, b) for n, b in sizes.items())
    graph = Graph("branches", storages, tensors, tuple(operators), ("x",), ("y",))
    instance = make_instance(graph, one_way(40 * KIB))
    with pytest.raises(InfeasibleError, match="has no link from tier"):
        LeastTraffic(reorder=False).plan(instance, Effort(5.0))
    for strategy in (LeastTraffic(), Cosma()):
        plan = strategy.plan(instance, Effort(5.0))
        assert not check(plan, graph, instance.machine)
        assert not plan.transfers
