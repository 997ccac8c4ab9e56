"""How local requests are: segment routing performance and cache hits, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tensorstow.solvers.caching.offline import replay_segment
from tensorstow.solvers.caching.problem import Requests, one_cache
from tensorstow.solvers.caching.windows import count_windows, predictability, srp, working_set

from .caching_cases import random_requests


def brute_srp(requests: Requests, m: int, cache: int) -> float:
    """The definition, window by window and object by object."""
    starts = np.flatnonzero(requests.resets()).tolist() or [0]
    best = 0.0
    for threshold in range(1, m + 1):
        right = chosen = total = 0
        for low, high in zip(starts, [*starts[1:], requests.rounds], strict=True):
            for start in range(low, high - m + 1):
                for o in range(requests.objects):
                    count = int((requests.ids[start : start + m, cache] == o).sum())
                    total += count
                    if count >= threshold:
                        chosen += m
                        right += count
        best = max(best, 2 * right / (chosen + total) if chosen + total else 0.0)
    return best


@pytest.mark.parametrize("m", [1, 2, 5, 30, 200])
def test_srp_is_its_definition(m: int) -> None:
    plain_requests = random_requests(6, rounds=60)
    begins = np.zeros(60, np.bool_)
    begins[[0, 25, 28]] = True
    requests = Requests(plain_requests.ids, plain_requests.sizes, None, begins)
    histograms = count_windows(requests, m)
    for c in range(requests.caches):
        assert srp(histograms[c])[0] == pytest.approx(brute_srp(requests, m, c))  # pyright: ignore[reportUnknownMemberType]


def test_steady_routing_has_an_srp_of_one() -> None:
    requests = one_cache(np.tile(np.array([[1, 4]], np.int32), (20, 1)), np.ones(6, np.int64))
    histogram = count_windows(requests, 8)[0]
    assert srp(histogram) == (1.0, 1)
    assert working_set(histogram, 6) == 2.0


def test_segment_cache_by_hand() -> None:
    """After round 2 (set {2}) one of 0 and 1 goes: 1 comes twice in the next three rounds, 0 once."""
    ids = np.array([[0], [1], [2], [1], [0], [1]], np.int32)
    requests = one_cache(ids, np.ones(3, np.int64))
    assert replay_segment(requests, 2, 3).hits[:, 0].tolist() == [0, 0, 0, 1, 0, 1]
    # Unprotected, 2 itself goes: it never comes again.
    assert replay_segment(requests, 2, 3, protect=False).hits[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_predictability_of_what_follows_its_layer() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, 2000)
    ids = np.stack([first, (first * 3 + 1) % 8], axis=1)[:, :, None].astype(np.int32)
    found = predictability(Requests(ids, np.ones((2, 8), np.int64)))
    assert found[2, 1] > 0.99
    assert found[2, 0] < 0.3
    assert np.all(found[1] < 0.3)
