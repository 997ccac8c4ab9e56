"""What a transfer waits for in the runtime, where the order of its lane is not enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.errors import PlanMismatchError
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.runtime.addresses import Addresses
from tensorstow.runtime.moves import Moves

from ..graphs import KIB, chain, machine

SIZE = 64 * KIB
GRAPH = chain([SIZE] * 4)
BOX = machine(1 << 20)


def moves(transfers: list[Transfer], offset: int = 0, box: Machine = BOX) -> Moves:
    """w1 may come until instant 2, w2 from then on, into the place of w1 or into another one."""
    steps = tuple(Step(f"op{i}", "cpu", 1000) for i in range(4))
    places = (Residency("w1", "dram", 0, SIZE, 0, 0, 2), Residency("w2", "dram", 0, SIZE, offset, 2, 3))
    nothing = Certificate("feasible", 0, 0, 0, "")
    arena = {"dram": 2 * SIZE}
    plan = Plan("", "", "hand", "inference", "ssd", steps, places, tuple(transfers), {}, arena, {}, nothing)
    return Moves(plan, GRAPH, box, {"dram": Addresses(plan, GRAPH, "dram")})


LOADS = [Transfer("w1", 0, SIZE, "ssd", "dram", 0, 2), Transfer("w2", 0, SIZE, "ssd", "dram", 2, 3)]


def test_of_two_loads_of_one_lane_into_the_same_bytes_the_second_waits_for_the_first() -> None:
    """Threads of a lane run two requests at once: the last one of the first load could come after the second load."""
    assert moves(LOADS).waits == [set(), {("ssd->dram", 0, 0)}]
    assert moves(LOADS, offset=SIZE).waits == [set(), set()]
    with pytest.raises(PlanMismatchError, match="transfer 0 of 'w2' must wait for transfer 1 of 'w1', which stands"):
        moves([LOADS[1], LOADS[0]])


def test_in_a_lane_of_several_links_order_is_enough() -> None:
    """It runs one request at a time (`runtime/lanes`)."""
    shared = replace(BOX, links=tuple(replace(k, channel="bus") for k in BOX.links))
    stored = replace(GRAPH.operator["op0"], outputs=("a0", "w1'"))
    changed = replace(
        GRAPH,
        operators=(stored, *GRAPH.operators[1:]),
        tensors=(*GRAPH.tensors, replace(GRAPH.tensor["w1"], id="w1'")),
    )
    steps = tuple(Step(f"op{i}", "cpu", 1000) for i in range(4))
    places = (Residency("w1", "dram", 0, SIZE, 0, 0, 2), Residency("w2", "dram", 0, SIZE, 0, 2, 3))
    pair = (Transfer("w1", 0, SIZE, "dram", "ssd", 1, 2), LOADS[1])
    nothing = Certificate("feasible", 0, 0, 0, "")
    plan = Plan("", "", "hand", "inference", "ssd", steps, places, pair, {}, {"dram": SIZE}, {}, nothing)
    addresses = {"dram": Addresses(plan, changed, "dram")}
    assert Moves(plan, changed, shared, addresses).waits == [set(), set()]
    assert Moves(plan, changed, BOX, addresses).waits == [set(), {("dram->ssd", 0, 0)}]


def test_a_load_into_a_place_that_never_ends_may_run_across_the_end_of_the_pass() -> None:
    steps = tuple(Step(f"op{i}", "cpu", 1000) for i in range(4))
    for_ever = (Residency("w1", "dram", 0, SIZE, SIZE, 0, 4),)
    nothing = Certificate("feasible", 0, 0, 0, "")
    across = (Transfer("w1", 0, SIZE, "ssd", "dram", 2, 5),)
    plan = Plan("", "", "hand", "inference", "ssd", steps, for_ever, across, {}, {"dram": 2 * SIZE}, {}, nothing)
    assert Moves(plan, GRAPH, BOX, {"dram": Addresses(plan, GRAPH, "dram")}).routes[0].place == SIZE


def test_bytes_that_are_stored_again_in_part_come_back_whole() -> None:
    steps = tuple(Step(f"op{i}", "cpu", 1000) for i in range(4))
    whole, half = 4 * KIB, 2 * KIB
    places = (Residency("a0", "dram", 0, whole, 0, 0, 3), Residency("a0", "dram", 0, whole, SIZE, 3, 4))
    out, back = Transfer("a0", 0, whole, "dram", "ssd", 1, 2), Transfer("a0", 0, whole, "ssd", "dram", 3, 3)
    writes_again = replace(GRAPH.operator["op1"], outputs=("a1", "a0'"))
    graph = replace(
        GRAPH,
        operators=(GRAPH.operators[0], writes_again, *GRAPH.operators[2:]),
        tensors=(*GRAPH.tensors, replace(GRAPH.tensor["a0"], id="a0'")),
    )
    nothing = Certificate("feasible", 0, 0, 0, "")

    def waits(*stores: Transfer) -> set[tuple[str, int, int]]:
        found = (*stores, back)
        plan = Plan("", "", "hand", "inference", "ssd", steps, places, found, {}, {"dram": 2 * SIZE}, {}, nothing)
        return Moves(plan, graph, BOX, {"dram": Addresses(plan, graph, "dram")}).waits[-1]

    again = replace(out, hi=half, after=2, before=3)
    lane = "dram->ssd"
    assert waits(out) == {(lane, 0, 0)}
    assert waits(out, again) == {(lane, 0, 0), (lane, 1, 0)}
    assert waits(replace(out, hi=half), again, replace(out, lo=half)) == {(lane, 1, 0), (lane, 2, 0)}
    with pytest.raises(PlanMismatchError, match=f"of which {half} were stored there before"):
        waits(replace(out, hi=half), again)
