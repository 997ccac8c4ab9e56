"""Tests of runtime/module/experts_cache.py, _worth.py, _recall.py and _ahead.py: what a cache of experts keeps."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tensorstow.ir.program import ExpertCaching, ExpertLayer
from tensorstow.runtime.module.experts_ahead import Followers, foresee
from tensorstow.runtime.module.experts_cache import ExpertCache
from tensorstow.runtime.module.experts_lead import SLACK, Guarded
from tensorstow.runtime.module.experts_recall import Likeness, make_worths, recall_nbytes
from tensorstow.runtime.module.experts_stats import ExpertStats
from tensorstow.runtime.module.experts_worth import Counts, Worth
from tensorstow.solvers.caching.counted import DECAYED, LRU, replay_counted
from tensorstow.solvers.caching.problem import Requests
from tensorstow.solvers.caching.recall import Recall, replay_recall


@contextmanager
def bare(
    objects: int, slots: int, decay: float | None = 0.95, worth: Worth | None = None
) -> Generator[tuple[ExpertCache, list[int]]]:
    """A cache alone, and what its slots hold."""
    content = [-1] * slots

    def load(expert: int, slot: int) -> None:
        content[slot] = expert

    with ThreadPoolExecutor(2) as pool:
        yield ExpertCache(objects, slots, load, pool, decay=decay, stats=ExpertStats(), worth=worth), content


@pytest.mark.parametrize(("decay", "policy"), [(None, LRU), (0.95, DECAYED)])
@pytest.mark.parametrize("slots", [3, 5, 8])
def test_hits_are_those_of_the_replay_of_the_trace(slots: int, decay: float | None, policy: Any) -> None:
    generator = np.random.default_rng(3)
    popular = generator.permutation(12)
    ids = np.stack([popular[np.argsort(generator.random(12) * np.arange(1, 13))[:3]] for _ in range(400)])
    requests = Requests(ids[:, None].astype(np.int32), np.ones((1, 12), np.int64))
    wanted = replay_counted(requests, slots, policy)
    with bare(12, slots, decay) as (kept, content):
        for row, hits in zip(ids.tolist(), wanted.hits[:, 0].tolist(), strict=True):
            before = kept.stats.hits
            kept.begin(row)
            for expert in sorted(row):
                assert content[kept.need(expert)] == expert
            kept.end()
            assert kept.stats.hits - before == hits
        assert kept.stats.misses == int(wanted.loaded.sum())


@settings(max_examples=80, deadline=None)
@given(
    slots=st.integers(1, 6),
    events=st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, unique=True), st.booleans()), max_size=12),
    ahead=st.lists(st.lists(st.integers(0, 9), unique=True, max_size=3), min_size=12, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_a_slot_always_holds_what_was_needed(slots: int, events: Any, ahead: Any, order: Any) -> None:
    with bare(10, slots) as (kept, content):
        asked = 0
        for (wanted, told), more in zip(events, ahead, strict=False):
            kept.begin(wanted if told else ())
            uses = sorted(wanted) if told else order.sample(wanted, len(wanted))
            for expert in uses:
                assert content[kept.need(expert)] == expert
                assert content[kept.need(expert)] == expert
            kept.end()
            asked += len(wanted)
            assert len(kept.slot_of) <= slots
            assert len(set(kept.slot_of.values())) == len(kept.slot_of)
            kept.ahead(more)
        assert kept.stats.hits + kept.stats.misses == asked


def test_a_slot_is_not_read_into_while_an_earlier_read_still_writes_there() -> None:
    """Expert 0 is read ahead into a slot, still; 2 is to come after it there, and is given up before it began. What
    takes the slot next must wait for 0 all the same."""
    go = {expert: threading.Event() for expert in range(4)}
    go[2].set()
    go[3].set()
    content, writing, clashes = [-1, -1], [0, 0], list[tuple[int, int]]()

    def load(expert: int, slot: int) -> None:
        writing[slot] += 1
        if writing[slot] > 1:
            clashes.append((expert, slot))
        assert go[expert].wait(60)
        content[slot] = expert
        writing[slot] -= 1

    with ThreadPoolExecutor(2) as pool:
        kept = ExpertCache(4, 2, load, pool, stats=ExpertStats(), decay=0.95)
        kept.ahead([0, 1])  # both threads are busy
        slot = kept.slot_of[0]
        kept.ahead([2])
        assert kept.slot_of[2] == slot
        kept.begin([3])  # not 2, whose read is in the queue
        assert kept.slot_of == {1: 1 - slot, 3: slot}
        go[1].set()  # a thread is free
        threading.Timer(0.1, go[0].set).start()
        assert content[kept.need(3)] == 3
    assert content[slot] == 3
    assert clashes == []


def test_what_always_follows_is_read_ahead() -> None:
    followers = Followers([4, 4])
    for _ in range(3):
        followers.learn(0, [0, 1])
        followers.learn(1, [2, 3])
    assert sorted(followers.likely(0, [0, 1], 2)) == [2, 3]
    assert followers.likely(0, [2], 2) == []
    with bare(4, 2) as (kept, content):
        kept.begin([0, 1])
        kept.ahead([2])  # what is wanted now stays
        assert kept.stats.ahead == 0
        kept.end()
        kept.ahead([2])
        kept.begin([2, 3])
        assert content[kept.need(2)] == 2
        assert (kept.stats.ahead, kept.stats.ahead_used, kept.stats.hits) == (1, 1, 1)


def phrases(rounds: int, layers: int, experts: int, seed: int = 0) -> NDArray[np.int32]:
    """Routing of tokens that come in phrases again and again: int32 [rounds, layers, 3]."""
    rng = np.random.default_rng(seed)
    tokens = np.argsort(rng.random((40, layers, experts)), axis=2)[:, :, :3]
    spoken = [tokens[k] for _ in range(rounds // 5 + 1) for k in 8 * rng.integers(5) + np.arange(5)]
    return np.stack(spoken)[:rounds].astype(np.int32)


def replayed(ids: NDArray[np.int32], experts: int, slots: int, memory: int) -> NDArray[np.int64]:
    """Hits of the runtime's own caches, [rounds, layers]."""
    layers = tuple(ExpertLayer(f"{n}", experts, 3, ("w",), 1, True) for n in range(ids.shape[1]))
    caching = ExpertCaching(layers, slots, False, 0.95, 0, 0.0, "", memory=memory)
    found = np.zeros(ids.shape[:2], np.int64)
    with ThreadPoolExecutor(1) as pool:
        stats = ExpertStats()
        caches = [
            ExpertCache(experts, slots, lambda e, s: None, pool, stats=stats, worth=worth)
            for worth in make_worths(caching)
        ]
        for t, chosen in enumerate(ids.tolist()):
            for c, asked in enumerate(chosen):
                before = stats.hits
                caches[c].begin(asked)
                for expert in sorted(asked):
                    caches[c].need(expert)
                found[t, c] = stats.hits - before
    return found


@pytest.mark.parametrize("experts", [12, 70])
def test_recall_hits_as_in_the_replay_of_the_trace(experts: int) -> None:
    ids = phrases(300, 2, experts)
    requests = Requests(ids, np.ones((2, experts), np.int64))
    (wanted,) = replay_recall(requests, [5], Recall(memory=128))
    found = replayed(ids, experts, 5, 128)
    assert (found != wanted.hits).mean() < 0.02  # likenesses are counted in whole units there
    assert abs(found.mean() - wanted.hits.mean()) < 0.01
    decayed = replay_counted(requests, 5, DECAYED)
    assert found.sum() > 1.1 * decayed.hits.sum()


def test_recall_is_not_worse_than_recency_where_routing_changes() -> None:
    rng = np.random.default_rng(5)
    popular = np.argsort(rng.random((300, 2, 16)) * np.arange(1, 17), axis=2)[:, :, :3]
    drifting = (np.arange(300)[:, None, None] // 2 + np.array([0, 1, 3]) + np.zeros((1, 2, 1), np.int64)) % 16
    ids = np.concatenate([popular, drifting]).astype(np.int32)
    requests = Requests(ids, np.ones((2, 16), np.int64))
    lru = replay_counted(requests, 6, LRU)
    misses = ids.size - replayed(ids, 16, 6, 64).sum()
    assert misses <= 1.02 * (ids.size - lru.hits.sum())


@pytest.mark.parametrize("told", [True, False])
def test_decayed_counts_give_way_to_recency_where_nothing_else_is_planned(told: bool) -> None:
    """Favourites out of use keep their slots by their counts; of a list of experts a set is not told at once."""
    moving = (np.arange(900)[:, None] // 3 + np.array([0, 1, 3])) % 16
    rows = np.concatenate([np.tile([[2, 6, 9]], (200, 1)), moving]).tolist()
    misses: list[int] = []
    for worth in (Guarded(16, 0.999, 6), Counts(16, 0.999), Counts(16, None)):
        with bare(16, 6, worth=worth) as (kept, content):
            for row in rows:
                kept.begin(row if told else ())
                for expert in sorted(row):
                    assert content[kept.need(expert)] == expert
                kept.end()
            misses.append(kept.stats.misses)
    guarded, decayed, recent = misses
    assert decayed > 1.1 * recent
    assert guarded <= 1.02 * recent + SLACK * 6


def test_what_is_forgotten_weighs_nothing_and_takes_no_room() -> None:
    likeness = Likeness([8], 16)
    for k in range(40):
        likeness.see(0, [k % 3, 3 + k % 2])
    assert likeness.now == 39
    assert likeness.like[16 - 6] == likeness.like[1:].max()  # six passes ago all was as it is
    followed = likeness.followed(0)
    assert int(np.argmax(followed[0, :3])) == (39 + 1) % 3
    with_room = [recall_nbytes([8], n) for n in (16, 32)]
    assert likeness.nbytes <= with_room[0] + 64 < with_room[1]


class OneLayer:
    """A layer of its own cache."""

    def __init__(self, number: int, cache: ExpertCache) -> None:
        self.number, self.cache = number, cache

    def objects(self, experts: Any) -> list[int]:
        return list(experts)


def test_reading_ahead_stops_where_it_does_not_pay_and_begins_again() -> None:
    """Pairs hold, then the next layer asks for what it has: what would be read is still judged."""
    with bare(8, 2) as (first, _), bare(8, 2) as (second, _):
        layers = [OneLayer(0, first), OneLayer(1, second)]
        followers = Followers([8, 8])
        trusted: list[bool] = []
        rng = np.random.default_rng(0)
        for k in range(240):
            pair = 2 * int(rng.integers(4))
            follows = pair if k < 80 or k >= 160 else int(rng.integers(4)) * 2
            for layer, asked in zip(layers, ([pair, pair + 1], [follows, follows + 1]), strict=True):
                layer.cache.begin(asked)
                foresee(followers, layers, layer, asked, 2)
                for expert in asked:
                    layer.cache.need(expert)
                layer.cache.end()
            trusted.append(followers.trusted)
        assert not any(trusted[:3])  # too few were judged
        assert all(trusted[40:80])
        assert not any(trusted[110:160])
        assert all(trusted[200:])
        assert second.stats.ahead > 20


def test_the_time_to_foresee_is_time_to_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Followers.likely

    def slow(*given: Any) -> list[int]:
        time.sleep(0.01)
        return plain(*given)

    monkeypatch.setattr(Followers, "likely", slow)
    with bare(8, 2) as (first, _), bare(8, 2) as (second, _):
        layers = [OneLayer(0, first), OneLayer(1, second)]
        followers = Followers([8, 8])
        for layer in layers * 3:
            layer.cache.begin([0, 1])
            foresee(followers, layers, layer, [0, 1], 2)
            layer.cache.end()
        assert first.stats.decided_ns + second.stats.decided_ns >= 6 * 10_000_000
