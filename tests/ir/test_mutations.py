"""Right plans with one or two things wrong: what the checker still accepts must compute the same, however late or early
transfers come."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine
from tensorstow.ir.plan import Plan, Residency, Transfer
from tensorstow.ir.simulate import simulate
from tensorstow.planner.build import plan_graph

from ..graphs import KIB, chain, machine, training
from .following import CELL, same
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


def three_tiers(hbm_nbytes: int, dram_nbytes: int) -> Machine:
    return tower(up=2e9, below=1e9).with_capacity({"hbm": hbm_nbytes, "dram": dram_nbytes})


def shared(box: Machine) -> Machine:
    """All links on one channel."""
    return replace(box, links=tuple(replace(k, channel="bus") for k in box.links))


SLOW = Link("ssd", "dram", 1e9).bytes_per_s
MADE: dict[str, Callable[[], tuple[Graph, Machine, str]]] = {
    "streamed": lambda: (chain([16 * KIB] * 6, skip=5), machine(52 * KIB, bytes_per_s=SLOW), "stow"),
    "on demand": lambda: (chain([16 * KIB, 32 * KIB] * 3, skip=5), machine(72 * KIB, bytes_per_s=SLOW), "on-demand"),
    "trained": lambda: (training([16 * KIB] * 3), machine(120 * KIB, bytes_per_s=SLOW), "stow"),
    "one channel": lambda: (training([16 * KIB] * 3), shared(machine(120 * KIB, bytes_per_s=SLOW)), "stow"),
    "three tiers": lambda: (training([16 * KIB] * 3), three_tiers(120 * KIB, 160 * KIB), "stow"),
    "drawn": lambda: (drawn(), machine(36 * KIB, bytes_per_s=SLOW), "stow"),
    "a cache": lambda: (given_cache(), machine(60 * KIB, bytes_per_s=SLOW), "stow"),
}


def made(name: str) -> Case:
    graph, box, strategy = MADE[name]()
    return Case(graph, box, plan_graph(graph, box, strategy=strategy, time_limit_s=1.0))


def truthful(case: Case, plan: Plan) -> Plan | None:
    """`plan` with a certificate of its own, so that only what is wrong with its contents is found; None where it can
    have none."""
    arena = dict.fromkeys(plan.arena_nbytes, 0)
    for r in plan.residencies:
        arena[r.tier] = max(arena.get(r.tier, 0), r.offset + r.nbytes)
    moved: dict[str, int] = {}
    for t in plan.transfers:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    peak = {tier: n + plan.workspace_nbytes.get(tier, 0) for tier, n in arena.items()}
    plan = replace(plan, arena_nbytes=arena, capacity_nbytes={})
    try:
        timeline = simulate(plan, case.graph, case.machine)
    except (InputError, KeyError, IndexError, ZeroDivisionError):
        return None  # what is misshapen cannot be simulated
    certificate = replace(
        plan.certificate,
        status="feasible",
        simulated_s=timeline.pass_ns / 1e9,
        first_pass_s=timeline.first_pass_ns / 1e9,
        bound_s=0.0,
        peak_nbytes=peak,
        moved_nbytes=moved,
    )
    return replace(plan, certificate=certificate)


def wrong_stays(plan: Plan, rng: random.Random) -> list[Residency]:
    """The residencies with one of them changed, doubled, cut in two in time or left out."""
    stays = list(plan.residencies)
    at = rng.randrange(len(stays))
    r, other = stays[at], rng.choice(stays)
    shift = rng.choice([-2, -1, 1, 2])
    cut = rng.randrange(r.start, r.end) if r.end - r.start > 1 else r.start
    addresses = [s.offset for s in stays if s.tier == r.tier] + [plan.arena_nbytes[r.tier]]
    offset = rng.choice(addresses)
    second = replace(r, start=cut % len(plan.steps), end=cut % len(plan.steps) + r.end - cut)
    changed = [
        [replace(r, start=r.start + shift)],
        [replace(r, end=r.end + shift)],
        [replace(r, offset=offset)],
        [replace(r, hi=max(r.lo + CELL, r.hi - CELL * rng.randrange(1, 32)))],
        [r, replace(r, offset=offset)],
        [replace(r, end=cut), replace(second, offset=rng.choice([r.offset, offset]))],
        [replace(r, end=cut)],
        [replace(r, tier=other.tier, offset=other.offset)],
        [],
    ]
    return [*stays[:at], *rng.choice(changed), *stays[at + 1 :]]


def wrong_moves(plan: Plan, rng: random.Random) -> list[Transfer]:
    """The transfers with one of them changed, doubled, turned round, put elsewhere or left out."""
    moves = list(plan.transfers)
    at = rng.randrange(len(moves))
    t = moves[at]
    shift = rng.choice([-2, -1, 1, 2])
    rest = [*moves[:at], *moves[at + 1 :]]
    to = rng.randrange(len(moves))
    changed = [
        [replace(t, after=t.after + shift)],
        [replace(t, before=t.before + shift)],
        [replace(t, after=t.after + shift, before=t.before + shift)],
        [replace(t, before=t.after)],
        [replace(t, after=t.before % len(plan.steps), before=t.before % len(plan.steps))],
        [replace(t, hi=max(t.lo + CELL, t.hi - CELL * rng.randrange(1, 32)))],
        [t, replace(t, after=t.after + shift, before=t.before + shift)],
        [t, replace(t, origin=t.target, target=t.origin, after=t.before % len(plan.steps), before=t.before + 1)],
        [replace(t, storage=rng.choice(moves).storage)],
        [],
    ]
    if rng.random() < 0.2:
        return [*rest[:to], t, *rest[to:]]
    return [*moves[:at], *rng.choice(changed), *moves[at + 1 :]]


def mutant(plan: Plan, rng: random.Random) -> Plan:
    """One thing wrong, sometimes two or three."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        what = rng.random()
        if what < 0.45 and plan.residencies:
            plan = replace(plan, residencies=tuple(wrong_stays(plan, rng)))
        elif what < 0.85 and plan.transfers:
            plan = replace(plan, transfers=tuple(wrong_moves(plan, rng)))
        else:
            steps = list(plan.steps)
            a, b = rng.randrange(len(steps)), rng.randrange(len(steps))
            if rng.random() < 0.7:
                steps[a], steps[b] = steps[b], steps[a]
            else:
                steps.insert(b, steps[a])
            plan = replace(plan, steps=tuple(steps))
    return plan


def accepted(case: Case, seed: int, count: int) -> Iterator[tuple[int, Plan]]:
    """Mutants in which the checker finds nothing, with their seeds."""
    for number in range(seed, seed + count):
        plan = truthful(case, mutant(case.plan, random.Random(number)))
        if plan is not None and not check(plan, case.graph, case.machine):
            yield number, plan


@pytest.mark.parametrize("name", MADE)
def test_what_the_checker_accepts_computes_the_same(name: str) -> None:
    case = made(name)
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
    case = made(name)
    wrong = 0
    for seed in range(60):
        plan = truthful(case, mutant(case.plan, random.Random(seed)))
        if plan is None or not check(plan, case.graph, case.machine):
            continue
        try:
            wrong += not same(plan, case.graph, case.machine, random.Random(seed), eager=0.0)
        except (PlanMismatchError, IndexError, ValueError):
            continue
    assert wrong > 5
