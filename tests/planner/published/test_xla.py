"""Memory space assignment: the interval picker's order, priorities, bandwidth and chunks, by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tensorstow.planner.instance import make_instance
from tensorstow.planner.published.assignment import Assignment, boundedness
from tensorstow.planner.published.intervals import Clock, CopyResource, Ratios, eviction_end, prefetch_starts
from tensorstow.planner.published.xla import reserve
from tensorstow.planner.strategies import Effort

from ...graphs import KIB, chain, machine

W = 100 * KIB  # 102,400 ns at 1 GB/s
EFFORT = Effort(60.0)


def starts(copy_ns: float, most_ns: float = 1e9, earliest: int = 0, end: int = 8) -> list[int]:
    return list(prefetch_starts(Clock([10] * 10), earliest, end, copy_ns, most_ns, Ratios()))


def test_the_preferred_interval_comes_first_then_later_and_earlier_in_turn() -> None:
    # Copy 20: preferred 30, so 5; at least 16, so no later than 6; then earlier ones.
    assert starts(20) == [5, 6, 4, 3, 2, 1, 0]
    assert starts(10) == [6, 7, 5, 4, 3, 2, 1, 0]  # 65 is nearer to 7 or 6: the longer of equals


def test_intervals_are_neither_too_short_nor_too_long() -> None:
    assert starts(20, most_ns=40) == [5, 6, 4]
    assert starts(20, earliest=5) == [5, 6]
    assert starts(200) == []
    assert starts(20, earliest=9) == []


def test_few_of_many_earlier_intervals_are_tried() -> None:
    clock = Clock([1] * 1000)
    tried = list(prefetch_starts(clock, 0, 1000, 20, 1e9, Ratios()))
    assert tried[0] == 970
    assert len(tried) < 150
    assert all(a - b >= 10 for a, b in pairwise(tried[60:]))


def test_evictions_last_longer_with_each_retry() -> None:
    clock = Clock([10] * 10)
    assert eviction_end(clock, 0, 9, 10, Ratios(), 0) == 2
    assert eviction_end(clock, 0, 9, 10, Ratios(), 1) == 5
    assert eviction_end(clock, 0, 3, 10, Ratios(), 1) == 3


def test_bandwidth_is_taken_from_the_earliest_steps_and_given_back() -> None:
    resource = CopyResource([10, 10, 10])
    grants = resource.take(-1, 1, 15)
    assert grants is not None
    assert grants == [(2, 10), (0, 5)]
    assert resource.take(-1, 1, 6) is None
    assert resource.take(0, 2, 15) == [(0, 5), (1, 10)]
    resource.give(grants)
    assert resource.take(-1, 1, 16) is None
    assert resource.take(-1, 1, 15) is not None


def test_priority_is_time_saved_over_the_root_of_the_size() -> None:
    # Operators wait for memory: a weight saves its own load. Operators that compute longer: what memory is short of.
    bound = boundedness(make_instance(chain([W, 4 * W], activation=KIB, ns=1000), machine(1 << 30)))
    sizes = {i.storage: b for i, b in zip(make_instance(chain([W, 4 * W]), machine(1 << 30)).items, bound, strict=True)}
    assert sizes["w0"] == pytest.approx(W / 1e9 / W**0.5)
    assert sizes["w1"] == pytest.approx(4 * W / 1e9 / (4 * W) ** 0.5)
    slow = make_instance(chain([W, 4 * W], activation=KIB, ns=10**6), machine(1 << 30))
    short = {i.storage: b for i, b in zip(slow.items, boundedness(slow), strict=True)}
    assert short["w0"] == pytest.approx(((W + 2 * KIB) / 1e9 - 1e-3) / W**0.5)


def test_prefetches_take_the_bandwidth_in_the_order_of_priority() -> None:
    # Each copy needs two steps' time and prefers three. Six steps have room for three copies: w0 takes the steps 3 and
    # 4 of the pass before, w1 step 5 and step 0; w2 finds one step left and blocks; w3 takes 1 and 2; the rest block.
    instance = make_instance(chain([W] * 6, ns=51_200), machine(1 << 30))
    reserved = reserve(instance, EFFORT)
    run = Assignment(instance, Ratios(), instance.capacity_nbytes, reserved, around=False).run(1)
    assert run[1] is not None
    found = {instance.items[p.stay.item].storage: p.start for p in run[1] if p.stay.loads}
    assert found == {"w0": -3, "w1": -2, "w2": 2, "w3": 0, "w4": 4, "w5": 5}


def test_weights_stay_around_while_a_chunk_is_free_all_the_time() -> None:
    instance = make_instance(chain([W] * 6, ns=51_200), machine(3 * W + 8 * KIB))
    decisions, placed = Assignment(
        instance, Ratios(), instance.capacity_nbytes, reserve(instance, EFFORT), around=True
    ).run(1)
    assert placed is not None
    leaving = {instance.items[i].storage for i, _ in decisions.evicted}
    assert leaving == {"w2", "w3", "w4", "w5"}  # two stay; the others need the third place in turn


def test_a_stay_longer_than_the_limit_is_not_kept() -> None:
    instance = make_instance(chain([W] * 6, ns=51_200), machine(1 << 20))
    short = Ratios(most=1e-3)
    decisions, _ = Assignment(instance, short, instance.capacity_nbytes, reserve(instance, EFFORT), around=True).run(1)
    assert len(decisions.evicted) == 6
