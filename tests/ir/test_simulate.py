"""The simulator against times worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Certificate, Plan, Residency, Step, Transfer
from tensorstow.ir.simulate import DeadlockError, prefilled, simulate

from ..graphs import KIB, chain, machine
from .test_contents import tower

SIZE = 100 * KIB
GRAPH = chain([100 * KIB] * 3, ns=1000)
BOX = machine(1 << 20, bytes_per_s=100 * KIB / 500e-9)  # a weight takes 500 ns


def plan(transfers: list[Transfer], residencies: list[Residency]) -> Plan:
    steps = tuple(Step(f"op{i}", "cpu", 1000) for i in range(3))
    nothing = Certificate("feasible", 0, 0, 0, "")
    return Plan("", "", "hand", "inference", "ssd", steps, tuple(residencies), tuple(transfers), {}, {}, {}, nothing)


def load(weight: int, after: int, before: int) -> Transfer:
    return Transfer(f"w{weight}", 0, 100 * KIB, "ssd", "dram", after, before)


def stay(weight: int, start: int, end: int) -> Residency:
    return Residency(f"w{weight}", "dram", 0, 100 * KIB, 0, start, end)


def test_without_transfers_a_pass_is_its_operators() -> None:
    timeline = simulate(plan([], [stay(i, 0, 3) for i in range(3)]), GRAPH, BOX)
    assert timeline.pass_ns == timeline.compute_ns == 3000
    assert timeline.first_pass_ns == 3000 + 3 * 500
    assert timeline.wait_ns == 0


def test_a_load_that_blocks_adds_its_whole_time() -> None:
    timeline = simulate(plan([load(1, 1, 1)], [stay(1, 1, 2)]), GRAPH, BOX)
    assert timeline.pass_ns == 3500
    assert [s.wait_ns for s in timeline.steps] == [0, 500, 0]
    assert timeline.steps[1].waited_for == 0


def test_a_load_behind_an_operator_costs_nothing() -> None:
    timeline = simulate(plan([load(1, 0, 1)], [stay(1, 0, 2)]), GRAPH, BOX)
    assert timeline.pass_ns == 3000


def contended(share: float) -> Machine:
    """The same box where computing takes `1 + share` times as long beside a transfer."""
    return replace(BOX, links=tuple(replace(k, contention=share) for k in BOX.links))


def test_computing_beside_a_transfer_takes_longer() -> None:
    plan_ = plan([load(1, 0, 1)], [stay(1, 0, 2)])
    timeline = simulate(plan_, GRAPH, contended(0.25))
    # 500 ns beside the load do what takes 400 alone.
    assert [s.end_ns - s.start_ns for s in timeline.steps] == [1100, 1000, 1000]
    assert (timeline.pass_ns, timeline.slowed_ns, timeline.wait_ns, timeline.compute_ns) == (3100, 100, 0, 3000)


def test_a_transfer_that_nothing_computes_beside_slows_nothing() -> None:
    timeline = simulate(plan([load(1, 1, 1)], [stay(1, 1, 2)]), GRAPH, contended(0.25))
    assert (timeline.pass_ns, timeline.slowed_ns) == (3500, 0)


def test_a_transfer_over_the_end_of_the_pass_slows_both_ends() -> None:
    # It begins at the end of step 1 and takes 1500 ns beside computing: 1250 of step 2, then 250 of the next step 0.
    box = contended(0.25)
    slow = replace(box, links=tuple(replace(k, bytes_per_s=k.bytes_per_s / 3) for k in box.links))
    timeline = simulate(plan([load(0, 2, 4)], [stay(0, 2, 5)]), GRAPH, slow)
    assert [s.end_ns - s.start_ns for s in timeline.steps] == [1050, 1000, 1250]
    assert timeline.pass_ns == 3300


def test_loads_of_one_lane_run_one_after_another() -> None:
    loads = [load(0, 1, 1), load(1, 1, 1), load(2, 1, 1)]
    timeline = simulate(plan(loads, [stay(i, 1, 2) for i in range(3)]), GRAPH, BOX)
    assert timeline.pass_ns == 3000 + 1500
    assert timeline.lane_busy_ns == {"ssd->dram": 1500}


def test_a_load_for_the_next_pass_runs_behind_this_one() -> None:
    timeline = simulate(plan([load(0, 2, 3)], [stay(0, 2, 4)]), GRAPH, BOX)
    assert timeline.pass_ns == 3000
    assert timeline.first_pass_ns == 3000 + 500  # what the pass before would have loaded is loaded first


def test_a_link_that_is_too_slow_sets_the_pace() -> None:
    slow = machine(1 << 20, bytes_per_s=100 * KIB / 2000e-9)
    loads = [load(i, i + 1, i + 3) for i in range(2)] + [load(2, 0, 2)]
    loads.sort(key=lambda t: t.before)
    stays = [stay(i, i + 1, i + 4) for i in range(2)] + [stay(2, 0, 3)]
    assert simulate(plan(loads, stays), GRAPH, slow).pass_ns >= 6000


def test_a_circle_of_waits_across_lanes_sets_the_pace_after_many_passes() -> None:
    """A weight goes up through two tiers and down again, each transfer waiting for the one before: 1400 ns. A pass of
    operators takes 1372 ns, and what is loaded ahead hides the difference for thirty passes."""
    four = chain([SIZE] * 4, ns=343)
    ways = ("ssd->dram", "dram->hbm", "hbm->dram", "dram->ssd")
    ends = [way.split("->") for way in ways]
    moves = [Transfer("w1", 0, SIZE, origin, target, i, i + 4) for i, (origin, target) in enumerate(ends)]
    places = tuple(Residency("w1", tier, 0, SIZE, 0, 0, 4) for tier in ("dram", "hbm"))
    steps = tuple(Step(f"op{i}", "gpu", 343) for i in range(4))
    circle = replace(plan([], []), steps=steps, residencies=places, transfers=tuple(moves))
    box = tower(up=SIZE / 200e-9, below=SIZE / 500e-9)
    assert simulate(circle, four, box).pass_ns == 1400
    slower = replace(circle, steps=tuple(replace(s, duration_ns=351) for s in steps))
    assert simulate(slower, four, box).pass_ns == 1404


def test_shared_channels_take_turns() -> None:
    shared = replace(BOX, links=tuple(replace(k, channel="bus") for k in BOX.links))
    transfers = [Transfer("a0", 0, 100 * KIB, "dram", "ssd", 1, 2), load(1, 1, 2)]
    both = plan(transfers, [stay(1, 1, 3)])
    assert simulate(both, GRAPH, BOX).pass_ns == 3000
    assert simulate(both, GRAPH, shared).lane_busy_ns == {"bus": 1000}
    assert simulate(both, GRAPH, shared).pass_ns == 3000
    slower = replace(both, transfers=(*transfers, load(2, 1, 2)))
    assert simulate(slower, GRAPH, shared).pass_ns == 3500


def test_a_reload_waits_for_its_spill() -> None:
    transfers = [Transfer("a0", 0, 4 * KIB, "dram", "ssd", 1, 2), Transfer("a0", 0, 4 * KIB, "ssd", "dram", 1, 2)]
    timeline = simulate(plan(transfers, []), GRAPH, BOX)
    ends = {e.index: (e.start_ns, e.end_ns) for e in timeline.transfers}
    assert ends[1][0] == ends[0][1]


def test_deadlock_is_told() -> None:
    with pytest.raises(DeadlockError, match="step 1 waits for transfer 1"):
        simulate(plan([load(2, 2, 2), load(1, 0, 1)], [stay(2, 2, 3), stay(1, 0, 2)]), GRAPH, BOX)


def test_no_steps_take_no_time() -> None:
    empty = replace(plan([], []), steps=())
    assert simulate(empty, GRAPH, BOX).pass_ns == 0


def test_what_leaves_as_a_pass_begins_is_there_before_the_first_one() -> None:
    """A store at instant 0 of what the last step of the pass before wrote: the first pass runs it, too, and must store
    what lies at home, not whatever memory held."""
    store = Transfer("w0", 0, 100 * KIB, "dram", "ssd", 0, 0)
    last = stay(0, 2, 3)
    given = plan([store, load(0, 2, 2)], [last])
    assert prefilled(given, GRAPH) == (last,)
    assert prefilled(replace(given, transfers=(load(0, 2, 2),)), GRAPH) == ()
