"""PyTorch's partitioner on our operators: its knapsack, its bans, and what it saves, as PyTorch itself decides."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from torch._functorch._activation_checkpointing.knapsack import dp_knapsack

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError
from tensorstow.ir.graph import Graph, Operator
from tensorstow.planner.instance import make_instance
from tensorstow.planner.published.torch_knapsack import TorchKnapsack, dearest, knapsacks
from tensorstow.planner.published.torch_partition import Bans, Partition, again, is_fusible, is_intensive, is_listed
from tensorstow.planner.recompute_bound import flow_of
from tensorstow.planner.recompute_orders import Flow
from tensorstow.planner.strategies import Effort

from ...graphs import KIB, machine, training


def operator(kind: str, cost_class: str = "other") -> Operator:
    return Operator("op", kind, (), (), cost_class)


def typed(graph: Graph, kinds: dict[str, str]) -> Graph:
    """The graph with other types of operators, by the first letter of their ids."""
    changed = (replace(op, op_type=kinds.get(op.id[0], op.op_type)) for op in graph.operators)
    return replace(graph, operators=tuple(changed))


def flow(kinds: dict[str, str], layers: int = 3) -> Flow:
    graph = typed(training([4 * KIB] * layers, activation=16 * KIB), kinds)
    return flow_of(make_instance(graph, machine(1 << 30)))


@pytest.mark.parametrize("seed", range(8))
def test_the_knapsack_is_pytorchs(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 12)
    memory = [draw.choice([0.0, draw.random() / 3]) for _ in range(count)]
    runtimes = [float(draw.randint(1, 50)) for _ in range(count)]
    room = draw.random()
    best, kept, _ = dp_knapsack(memory, runtimes, room)
    ours = dearest(memory, runtimes, room)
    assert sum(runtimes[k] for k in ours) == pytest.approx(best)
    assert ours == frozenset(kept)


def test_what_is_cheap_and_what_is_dear() -> None:
    assert is_listed(operator("aten.mul.Tensor")) and is_listed(operator("aten.hardtanh.default", "elementwise"))
    assert not is_listed(operator("aten.native_layer_norm.default", "normalise"))
    assert not is_listed(operator("aten.bernoulli.p", "elementwise"))
    assert is_intensive(operator("aten.addmm.default", "matmul")) and is_intensive(operator("Conv", "conv_nchw"))
    assert not is_intensive(operator("aten._softmax.default", "softmax"))
    assert is_fusible(operator("aten.mul.Tensor"), operator("aten.native_dropout.default"))
    assert is_fusible(operator("aten.mm.default", "matmul"), operator("aten.cat.default"))
    assert not is_fusible(operator("aten.cat.default"), operator("aten.mul.Tensor"))


def test_what_is_dear_is_saved_until_the_budget_forbids_it() -> None:
    """Products in a row: the fastest cut saves every one; half the budget saves half of them; none at 0."""
    own = flow({"f": "aten.mm.default", "b": "aten.mm.default"}, layers=4)
    full, half, none = (next(knapsacks(own, ("flops",), (b,))) for b in (1.0, 0.5, 0.0))
    assert full == frozenset()
    assert len(half) == 2
    assert none == {"f0", "f1", "f2", "f3"}


def test_what_is_cheap_is_made_again_from_what_is_saved() -> None:
    """Cheap operators that the backward pass fuses with: all is made again from the input."""
    cheap = flow({"f": "aten.mul.Tensor", "b": "aten.mul.Tensor"})
    part = Partition(cheap)
    assert part.banned(Bans()) == frozenset()
    saved = part.saved(frozenset())
    assert again(part, saved) and len(saved & set(part.maker)) < 3
    unfusible = Partition(flow({"f": "aten.mul.Tensor", "b": "aten.mm.default"}))
    assert unfusible.banned(Bans()) == {"f0", "f1", "f2"}  # materialised for the backward pass anyhow
    assert unfusible.banned(Bans(materialized=False)) == frozenset()


def test_distance_and_price() -> None:
    part = Partition(flow({"f": "aten.mm.default", "b": "aten.mm.default"}))
    assert part.forward == ("f0", "f1", "f2")
    assert [part.distance[op] for op in part.forward] == [1, 1, 1]
    assert part.price("a0") == int(16 * KIB * 1.1)
    cheap = Partition(flow({"f": "aten.mul.Tensor", "b": "aten.mul.Tensor"}))
    assert cheap.price("a0") == 2 * int(16 * KIB * 1.1)  # every user could be fused with its maker
    assert cheap.price("w0") == 0  # it lies below anyhow


def test_the_plan_passes_the_checker_and_names_what_it_cannot() -> None:
    graph = typed(training([4 * KIB] * 6, activation=64 * KIB, ns=20_000), {"f": "aten.mm.default"})
    box = machine(1 << 30)
    for budget, again_calls in ((None, 0), (1.0, 0), (0.0, 6)):
        plan = TorchKnapsack(budget=budget).plan(make_instance(graph, box), Effort(5.0))
        assert not check(plan, graph, box) and plan.strategy == "torch-knapsack"
        assert len(plan.steps) == len(graph.operators) + again_calls and not plan.transfers
    with pytest.raises(InfeasibleError, match="keeps weights and states"):
        least = max(make_instance(graph, box).base_nbytes)
        TorchKnapsack().plan(make_instance(graph, machine(least + KIB)), Effort(5.0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        next(knapsacks(flow({}), ("flops",), (1.5,)))
    with pytest.raises(ValueError, match="no estimators"):
        next(knapsacks(flow({}), ("guess",)))
