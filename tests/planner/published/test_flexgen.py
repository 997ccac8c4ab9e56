"""FlexGen: the midpoint rule, the cost model's percentages by hand, and one layer of prefetch."""

from __future__ import annotations

import pytest

from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.published.flexgen import FlexGen
from tensorstow.planner.published.flexgen_model import (
    Policy,
    divide,
    evictions,
    homes,
    predicted_s,
    solve_policy,
)
from tensorstow.planner.strategies import Effort

from ...graphs import KIB, chain, machine

W = 64 * KIB


def instance(capacity_nbytes: int, ns: int = 1000) -> Instance:
    return make_instance(chain([W] * 8, ns=ns), machine(capacity_nbytes))


@pytest.mark.parametrize(
    ("streamed", "expected"),
    [
        (0.0, [False, False, False]),
        (0.2, [False, False, False]),  # the middle of the first lies at 0.2, not below it
        (0.5, [True, False, False]),
        (0.61, [True, True, False]),
        (1.0, [True, True, True]),
    ],
)
def test_a_weight_is_streamed_if_its_middle_lies_in_the_share(streamed: float, expected: list[bool]) -> None:
    assert homes([4, 4, 2], streamed) == expected


def test_layers_hold_equal_parts_of_the_weights() -> None:
    layers = divide(instance(1 << 20), 4)
    assert layers.begins == (0, 2, 4, 6)
    assert layers.weights_nbytes == (2 * W,) * 4
    assert layers.made_nbytes == (8 * KIB,) * 4  # what an operator reads and what it writes
    assert layers.compute_s == pytest.approx((2e-6,) * 4)


def test_the_share_at_home_is_what_two_streamed_layers_leave() -> None:
    # wg 8 W + (1 - wg) 2 W + 8 KiB = 5 W + 8 KiB, so wg = 1/2
    one = instance(5 * W + 8 * KIB)
    policy = solve_policy(one, divide(one, 8), one.capacity_nbytes)
    assert policy is not None and policy.overlap
    assert policy.weights == pytest.approx(0.5)
    assert policy.cache == pytest.approx(1.0)


def test_without_room_for_two_layers_nothing_overlaps() -> None:
    # 1.5 W: not two layers. One after another, wg 8 W + (1 - wg) W = 1.5 W, so wg = 1/14
    one = instance(W + W // 2 + 8 * KIB)
    policy = solve_policy(one, divide(one, 8), one.capacity_nbytes)
    assert policy is not None and not policy.overlap
    assert policy.weights == pytest.approx(0.5 / 7)
    assert solve_policy(one, divide(one, 1), one.capacity_nbytes) is None


def test_each_layer_is_split_by_the_same_percentage() -> None:
    one = instance(1 << 20)
    layers = divide(one, 4)
    streamed = {one.items[i].storage for i, _ in evictions(one, layers, Policy(0.5, 1.0, True))}
    assert streamed == {"w0", "w2", "w4", "w6"}
    # Four layers, each max(one weight's load, two operators): 65,536 ns at 1 GB/s beside 2,000 ns.
    assert predicted_s(one, layers, Policy(0.5, 1.0, True)) == pytest.approx(4 * 65_536e-9)
    assert predicted_s(one, layers, Policy(0.5, 1.0, False)) == pytest.approx(4 * 65_536e-9 + 8e-6)


def test_the_cache_leaves_by_its_share_and_hidden_states_stay() -> None:
    one = make_instance(chain([W] * 8, activation=4 * KIB, skip=1), machine(1 << 20))
    layers = divide(one, 4)
    gone = evictions(one, layers, Policy(1.0, 0.0, True))
    assert [one.items[i].storage for i, _ in gone] == ["a0"]  # rests over the layers 1 and 2
    assert layers.held_nbytes == (0, 4 * KIB, 4 * KIB, 0)
    assert not evictions(one, layers, Policy(1.0, 1.0, True))


def test_no_load_begins_before_the_layer_ahead_of_its_own() -> None:
    one = instance(6 * W, ns=20_000)
    plan = FlexGen(layers=4).plan(one, Effort(60.0))
    assert plan.transfers
    for t in plan.transfers:  # layers are two steps each, so this also counts right across the end of a pass
        assert t.after >= 2 * (t.before // 2 - 1)
