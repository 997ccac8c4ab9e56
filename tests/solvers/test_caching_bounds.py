"""Bounds of caching and of waiting, and the placement of objects, against replays and enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tensorstow.solvers.caching.bounds import load_bound
from tensorstow.solvers.caching.counted import DECAYED, LRU, replay_counted
from tensorstow.solvers.caching.knapsack import Placement, place
from tensorstow.solvers.caching.offline import replay_belady
from tensorstow.solvers.caching.problem import NONE, Requests
from tensorstow.solvers.caching.recall import Recall
from tensorstow.solvers.caching.stall import Pace, stall_known, stall_on_demand
from tensorstow.solvers.caching.stall_bound import Links, stall_bound
from tensorstow.solvers.caching.stall_foreseen import Ahead, stall_foreseen
from tensorstow.solvers.result import Status

from .caching_cases import phrases, random_requests, turning


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_program_is_belady_for_equal_sizes(seed: int) -> None:
    requests = random_requests(seed, rounds=50)
    for capacity in (3, 5, 8):
        bound = load_bound(requests, capacity)
        assert bound.whole
        assert bound.cost == pytest.approx(replay_belady(requests, capacity).loaded.sum(), abs=1e-5)  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize("seed", range(3))
def test_windows_and_resets_keep_it_a_bound(seed: int) -> None:
    plain = random_requests(seed, rounds=90)
    begins = np.zeros(90, np.bool_)
    begins[[0, 31, 60]] = True
    requests = Requests(plain.ids, plain.sizes, None, begins)
    whole, cut = load_bound(requests, 5), load_bound(requests, 5, window=12)
    assert cut.windows > 1
    assert cut.cost <= whole.cost + 1e-6
    assert whole.cost == pytest.approx(replay_belady(requests, 5).loaded.sum(), abs=1e-5)  # pyright: ignore[reportUnknownMemberType]


def cheapest(requests: Requests, capacity: int, costs: list[int]) -> int:
    """The least cost of loads of one cache, over all evictions: dynamic programming over what is held."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for t in range(requests.rounds):
        wanted = frozenset(int(o) for o in requests.ids[t, 0] if o != NONE)
        after: dict[frozenset[int], int] = {}
        for held, cost in states.items():
            paid = cost + sum(costs[o] for o in wanted - held)
            rest = sorted(held - wanted)
            for keep in product((False, True), repeat=len(rest)):
                kept = wanted | {o for o, k in zip(rest, keep, strict=True) if k}
                if sum(int(requests.sizes[0, o]) for o in kept) <= capacity:
                    after[kept] = min(paid, after.get(kept, paid))
        states = after
    return min(states.values())


@pytest.mark.parametrize("seed", range(3))
def test_weighted_caching_is_exact_for_equal_sizes_and_a_bound_otherwise(seed: int) -> None:
    requests = random_requests(seed, rounds=14, caches=1, width=2, objects=5)
    costs = [1, 9, 3, 5, 2]
    found = load_bound(requests, 3, costs=np.array([costs]))
    assert found.cost == pytest.approx(cheapest(requests, 3, costs), abs=1e-5)  # pyright: ignore[reportUnknownMemberType]
    sized = Requests(requests.ids, np.array([[2, 5, 3, 4, 1]], np.int64))
    sizes = [2, 5, 3, 4, 1]
    best = cheapest(sized, 10, sizes)
    assert 0.7 * best <= load_bound(sized, 10).cost <= best + 1e-6
    assert replay_belady(sized, 10).loaded.sum() >= best


def test_no_schedule_waits_less_than_the_bound() -> None:
    requests = phrases(60, 3)
    for capacity, load, compute in ((3, 50.0, 20.0), (6, 30.0, 20.0), (10, 100.0, 5.0)):
        pace = Pace(load, compute)
        bound = stall_bound(requests, capacity, Links(load), compute)
        known = stall_known(requests, capacity, pace).stall_ns
        assert bound.status is Status.OPTIMAL
        assert 0 < bound.stall_ns <= known * (1 + 1e-9)
        assert known <= stall_on_demand(requests, capacity, pace).stall_ns
        cut = stall_bound(requests, capacity, Links(load), compute, window=15)
        assert cut.stall_ns <= bound.stall_ns * (1 + 1e-6)


def test_known_routes_reach_the_bound_nearly() -> None:
    requests = phrases(150, 5)
    pace = Pace(40.0, 20.0)
    bound = stall_bound(requests, 5, Links(40.0), 20.0, window=150).stall_ns
    assert stall_known(requests, 5, pace).stall_ns <= 1.15 * bound


def test_a_wait_by_hand() -> None:
    """Two objects take turns in a cache of one: the first load is waited for, each later one but for the compute."""
    ids = np.array([[[0]], [[1]], [[0]]], np.int32)
    requests = Requests(ids, np.ones((1, 2), np.int64))
    assert stall_on_demand(requests, 1, Pace(10.0, 4.0)).stall_ns == 30
    # One object's place is taken while it is in use: nothing can be loaded ahead.
    assert stall_known(requests, 1, Pace(10.0, 4.0)).stall_ns == 30
    assert stall_known(requests, 2, Pace(10.0, 4.0)).stall_ns == 10 + 6
    assert stall_bound(requests, 2, Links(10.0), 4.0).stall_ns == pytest.approx(16, rel=1e-4)  # pyright: ignore[reportUnknownMemberType]


def test_two_links_wait_longer_than_one() -> None:
    requests = phrases(60, 3)
    one = stall_bound(requests, 4, Links(30.0), 20.0).stall_ns
    wide = stall_bound(requests, 4, Links(30.0, 1.0, 10_000), 20.0).stall_ns
    slow = stall_bound(requests, 4, Links(30.0, 90.0, 12), 20.0).stall_ns
    roomy = stall_bound(requests, 4, Links(30.0, 90.0, 40), 20.0).stall_ns
    assert wide == pytest.approx(one, rel=0.05)  # pyright: ignore[reportUnknownMemberType]
    assert slow > roomy > one


def test_what_has_passed_up_lies_below_no_more() -> None:
    """A place for one between the links, and nine to bring in while two events compute: each passes through as soon as
    it is there, so only the first is waited for."""
    ids = np.full((3, 1, 9), NONE, np.int32)
    ids[:2, 0, 0] = 0
    ids[2, 0] = np.arange(1, 10)
    requests = Requests(ids, np.ones((1, 10), np.int64))
    bound = stall_bound(requests, 10, Links(1.0, 1.0, 1), 5.0)
    assert bound.stall_ns == pytest.approx(1, rel=1e-4)  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.parametrize("scale", [1, 12_582_912])
def test_bytes_are_bounded_as_objects_are(scale: int) -> None:
    plain = phrases(60, 3)
    requests = Requests(plain.ids, plain.sizes * scale)
    for links in (Links(30.0 / scale), Links(30.0 / scale, 90.0 / scale, 12 * scale)):
        wanted = stall_bound(plain, 4, Links(30.0, links.below_ns and 90.0, 12), 20.0).stall_ns
        assert wanted > 0
        found = stall_bound(requests, 4 * scale, links, 20.0).stall_ns
        assert found == pytest.approx(wanted, rel=1e-3)  # pyright: ignore[reportUnknownMemberType]


def test_forecasts_shorten_the_wait() -> None:
    requests = phrases(2500, 6)
    pace = Pace(40.0, 20.0, warm_rounds=500)
    lru = stall_on_demand(requests, 5, pace)
    evictions = stall_foreseen(requests, 5, pace, ahead=Ahead(depth=0))
    ahead = stall_foreseen(requests, 5, pace)
    assert ahead.stall_ns < evictions.stall_ns < lru.stall_ns
    assert evictions.ahead == 0 < ahead.ahead


@pytest.mark.parametrize("depth", [0, 24])
def test_waits_by_forecast_are_not_much_longer_than_by_recency(depth: int) -> None:
    """Where forecasts are turned upside down, or loads ahead are of what never comes, LRU takes over."""
    requests, pace, ahead = turning("drift"), Pace(40.0, 20.0), Ahead(depth=depth, likely=0.0, margin=-1.0)
    lru = stall_on_demand(requests, 6, pace).stall_ns
    wrong = stall_foreseen(requests, 6, pace, Recall(step=-0.05), ahead).stall_ns
    bare = stall_foreseen(requests, 6, pace, Recall(step=-0.05, slack=1e9), ahead).stall_ns
    assert bare > 1.2 * lru
    assert wrong <= 1.02 * lru + 2 * 2 * 6 * 40.0


def test_decayed_loads_at_least_the_bound() -> None:
    requests = random_requests(8, rounds=200)
    bound = load_bound(requests, 5).cost
    for policy in (LRU, DECAYED):
        assert replay_counted(requests, 5, policy).loaded.sum() >= bound - 1e-6


def random_placement(seed: int, items: int) -> Placement:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, items)
    nbytes = np.zeros((items, 4, 3), np.int64)
    for option, tier in enumerate((0, 1, 1, 2)):
        nbytes[:, option, tier] = sizes
    costs = np.sort(rng.random((items, 4)) * 100, axis=1)
    costs[rng.random(items) < 0.2, 2] = np.inf
    return Placement(costs, nbytes, np.array([sizes.sum() // 3, sizes.sum() // 3, sizes.sum()], np.int64))


@pytest.mark.parametrize("seed", range(8))
def test_placements_fit_and_bounds_hold(seed: int) -> None:
    problem = random_placement(seed, 6)
    found = place(problem)
    choices = (np.array(c) for c in product(range(4), repeat=6))
    best = min(problem.cost(c) for c in choices if np.all(problem.used(c) <= problem.capacity))
    assert found.solution is not None and found.objective is not None and found.bound is not None
    assert np.all(problem.used(found.solution) <= problem.capacity)
    assert found.bound <= best + 1e-9 <= found.objective + 2e-9
    assert found.objective <= 1.25 * best


@pytest.mark.parametrize("seed", range(30))
def test_tight_placements_are_found_or_proven_impossible(seed: int) -> None:
    """Two tiers with hardly more room than the items take."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 60, 6)
    nbytes = np.zeros((6, 2, 2), np.int64)
    nbytes[:, 0, 0] = nbytes[:, 1, 1] = sizes
    room = int(sizes.sum()) + int(rng.integers(0, 6))
    problem = Placement(rng.random((6, 2)), nbytes, np.array([room // 2, room - room // 2], np.int64))
    choices = (np.array(c) for c in product(range(2), repeat=6))
    costs = [problem.cost(c) for c in choices if np.all(problem.used(c) <= problem.capacity)]
    found = place(problem)
    assert (found.status is Status.INFEASIBLE) == (not costs)
    assert (found.solution is not None) == bool(costs)
    if found.solution is not None and found.bound is not None:
        assert np.all(problem.used(found.solution) <= problem.capacity)
        assert found.bound <= min(costs) + 1e-9


def test_many_items_come_within_a_thousandth() -> None:
    found = place(random_placement(1, 3000))
    assert found.gap is not None and found.gap <= 1e-3


def test_what_cannot_fit_is_proven_so() -> None:
    nbytes = np.full((3, 1, 1), 5, np.int64)
    found = place(Placement(np.ones((3, 1)), nbytes, np.array([14], np.int64)))
    assert found.status is Status.INFEASIBLE
    assert "needs 15 bytes at least and has 14" in found.detail
    with pytest.raises(ValueError, match="item 1 has no option"):
        Placement(np.array([[1.0], [np.inf]]), np.zeros((2, 1, 1), np.int64), np.array([1], np.int64))
