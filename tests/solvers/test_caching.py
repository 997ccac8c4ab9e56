"""Caching policies against plain replays written another way, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tensorstow.solvers.caching.advice import counted_bits, replay_advised, true_bits
from tensorstow.solvers.caching.counted import DECAYED, GATED, LFU, LRU, Pins, replay_counted
from tensorstow.solvers.caching.foresee import Foresee, replay_foreseen
from tensorstow.solvers.caching.offline import next_uses, replay_belady, replay_segment
from tensorstow.solvers.caching.problem import NONE, Ints, Outcome, Requests, gap_closed, one_cache, pooled
from tensorstow.solvers.caching.recall import Recall, replay_recall
from tensorstow.solvers.caching.windows import count_windows

from .caching_cases import alternating, phrases, random_requests, turning


def plain(requests: Requests, capacity: int, worst: Callable[[int, int, set[int], dict[int, int]], int]) -> int:
    """Hits by sets and dictionaries: look up, load, evict with the set protected. `worst` chooses among what may go."""
    hits = 0
    for c in range(requests.caches):
        cache: set[int] = set()
        last: dict[int, int] = {}
        for t in range(requests.rounds):
            wanted = [int(o) for o in requests.ids[t, c] if o != NONE]
            hits += sum(o in cache for o in wanted)
            cache |= set(wanted)
            for rank, o in enumerate(requests.ids[t, c].tolist()):
                if o != NONE:
                    last[o] = t * requests.width + requests.width - 1 - rank
            while sum(int(requests.sizes[c, o]) for o in cache) > capacity:
                cache.remove(worst(c, t, cache - set(wanted), last))
    return hits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("capacity", [3, 5, 8])
def test_lru_and_belady_are_the_plain_ones(seed: int, capacity: int) -> None:
    requests = random_requests(seed)

    def least_recent(_c: int, _t: int, free: set[int], last: dict[int, int]) -> int:
        return min(free, key=lambda o: last[o])

    def farthest(c: int, t: int, free: set[int], _last: dict[int, int]) -> int:
        def again(o: int) -> int:
            later = np.flatnonzero((requests.ids[t + 1 :, c] == o).any(axis=1))
            return int(later[0]) if len(later) else 1 << 40

        return max(free, key=again)

    assert replay_counted(requests, capacity, LRU).hits.sum() == plain(requests, capacity, least_recent)
    assert replay_belady(requests, capacity).hits.sum() == plain(requests, capacity, farthest)


def all_policies(requests: Requests, capacity: int) -> dict[str, Outcome]:
    return {
        "lru": replay_counted(requests, capacity, LRU),
        "lfu": replay_counted(requests, capacity, LFU),
        "decayed": replay_counted(requests, capacity, DECAYED),
        "gated": replay_counted(requests, capacity, GATED),
        "advice": replay_advised(requests, capacity, counted_bits(requests, capacity)),
        "advice-true": replay_advised(requests, capacity, true_bits(requests, capacity)),
        "recall": replay_recall(requests, (capacity,))[0],
        "segment": replay_segment(requests, capacity, 5),
        "belady": replay_belady(requests, capacity),
    }


@pytest.mark.parametrize("seed", range(4))
def test_nobody_beats_belady_and_all_count_alike(seed: int) -> None:
    requests = random_requests(seed)
    for capacity in (3, 4, 6, 9):
        found = all_policies(requests, capacity)
        for name, outcome in found.items():
            assert outcome.hits.sum() <= found["belady"].hits.sum(), name
            # Unit sizes: what was not found was loaded, and nothing else.
            assert np.array_equal(outcome.loaded, outcome.asked - outcome.hits), name
    # When everything fits, only first uses miss.
    for outcome in all_policies(requests, 9).values():
        assert outcome.loaded.sum() == sum(len(np.unique(requests.ids[:, c])) - 1 for c in range(requests.caches))


def test_a_cache_of_one_set_leaves_no_choice() -> None:
    requests = random_requests(5)
    full = Requests(np.where(requests.ids == NONE, 0, requests.ids)[:, :, :1], requests.sizes)
    rates = {outcome.hits.sum() for outcome in all_policies(Requests(full.ids, full.sizes, np.ones(full.ids.shape, np.float32)), 1).values()}  # fmt: skip  # noqa: E501
    assert len(rates) == 1


def test_a_set_is_looked_up_as_one() -> None:
    """One by one, loading 2 would evict 1 before it is looked up."""
    requests = one_cache(np.array([[0, 1], [2, 1], [0, 1]], np.int32), np.ones(3, np.int64))
    assert replay_counted(requests, 2, LRU).hits[:, 0].tolist() == [0, 1, 1]


def test_resets_empty_caches_and_hide_what_comes_after() -> None:
    ids = np.array([[0], [0], [0]], np.int32)[:, :, None]
    begins = np.array([True, False, True])
    requests = Requests(ids, np.ones((1, 2), np.int64), np.ones(ids.shape, np.float32), begins)
    for name, outcome in all_policies(requests, 1).items():
        assert outcome.hits[:, 0].tolist() == [0, 1, 0], name
    assert next_uses(requests)[:, 0, 0].tolist()[0] == 1
    assert next_uses(requests)[1, 0, 0] > 1 << 40


def test_what_was_counted_outlives_a_reset() -> None:
    """Object 0 was used much before the caches were emptied: afterwards, once each, it is still worth more than 1."""
    ids = np.array([[0], [0], [0], [0], [1], [2], [0]], np.int32)[:, :, None]
    begins = np.zeros(7, np.bool_)
    begins[[0, 3]] = True
    requests = Requests(ids, np.ones((1, 3), np.int64), np.ones(ids.shape, np.float32), begins)
    for policy in (LFU, DECAYED, GATED):
        assert replay_counted(requests, 2, policy).hits[-1, 0] == 1, policy
    assert not counted_bits(requests, 1)[3, 0, 0]  # among all that was ever used
    assert counted_bits(requests, 1)[4, 0, 0]


def test_unequal_sizes_stay_within_bytes() -> None:
    """Experts, whole models and adapters alike: at no time more bytes than the cache holds."""
    rng = np.random.default_rng(3)
    requests = random_requests(3, caches=1)
    sized = Requests(requests.ids, rng.integers(1, 40, (1, 9)).astype(np.int64), requests.gates)
    capacity = int(sized.least_capacity().max()) + 10
    for name, outcome in all_policies(sized, capacity).items():
        missed = np.where(sized.ids == NONE, 0, sized.sizes[0][sized.ids])[:, 0].sum(axis=1)
        assert np.all(outcome.loaded[:, 0] <= missed), name
        assert outcome.loaded.sum() >= sum(int(sized.sizes[0, o]) for o in np.unique(sized.ids) if o != NONE), name
    assert replay_counted(sized, capacity, LRU).hits.sum() == plain(sized, capacity, lambda _c, _t, free, last: min(free, key=lambda o: last[o]))  # fmt: skip  # noqa: E501


def test_pins_stay_and_are_loaded_once() -> None:
    ids = np.array([[0], [1], [2], [0], [3], [0]], np.int32)[:, :, None]
    requests = Requests(ids, np.ones((1, 4), np.int64))
    kept = np.zeros((1, 1, 4), np.bool_)
    kept[0, 0, 0] = True
    outcome = replay_counted(requests, 2, LRU, Pins(kept, np.zeros(6, np.int32)))
    assert outcome.hits[:, 0].tolist() == [1, 0, 0, 1, 0, 1]
    assert outcome.ahead.sum() == 1


def test_one_true_bit_helps_and_a_false_one_does_bounded_harm() -> None:
    requests = random_requests(7, rounds=3000, caches=1)
    true = true_bits(requests, 5)
    hits = {k: int(replay_advised(requests, 5, b).hits.sum()) for k, b in (("true", true), ("false", ~true))}
    lru, belady = (int(o.hits.sum()) for o in (replay_counted(requests, 5, LRU), replay_belady(requests, 5)))
    assert hits["false"] < hits["true"] <= belady
    misses = {k: int((requests.ids != NONE).sum()) - h for k, h in {**hits, "lru": lru, "belady": belady}.items()}
    assert misses["true"] < misses["lru"]
    # Marking is competitive by 2 H(capacity) whatever the bits.
    assert misses["false"] <= 2 * sum(1 / i for i in range(1, 6)) * misses["belady"]


def test_prefetch_of_what_is_certain_always_hits() -> None:
    requests = random_requests(2)
    outcome = replay_foreseen(requests, 4, Foresee(certain=True))
    assert outcome.hit_rate() == 1.0
    assert outcome.ahead.sum() == outcome.loaded.sum() > 0
    never = replay_foreseen(requests, 4, Foresee(likely=2.0))
    assert never.ahead.sum() == 0
    assert never.hits.sum() == replay_counted(requests, 4, LRU).hits.sum()


def test_recall_finds_phrases_again() -> None:
    requests = phrases(3000, 1)
    lru, belady = replay_counted(requests, 5, LRU).hit_rate(), replay_belady(requests, 5).hit_rate()
    recall = replay_recall(requests, (5,))[0].hit_rate()
    decayed = replay_counted(requests, 5, DECAYED).hit_rate()
    assert gap_closed(recall, lru, belady) > 0.6 > gap_closed(decayed, lru, belady)


@pytest.mark.parametrize("kind", ["drift", "shuffled", "random"])
@pytest.mark.parametrize("capacity", [4, 6, 9])
def test_recall_is_no_worse_than_lru_when_routing_changes(kind: str, capacity: int) -> None:
    requests = turning(kind)
    late = slice(3000, None)
    lru = replay_counted(requests, capacity, LRU).hit_rate(late)
    assert replay_recall(requests, (capacity,))[0].hit_rate(late) >= lru - 0.02


@pytest.mark.parametrize("kind", ["drift", "few"])
@pytest.mark.parametrize("length", [10, 25, 50])
def test_recall_is_no_worse_than_lru_when_routing_changes_again_and_again(kind: str, length: int) -> None:
    requests = alternating(kind, length)
    for capacity, outcome in zip((4, 6, 9), replay_recall(requests, (4, 6, 9)), strict=True):
        assert outcome.loaded.sum() <= 1.02 * replay_counted(requests, capacity, LRU).loaded.sum()


def test_recall_falls_back_when_its_scores_are_wrong() -> None:
    """With forecasts turned upside down by a negative step the model learns to be wrong; LRU takes over."""
    requests = turning("drift")
    wrong = Recall(step=-0.05)
    lru = replay_counted(requests, 6, LRU).hit_rate()
    guarded = replay_recall(requests, (6,), wrong)[0].hit_rate()
    bare = replay_recall(requests, (6,), Recall(step=-0.05, slack=1e9))[0].hit_rate()
    assert bare < lru - 0.05
    assert guarded >= lru - 0.02


def test_capacities_together_are_capacities_apart() -> None:
    requests = random_requests(9)
    together = replay_recall(requests, (3, 5, 7))
    for capacity, outcome in zip((3, 5, 7), together, strict=True):
        alone = replay_recall(requests, (capacity,))[0]
        assert np.array_equal(alone.hits, outcome.hits)


def test_more_than_one_word_of_objects() -> None:
    requests = phrases(800, 4, objects=150)
    lru = replay_counted(requests, 20, LRU).hit_rate()
    assert replay_recall(requests, (20,))[0].hit_rate() > lru


def test_pooled_caches_share_their_room() -> None:
    requests = random_requests(1)
    one = pooled(requests)
    assert one.rounds == requests.rounds * requests.caches
    assert replay_belady(one, 10).hits.sum() >= replay_belady(requests, 5).hits.sum() * 0.9
    assert replay_belady(one, 18).loaded.sum() == replay_belady(requests, 9).loaded.sum()


def test_wrong_requests_are_refused() -> None:
    sizes: Ints = np.ones((1, 4), np.int64)
    good = np.array([[[0, 1]]], np.int32)
    with pytest.raises(ValueError, match="not among 4"):
        Requests(good + 3, sizes)
    with pytest.raises(ValueError, match="twice"):
        Requests(np.array([[[1, 1]]], np.int32), sizes)
    with pytest.raises(ValueError, match="size 0"):
        Requests(good, sizes * 0)
    with pytest.raises(ValueError, match="gates"):
        Requests(good, sizes, np.ones((1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="less than the 2 of one set"):
        replay_belady(Requests(good, sizes), 1)
    with pytest.raises(ValueError, match="none"):
        replay_counted(Requests(good, sizes), 2, GATED)
    with pytest.raises(ValueError, match="1 or more"):
        count_windows(Requests(good, sizes), 0)
