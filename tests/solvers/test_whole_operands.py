"""Loads that weights in one piece make compulsory: against every way to hold them, address by address."""

from __future__ import annotations

import random
from itertools import product

import pytest

from tensorstow.solvers.bounds import Flow, Value, order_free_traffic, whole_operand_traffic


def chain(weights: list[int], beside: list[int]) -> Flow:
    """Operator i reads weight i (nothing where it has no bytes) and touches `beside`[i] bytes that it makes itself."""
    count = len(weights)
    values = [Value(n, frozenset(), frozenset({i}), below=True) for i, n in enumerate(weights) if n]
    values += [Value(n, frozenset({i}), frozenset({i})) for i, n in enumerate(beside)]
    return Flow(tuple((i + 1,) if i + 1 < count else () for i in range(count)), tuple(values))


def fewest_loaded(weights: list[int], beside: list[int], capacity: int) -> int | None:
    """By trying all owners of all addresses: of whom a byte stays there for good. None where nothing fits."""
    best: int | None = None
    for owners in product(range(-1, len(weights)), repeat=capacity):
        if all(_has_place(owners, i, n, beside[i]) for i, n in enumerate(weights)):
            loaded = sum(weights) - sum(o >= 0 for o in owners)
            best = loaded if best is None else min(best, loaded)
    return best


def _has_place(owners: tuple[int, ...], weight: int, nbytes: int, beside: int) -> bool:
    """Whether all of a weight can lie in one piece over its own addresses and free ones, and what is beside it in what
    then is left."""
    own = {a for a, o in enumerate(owners) if o == weight}
    for base in range(len(owners) - nbytes + 1):
        place = range(base, base + nbytes)
        if own <= set(place) and all(owners[a] in (-1, weight) for a in place):
            return sum(o == -1 for a, o in enumerate(owners) if a not in place) >= beside
    return False


@pytest.mark.parametrize("seed", range(24))
def test_no_way_to_hold_weights_loads_less(seed: int) -> None:
    rng = random.Random(seed)
    weights, beside = [rng.randint(0, 4) for _ in range(3)], [rng.randint(0, 2) for _ in range(3)]
    capacity = rng.randint(max(w + b for w, b in zip(weights, beside, strict=True)), 6)
    fewest = fewest_loaded(weights, beside, capacity)
    assert fewest is not None
    assert whole_operand_traffic(chain(weights, beside), capacity).loaded <= fewest


def test_it_is_reached_where_neighbours_share_what_is_left() -> None:
    """Three weights of three bytes: of eight addresses one is shared by two of them, of seven two are."""
    found = {c: whole_operand_traffic(chain([3, 3, 3], [0, 0, 0]), c).loaded for c in (9, 8, 7)}
    assert found == {9: 0, 8: 2, 7: 4}
    assert found == {c: fewest_loaded([3, 3, 3], [0, 0, 0], c) for c in (8, 7)} | {9: 0}


def test_a_weight_that_streams_needs_room_for_all_of_itself() -> None:
    """Ten weights of 10 and room for 95: the five bytes that are missing are missing twice, as two share a place; of
    50 that are missing, whole weights come through one place of theirs and of the byte beside them."""
    flow = chain([10] * 10, [1] * 10)
    assert order_free_traffic(flow, 95).loaded == 6
    assert whole_operand_traffic(flow, 95).loaded == 10
    assert order_free_traffic(flow, 50).loaded == 51
    assert whole_operand_traffic(flow, 50).loaded == 61
    assert whole_operand_traffic(flow, 101).loaded == 0


def test_what_is_written_may_not_stay_as_it_is() -> None:
    """A weight that a step updates is no byte that stays; it takes room beside the others."""
    values = (
        Value(10, frozenset(), frozenset({0}), below=True),
        Value(10, frozenset({0}), frozenset({0}), below=True),
    )
    flow = Flow(((),), values)
    assert whole_operand_traffic(flow, 20).loaded == 0
    assert whole_operand_traffic(flow, 19).loaded == 1
