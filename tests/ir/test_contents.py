"""Contents by versions, on plans made by hand: chains of tiers, optimizer states, recomputation; wrong ones caught."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.ir.simulate import simulate

SIZE = 4096
UP = "dram->hbm"
IN = "ssd->dram"
DOWN = "hbm->dram"
OUT = "dram->ssd"


def tower(*, up: float = 1e12, below: float = 1e12) -> Machine:
    """Three tiers with links both ways, without latency."""
    tiers = (
        Tier("hbm", TierKind.HBM, 1 << 20),
        Tier("dram", TierKind.DRAM, 1 << 20),
        Tier("ssd", TierKind.SSD, 1 << 40),
    )
    links = (Link("dram", "hbm", up), Link("hbm", "dram", up), Link("ssd", "dram", below), Link("dram", "ssd", below))
    return Machine("tower", tiers, links, (Unit("gpu", "hbm", (("float32", 1e12),), 1e12),))


TOWER = tower()


def graph(
    kinds: dict[str, StorageKind], operators: Iterable[tuple[str, str]], inputs: str = "x", outputs: str = "y"
) -> Graph:
    """Operators 'reads', 'writes' over storages of one letter; a writer of what has no letter before makes it."""
    storages = tuple(Storage(s, SIZE, kind) for s, kind in kinds.items())
    tensors = [Tensor(s, "float32", (SIZE // 4,), s, SIZE) for s in kinds]
    ops: list[Operator] = []
    homed = {s.id for s in storages if s.homed}
    for i, (reads, writes) in enumerate(operators):
        names: list[str] = []
        for s in writes:
            name = f"{s}'{i}" if s in homed else s
            tensors += [Tensor(name, "float32", (SIZE // 4,), s, SIZE)] if s in homed else []
            names.append(name)
        ops.append(Operator(f"op{i}", "Any", tuple(reads), tuple(names), measured_ns=1000))
    return Graph("hand", storages, tuple(tensors), tuple(ops), tuple(inputs), tuple(outputs))


def plan(g: Graph, residencies: list[Residency], transfers: list[Transfer], order: list[int] | None = None) -> Plan:
    """A plan with a certificate that tells the truth, so that only what is wrong with its contents is found."""
    calls = [g.operators[i] for i in (order if order is not None else range(len(g.operators)))]
    arena: dict[str, int] = {}
    for r in residencies:
        arena[r.tier] = max(arena.get(r.tier, 0), r.offset + r.nbytes)
    moved: dict[str, int] = {}
    for t in transfers:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    bare = Plan(
        graph=digest(g),
        machine=digest(TOWER),
        strategy="hand",
        mode="inference",
        home_tier="ssd",
        steps=tuple(Step(op.id, "gpu", 1000) for op in calls),
        residencies=tuple(residencies),
        transfers=tuple(transfers),
        capacity_nbytes={"hbm": 1 << 20, "dram": 1 << 20},
        arena_nbytes=arena,
        workspace_nbytes={},
        certificate=Certificate("feasible", 0.0, 0.0, 0.0, "", arena, moved),
    )
    timeline = simulate(bare, g, TOWER)
    seconds = {"simulated_s": timeline.pass_ns / 1e9, "first_pass_s": timeline.first_pass_ns / 1e9}
    return replace(bare, certificate=replace(bare.certificate, **seconds))


def said(p: Plan, g: Graph) -> list[tuple[str, str]]:
    return [(v.kind, v.message) for v in check(p, g, TOWER)]


def stay(storage: str, tier: str, slot: int, start: int, end: int) -> Residency:
    return Residency(storage, tier, 0, SIZE, slot * SIZE, start, end)


def move(storage: str, way: str, after: int, before: int) -> Transfer:
    origin, target = way.split("->")
    return Transfer(storage, 0, SIZE, origin, target, after, before)


# A weight w read at step 2 of 4; x -> a -> b -> c -> y beside it.
WEIGHT = graph(
    {
        "x": StorageKind.INPUT,
        "w": StorageKind.WEIGHT,
        "a": StorageKind.ACTIVATION,
        "b": StorageKind.ACTIVATION,
        "c": StorageKind.ACTIVATION,
        "y": StorageKind.OUTPUT,
    },
    [("x", "a"), ("a", "b"), ("bw", "c"), ("c", "y")],
)
ACTIVATIONS = [
    stay("x", "hbm", 0, 0, 1),
    stay("a", "hbm", 1, 0, 2),
    stay("b", "hbm", 2, 1, 3),
    stay("c", "hbm", 3, 2, 4),
    stay("y", "hbm", 4, 3, 4),
]


def with_weight(residencies: list[Residency], transfers: list[Transfer]) -> Plan:
    return plan(WEIGHT, [*ACTIVATIONS, *residencies], transfers)


def test_a_weight_staged_through_the_middle() -> None:
    places = [stay("w", "dram", 0, 0, 2), stay("w", "hbm", 5, 1, 3)]
    assert said(with_weight(places, [move("w", IN, 0, 1), move("w", UP, 1, 2)]), WEIGHT) == []
    assert said(with_weight(places, [move("w", IN, 1, 2), move("w", UP, 1, 2)]), WEIGHT) == []  # one behind the other


def test_a_weight_that_rests_in_the_middle_is_there_before_the_first_pass() -> None:
    places = [stay("w", "dram", 0, 0, 4), stay("w", "hbm", 5, 1, 3)]
    assert said(with_weight(places, [move("w", UP, 1, 2)]), WEIGHT) == []


def test_staging_that_wraps_round_the_pass() -> None:
    places = [stay("w", "dram", 0, 3, 5), stay("w", "hbm", 5, 0, 3)]
    right = with_weight(places, [move("w", IN, 3, 5), move("w", UP, 0, 1)])
    assert said(right, WEIGHT) == []
    both = [stay("w", "dram", 0, 3, 6), stay("w", "hbm", 5, 3, 7)]  # the load wraps, too
    assert said(with_weight(both, [move("w", IN, 3, 4), move("w", UP, 3, 6)]), WEIGHT) == []


def test_a_load_out_of_a_place_that_nothing_fills() -> None:
    places = [stay("w", "dram", 0, 0, 2), stay("w", "hbm", 5, 1, 3)]
    found = said(with_weight(places, [move("w", UP, 1, 2)]), WEIGHT)
    assert ("no-source", "'w' leaves 'dram' at 1, where nothing put it") in found
    late = said(
        with_weight([stay("w", "dram", 0, 0, 3), places[1]], [move("w", UP, 1, 2), move("w", IN, 1, 2)]), WEIGHT
    )
    assert ("no-source", "'w' leaves 'dram' at 1, where nothing put it") in late


def test_a_load_that_outlives_its_source_and_a_fill_without_a_place() -> None:
    short = [stay("w", "dram", 0, 0, 1), stay("w", "hbm", 5, 1, 3)]
    found = said(with_weight(short, [move("w", IN, 0, 1), move("w", UP, 1, 2)]), WEIGHT)
    assert ("no-source", "transfer of 'w' in [1, 2) outlives it in 'dram'") in found
    found = said(with_weight([short[1]], [move("w", IN, 0, 1), move("w", UP, 1, 2)]), WEIGHT)
    assert ("no-place", "transfer of 'w' in [0, 1) has no place in 'dram'") in found


def test_two_copies_in_the_middle_at_once() -> None:
    places = [stay("w", "dram", 0, 0, 2), stay("w", "dram", 1, 1, 3), stay("w", "hbm", 5, 1, 3)]
    moves = [move("w", IN, 0, 1), move("w", IN, 1, 2), move("w", UP, 1, 2)]
    assert "twice" in {kind for kind, _ in said(with_weight(places, moves), WEIGHT)}


# An optimizer state m that step 1 of 4 updates in place, and that step 3 reads.
STATE = graph(
    {
        "x": StorageKind.INPUT,
        "m": StorageKind.OPTIMIZER_STATE,
        "a": StorageKind.ACTIVATION,
        "b": StorageKind.ACTIVATION,
        "c": StorageKind.ACTIVATION,
        "y": StorageKind.OUTPUT,
    },
    [("x", "a"), ("am", "bm"), ("b", "c"), ("cm", "y")],
)


def with_state(residencies: list[Residency], transfers: list[Transfer]) -> Plan:
    return plan(STATE, [*ACTIVATIONS, *residencies], transfers)


def test_a_state_that_never_leaves_needs_no_store() -> None:
    assert said(with_state([stay("m", "hbm", 5, 0, 4)], []), STATE) == []


def test_a_load_after_a_write_that_was_not_stored() -> None:
    places = [stay("m", "hbm", 5, 0, 2), stay("m", "hbm", 6, 2, 4), stay("m", "dram", 0, 0, 4)]
    moves = [move("m", UP, 0, 1), move("m", UP, 2, 3)]
    found = said(with_state(places, moves), STATE)
    assert ("no-source", "'m' leaves 'dram' at 2, where nothing put it") in found
    assert ("unfilled", "step 3 reads 'm' [0, 4096), which nothing fills in time") in found
    assert ("unfilled", "step 1 reads 'm' [0, 4096), which nothing fills in time") in found  # of the next pass
    # A store that stands behind the load in the plan, and may begin no earlier, comes too late for it.
    places = [stay("m", "hbm", 5, 0, 3), stay("m", "hbm", 6, 2, 4), stay("m", "dram", 0, 0, 4)]
    found = said(with_state(places, [*moves, move("m", DOWN, 2, 3)]), STATE)
    assert ("no-source", "'m' leaves 'dram' at 2, where its content is 1 writes old") in found


def test_a_state_that_rests_in_the_middle_and_is_stored_there_after_each_write() -> None:
    places = [stay("m", "hbm", 5, 0, 3), stay("m", "hbm", 6, 3, 4), stay("m", "dram", 0, 0, 4)]
    moves = [move("m", DOWN, 2, 3), move("m", UP, 0, 1), move("m", UP, 3, 3)]
    assert said(with_state(places, moves), STATE) == []
    without = [moves[1], moves[2]]
    found = said(with_state(places, without), STATE)
    assert ("no-source", "'m' leaves 'dram' at 0, where nothing put it") in found


def test_a_state_that_goes_down_to_its_home_and_comes_back() -> None:
    places = [stay("m", "hbm", 5, 1, 3), stay("m", "hbm", 6, 3, 4)]
    places += [stay("m", "dram", 0, 2, 4), stay("m", "dram", 1, 0, 2)]
    moves = [move("m", DOWN, 2, 3), move("m", OUT, 3, 4), move("m", IN, 0, 1), move("m", UP, 1, 1), move("m", UP, 3, 3)]
    assert said(with_state(places, moves), STATE) == []
    # Without the store to the home tier the next pass would find the first content there.
    found = said(with_state(places, [m for m in moves if m.link != OUT]), STATE)
    assert ("no-source", "'m' leaves 'ssd' at 0, where nothing put it") in found


def test_a_store_that_runs_while_the_storage_is_written() -> None:
    places = [stay("m", "hbm", 5, 0, 4), stay("m", "dram", 0, 0, 4)]
    found = said(with_state(places, [move("m", DOWN, 1, 3)]), STATE)
    assert ("early", "transfer of 'm' in [1, 3) runs while step 1 writes it in 'hbm'") in found


# An activation a that steps 1 and 3 read, made by op0: spilled through two tiers, or made anew before step 3.
SPILL = graph(
    {
        "x": StorageKind.INPUT,
        "a": StorageKind.ACTIVATION,
        "b": StorageKind.ACTIVATION,
        "c": StorageKind.ACTIVATION,
        "y": StorageKind.OUTPUT,
    },
    [("x", "a"), ("a", "b"), ("b", "c"), ("ca", "y")],
)
BESIDE = [stay("x", "hbm", 0, 0, 1), stay("b", "hbm", 1, 1, 3), stay("c", "hbm", 2, 2, 4), stay("y", "hbm", 3, 3, 4)]


def test_a_spill_that_goes_on_to_the_bottom() -> None:
    places = [
        stay("a", "hbm", 4, 0, 3),
        stay("a", "dram", 0, 2, 3),
        stay("a", "ssd", 0, 2, 4),
        stay("a", "hbm", 5, 3, 4),
    ]
    moves = [move("a", DOWN, 2, 3), move("a", OUT, 2, 3), move("a", IN, 3, 3), move("a", UP, 3, 3)]
    back = stay("a", "dram", 1, 3, 4)
    assert said(plan(SPILL, [*BESIDE, *places, back], moves), SPILL) == []
    lost = said(plan(SPILL, [*BESIDE, *places, back], [m for m in moves if m.link != OUT]), SPILL)
    assert ("no-source", "'a' leaves 'ssd' at 3, where nothing put it") in lost


def test_a_spill_must_not_reach_into_the_next_pass() -> None:
    places = [stay("a", "hbm", 4, 0, 4), stay("a", "dram", 0, 3, 6)]
    found = said(plan(SPILL, [*BESIDE, *places], [move("a", DOWN, 3, 5)]), SPILL)
    assert "interval" in {kind for kind, _ in found}


def test_an_operator_called_twice_makes_its_result_anew() -> None:
    places = [
        stay("x", "hbm", 0, 0, 4),
        stay("b", "hbm", 1, 1, 3),
        stay("c", "hbm", 2, 2, 5),
        stay("y", "hbm", 3, 4, 5),
    ]
    twice = [stay("a", "hbm", 4, 0, 2), stay("a", "hbm", 5, 3, 5)]
    assert said(plan(SPILL, [*places, *twice], [], order=[0, 1, 2, 0, 3]), SPILL) == []
    # Its input must still be there for the second call.
    gone = [stay("x", "hbm", 0, 0, 2), *places[1:]]
    found = said(plan(SPILL, [*gone, *twice], [], order=[0, 1, 2, 0, 3]), SPILL)
    assert ("absent", "step 3 needs bytes [0, 4096) of 'x', not in 'hbm'") in found


def test_what_several_operators_write_cannot_be_made_anew() -> None:
    twice = plan(STATE, [*ACTIVATIONS, stay("m", "hbm", 5, 0, 5)], [], order=[0, 1, 1, 2, 3])
    found = [text for kind, text in said(twice, STATE) if kind == "recompute"]
    assert found == ["'op1' is called twice, but 'm' cannot be made anew by it"]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_spill_of_the_first_result_is_old_once_it_was_made_anew(wrong: int) -> None:
    """Order op0 op1 op0 op2 op3: a is made at steps 0 and 2, read at steps 1 and 4; a store between is of the first."""
    places = [
        stay("x", "hbm", 0, 0, 3),
        stay("b", "hbm", 1, 1, 4),
        stay("c", "hbm", 2, 3, 5),
        stay("y", "hbm", 3, 4, 5),
    ]
    own = [stay("a", "hbm", 4, 0, 4), stay("a", "dram", 0, 1, 5), stay("a", "hbm", 5, 4, 5)]
    store = move("a", DOWN, 1, 2) if wrong else move("a", DOWN, 3, 4)
    found = said(plan(SPILL, [*places, *own], [store, move("a", UP, 4, 4)], order=[0, 1, 0, 2, 3]), SPILL)
    assert bool(found) == bool(wrong)
    if wrong:
        assert ("no-source", "'a' leaves 'dram' at 4, where its content is 1 writes old") in found
