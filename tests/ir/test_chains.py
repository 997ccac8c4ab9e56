"""Transfers that wait for one another, with times worked out by hand: chains of tiers, places that must be free."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.chains import Wait, occurrence, transfer_waits
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.ir.simulate import DeadlockError, simulate

from ..graphs import KIB, chain
from .test_contents import tower

SIZE = 100 * KIB
GRAPH = chain([SIZE] * 4, ns=1000)
BOX = tower(up=SIZE / 200e-9, below=SIZE / 500e-9)  # a weight takes 200 ns up, 500 ns from the bottom


def plan(transfers: list[Transfer], residencies: list[Residency]) -> Plan:
    steps = tuple(Step(f"op{i}", "gpu", 1000) for i in range(4))
    nothing = Certificate("feasible", 0, 0, 0, "")
    return Plan("", "", "hand", "inference", "ssd", steps, tuple(residencies), tuple(transfers), {}, {}, {}, nothing)


def move(way: str, after: int, before: int, lo: int = 0, hi: int = SIZE, storage: str = "w1") -> Transfer:
    origin, target = way.split("->")
    return Transfer(storage, lo, hi, origin, target, after, before)


def stay(tier: str, start: int, end: int, offset: int = 0, storage: str = "w1") -> Residency:
    return Residency(storage, tier, 0, SIZE, offset, start, end)


def ends(p: Plan) -> dict[int, tuple[int, int]]:
    return {e.index: (e.start_ns, e.end_ns) for e in simulate(p, GRAPH, BOX).transfers}


def test_a_load_waits_for_the_fill_of_its_source_though_both_may_begin_at_once() -> None:
    staged = plan([move("ssd->dram", 1, 2), move("dram->hbm", 1, 2)], [stay("dram", 1, 2), stay("hbm", 1, 3)])
    assert transfer_waits(staged, GRAPH) == ((), (Wait(0, 0),))
    assert ends(staged) == {0: (1000, 1500), 1: (1500, 1700)}
    assert simulate(staged, GRAPH, BOX).pass_ns == 4000
    blocking = plan([move("ssd->dram", 2, 2), move("dram->hbm", 2, 2)], [stay("dram", 2, 3), stay("hbm", 2, 3)])
    assert simulate(blocking, GRAPH, BOX).pass_ns == 4700


def test_the_order_in_the_plan_decides_between_transfers_that_begin_at_one_instant() -> None:
    staged = plan([move("dram->hbm", 1, 2), move("ssd->dram", 1, 2)], [stay("dram", 1, 2), stay("hbm", 1, 3)])
    # The load stands first: what it moves is what the fill of the pass before brought, which the stay does not hold.
    assert transfer_waits(staged, GRAPH)[0] == ()


def test_parts_wait_for_their_own_bytes_only() -> None:
    half = SIZE // 2
    moves = [move("ssd->dram", 1, 2, 0, half), move("ssd->dram", 1, 2, half, SIZE)]
    moves += [move("dram->hbm", 1, 2, 0, half), move("dram->hbm", 1, 2, half, SIZE)]
    staged = plan(moves, [stay("dram", 1, 2), stay("hbm", 1, 3)])
    assert transfer_waits(staged, GRAPH)[2:] == ((Wait(0, 0),), (Wait(1, 0),))
    assert ends(staged) == {0: (1000, 1250), 1: (1250, 1500), 2: (1250, 1350), 3: (1500, 1600)}


def test_a_stay_that_wraps_is_filled_in_the_pass_before() -> None:
    wraps = plan([move("ssd->dram", 3, 5), move("dram->hbm", 0, 1)], [stay("dram", 3, 5), stay("hbm", 0, 2)])
    assert transfer_waits(wraps, GRAPH)[1] == (Wait(0, 1),)
    timeline = simulate(wraps, GRAPH, BOX)
    assert timeline.pass_ns == 4000
    assert timeline.first_pass_ns == 4000 + 500  # what wraps is filled before the first pass


def test_what_rests_in_the_middle_for_ever_is_filled_once() -> None:
    rests = plan([move("dram->hbm", 1, 2)], [stay("dram", 0, 4), stay("hbm", 1, 3)])
    assert transfer_waits(rests, GRAPH) == ((),)
    assert simulate(rests, GRAPH, BOX).first_pass_ns == 4000 + 500


def test_a_fill_waits_for_the_load_that_leaves_its_place_at_that_very_instant() -> None:
    first = [move("dram->hbm", 0, 2, storage="w1"), move("ssd->dram", 2, 3, storage="w2")]
    places = [stay("dram", 0, 2, storage="w1"), stay("dram", 2, 3, storage="w2")]
    assert transfer_waits(plan(first, places), GRAPH)[1] == (Wait(0, 0),)
    apart = [places[0], replace(places[1], offset=SIZE)]
    assert transfer_waits(plan(first, apart), GRAPH)[1] == ()
    later = [first[0], move("ssd->dram", 3, 4, storage="w2")]
    assert transfer_waits(plan(later, [places[0], stay("dram", 3, 4, storage="w2")]), GRAPH)[1] == ()


def test_a_fill_waits_for_one_that_nobody_needs_and_that_may_come_late_to_the_same_bytes() -> None:
    useless = [move("ssd->dram", 0, 2, storage="w1"), move("ssd->dram", 2, 3, storage="w2")]
    places = [stay("dram", 0, 2, storage="w1"), stay("dram", 2, 3, storage="w2")]
    assert transfer_waits(plan(useless, places), GRAPH) == ((), (Wait(0, 0),))
    needed = [places[0], stay("dram", 2, 3, storage="w2", offset=SIZE)]
    assert transfer_waits(plan(useless, needed), GRAPH) == ((), ())


def test_a_load_into_a_place_that_never_ends_does_not_wait_for_itself() -> None:
    for_ever = plan([move("ssd->dram", 1, 1)], [stay("dram", 1, 5)])
    assert transfer_waits(for_ever, GRAPH) == ((),)
    assert simulate(for_ever, GRAPH, BOX).pass_ns == 4500


def test_a_load_waits_for_what_came_into_its_source_and_not_into_the_place_behind_it() -> None:
    """Two places of w1 meet at instant 2: a load at that instant is out of the first, filled by the first fill."""
    moves = [move("ssd->dram", 0, 2), move("ssd->dram", 2, 3), move("dram->hbm", 2, 2)]
    places = [stay("dram", 0, 2), stay("dram", 2, 4, offset=SIZE), stay("hbm", 2, 4)]
    assert transfer_waits(plan(moves, places), GRAPH)[2] == (Wait(0, 0),)


def test_transfers_that_wait_for_each_other_are_a_deadlock() -> None:
    """The fill of w1 stands in its lane behind one that may start only after the step that waits for w1."""
    moves = [
        move("ssd->dram", 2, 3, storage="w3"),
        move("ssd->dram", 0, 1, storage="w1"),
        move("dram->hbm", 0, 1, storage="w1"),
    ]
    places = [stay("dram", 2, 3, storage="w3"), stay("dram", 0, 1), stay("hbm", 0, 2)]
    with pytest.raises(DeadlockError, match="step 1 waits for transfer 1 of 'w1' over ssd->dram"):
        simulate(plan(moves, places), GRAPH, BOX)


@pytest.mark.parametrize(("instant", "start"), [(3, 3), (5, 3), (6, None), (7, 7), (0, -1), (1, -1), (2, None)])
def test_turns_of_a_stay_that_wraps(instant: int, start: int | None) -> None:
    assert occurrence(stay("dram", 3, 5), instant, 4, homed=True) == start


def test_what_is_made_in_a_pass_has_one_turn() -> None:
    r = stay("dram", 1, 3)
    assert [occurrence(r, t, 4, homed=False) for t in (0, 1, 3, 5)] == [None, 1, 1, None]
