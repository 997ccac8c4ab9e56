"""Right plans with one or two things wrong: what the checker still accepts must compute the same, however late or early
transfers come."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import PlanMismatchError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Unit
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.planner.recompute_bound import flow_of
from tensorstow.planner.recompute_orders import recompute_order, repeated
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort

from ..graphs import KIB, chain, machine, training
from .following import same
from .mutants import mutant, truthful
from .test_contents import tower

MUTANTS = 120
"""Of each plan."""

EAGER = (0.0, 0.5, 0.95)
"""How likely a transfer goes on when it may: only when it must, now and then, as soon as it may."""


@dataclass(frozen=True)
class Case:
    """A graph, a machine, and a plan of ours."""

    graph: Graph
    machine: Machine
    plan: Plan


def drawn() -> Graph:
    """A chain of which three operators are random, two of them one beside the other."""
    graph = chain([8 * KIB] * 5, skip=4)
    beside = Storage("r", 4 * KIB, StorageKind.ACTIVATION)
    made = Operator("noise", "RandomNormalLike", ("x",), ("r",), measured_ns=1000)
    types = {0: "aten.native_dropout.default", 2: "RandomUniform"}
    calls = [replace(op, op_type=types.get(i, op.op_type)) for i, op in enumerate(graph.operators)]
    calls[3] = replace(calls[3], inputs=(*calls[3].inputs, "r"))
    return replace(
        graph,
        storages=(*graph.storages, beside),
        tensors=(*graph.tensors, Tensor("r", "float32", (KIB,), "r", 4 * KIB)),
        operators=(calls[0], made, *calls[1:]),
    )


def given_cache() -> Graph:
    """A cache that is given, of which a part is written in the middle and all is read at the end."""
    graph = chain([16 * KIB] * 6, skip=5)
    cache = Storage("s", 16 * KIB, StorageKind.INPUT)
    whole = Tensor("s", "float32", (4 * KIB,), "s", 16 * KIB)
    part = Tensor("s'", "float32", (KIB,), "s", 4 * KIB, 4 * KIB)
    write = Operator("write", "Any", ("a2",), ("s'",), measured_ns=1000)
    *calls, last = graph.operators
    return replace(
        graph,
        storages=(*graph.storages, cache),
        tensors=(*graph.tensors, whole, part),
        operators=(*calls[:3], write, *calls[3:], replace(last, inputs=(*last.inputs, "s", "s'"))),
        inputs=(*graph.inputs, "s"),
    )


def changed_in_place() -> Graph:
    """A chain whose first value is changed in place at once, and again before it is read at the end; the third operator
    leaves no room for it."""
    graph = chain([n * KIB for n in (16, 16, 32, 16, 16, 16)], activation=16 * KIB, skip=5)
    names = ("a0", "a0'", "a0''")
    over = [Operator(f"over{i}", "Any", names[i : i + 1], names[i + 1 : i + 2], measured_ns=1000) for i in range(2)]
    first, second, *between, last = graph.operators
    second, last = (
        replace(op, inputs=tuple(new if name == "a0" else name for name in op.inputs))
        for op, new in ((second, "a0'"), (last, "a0''"))
    )
    return replace(
        graph,
        tensors=(*graph.tensors, *(replace(graph.tensor["a0"], id=name) for name in names[1:])),
        operators=(first, over[0], second, *between, over[1], last),
    )


def kept_outside() -> Graph:
    """A training step of which one weight, two states and one value have no bytes in the plan."""
    graph, outside = training([16 * KIB] * 4, activation=8 * KIB), {"w0", "m0", "m1", "a1"}
    return replace(
        graph,
        storages=tuple(replace(s, nbytes=0) if s.id in outside else s for s in graph.storages),
        tensors=tuple(replace(t, nbytes=0) if t.storage in outside else t for t in graph.tensors),
    )


def three_tiers(hbm_nbytes: int, dram_nbytes: int) -> Machine:
    return tower(up=2e9, below=1e9).with_capacity({"hbm": hbm_nbytes, "dram": dram_nbytes})


def shared(box: Machine) -> Machine:
    """All links on one channel."""
    return replace(box, links=tuple(replace(k, channel="bus") for k in box.links))


def planned(graph: Graph, box: Machine, strategy: str = "stow") -> Case:
    """On `box` with a unit more in each tier, which the plan does not use."""
    box = replace(box, units=(*box.units, *(Unit(f"at {t.name}", t.name, (("float32", 1.0),), 1.0) for t in box.tiers)))
    return Case(graph, box, plan_graph(graph, box, strategy=strategy, time_limit_s=1.0))


def called_again() -> Case:
    """A training step that calls the operators of its forward pass again."""
    graph, box = training([16 * KIB] * 3, activation=16 * KIB), machine(150 * KIB, bytes_per_s=SLOW)
    instance = make_instance(graph, box, mode="training")
    posed = instance.reordered(recompute_order(flow_of(instance), instance.order))
    assert repeated(flow_of(instance), posed.order)
    return Case(graph, box, Stow().plan(posed, Effort(1.0)))


SLOW = Link("ssd", "dram", 1e9).bytes_per_s
MADE: dict[str, Callable[[], Case]] = {
    "streamed": lambda: planned(chain([16 * KIB] * 6, skip=5), machine(52 * KIB, bytes_per_s=SLOW)),
    "on demand": lambda: planned(
        chain([16 * KIB, 32 * KIB] * 3, skip=5), machine(72 * KIB, bytes_per_s=SLOW), "on-demand"
    ),
    "resident": lambda: planned(chain([16 * KIB] * 4), machine(400 * KIB, bytes_per_s=SLOW), "resident"),
    "trained": lambda: planned(training([16 * KIB] * 3), machine(120 * KIB, bytes_per_s=SLOW)),
    "kept outside": lambda: planned(kept_outside(), machine(90 * KIB, bytes_per_s=SLOW)),
    "called again": called_again,
    "one channel": lambda: planned(training([16 * KIB] * 3), shared(machine(120 * KIB, bytes_per_s=SLOW))),
    "three tiers": lambda: planned(training([16 * KIB] * 3), three_tiers(120 * KIB, 160 * KIB)),
    "drawn": lambda: planned(drawn(), machine(36 * KIB, bytes_per_s=SLOW)),
    "a cache": lambda: planned(given_cache(), machine(60 * KIB, bytes_per_s=SLOW)),
    "in place": lambda: planned(changed_in_place(), machine(72 * KIB, bytes_per_s=SLOW)),
}


def accepted(case: Case, seed: int, count: int) -> Iterator[tuple[int, Plan]]:
    """Mutants in which the checker finds nothing, with their seeds."""
    for number in range(seed, seed + count):
        plan = truthful(mutant(case.plan, case.machine, random.Random(number)), case.graph, case.machine)
        if plan is not None and not check(plan, case.graph, case.machine):
            yield number, plan


@pytest.mark.parametrize("name", MADE)
def test_what_the_checker_accepts_computes_the_same(name: str) -> None:
    case = MADE[name]()
    for eager in EAGER:
        assert same(case.plan, case.graph, case.machine, random.Random(0), eager=eager), "the plan itself"
    found = Counter[str]()
    for seed, plan in accepted(case, 0, MUTANTS):
        for eager in EAGER:
            try:
                right = same(plan, case.graph, case.machine, random.Random(seed), eager=eager)
            except PlanMismatchError:  # the runtime refuses more than the checker
                found["refused"] += 1
                continue
            assert right, f"mutant {seed} of '{name}' computes something else, eager {eager}"
            found["right"] += 1
    assert found["right"] > len(EAGER), "next to nothing passes: the mutants prove nothing"


@pytest.mark.parametrize("name", ["streamed", "trained"])
def test_what_is_wrong_does_compute_something_else(name: str) -> None:
    """The interpreter itself: of the mutants that the checker refuses many do give other bytes."""
    case = MADE[name]()
    wrong = 0
    for seed in range(150):
        plan = truthful(mutant(case.plan, case.machine, random.Random(seed)), case.graph, case.machine)
        if plan is None or not check(plan, case.graph, case.machine):
            continue
        try:
            wrong += not same(plan, case.graph, case.machine, random.Random(seed), eager=0.0)
        except (PlanMismatchError, IndexError, ValueError):
            continue
    assert wrong > 5
