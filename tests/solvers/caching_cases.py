"""Requests to caches: random ones, and such as repeat phrases."""

from __future__ import annotations

import numpy as np

from tensorstow.solvers.caching.problem import NONE, Requests


def random_requests(seed: int, *, rounds: int = 80, caches: int = 2, width: int = 3, objects: int = 9) -> Requests:
    """Skewed sets with holes, some repeated."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(objects, 0.5), size=caches) * 0.9 + 0.1 / objects
    ids = np.empty((rounds, caches, width), dtype=np.int32)
    for t in range(rounds):
        for c in range(caches):
            ids[t, c] = rng.choice(objects, width, replace=False, p=shares[c] / shares[c].sum())
    ids[rng.random(ids.shape) < 0.1] = NONE
    return Requests(ids, np.ones((caches, objects), dtype=np.int64), rng.random(ids.shape, dtype=np.float32))


def phrases(rounds: int, seed: int, *, caches: int = 3, width: int = 2, objects: int = 16) -> Requests:
    """Tokens from a small vocabulary, in phrases that come again; a token's sets are its own."""
    rng = np.random.default_rng(seed)
    tables = np.stack([[rng.choice(objects, width, replace=False) for _ in range(caches)] for _ in range(60)])
    book = [rng.integers(0, 60, rng.integers(5, 12)) for _ in range(12)]
    tokens: list[int] = []
    while len(tokens) < rounds:
        tokens += book[int(rng.integers(len(book)))].tolist()
    return Requests(tables[tokens[:rounds]].astype(np.int32), np.ones((caches, objects), np.int64))


def turning(kind: str) -> Requests:
    """A trace whose nature changes half-way: what was learned misleads from then on."""
    rng = np.random.default_rng(11)
    first = phrases(3000, 2, caches=1, objects=16).ids
    if kind == "drift":  # recency alone helps: a window of objects that moves on
        second = np.array([[(t // 6 + rng.choice(6, 2, replace=False)) % 16] for t in range(3000)], np.int32)
    elif kind == "shuffled":
        second = rng.permutation(16)[phrases(3000, 3, caches=1).ids].astype(np.int32)
    else:
        second = np.array([[rng.choice(16, 2, replace=False)] for _ in range(3000)], np.int32)
    return Requests(np.concatenate([first, second]).astype(np.int32), np.ones((1, 16), np.int64))


def alternating(kind: str, length: int, *, rounds: int = 2000, objects: int = 16) -> Requests:
    """Phrases, and something else that recency knows best, in turns of `length` rounds."""
    rng = np.random.default_rng(7)
    ids = phrases(rounds, 2, caches=1, objects=objects).ids.copy()
    few = np.arange(5)
    for t in range(rounds):
        if t % (2 * length) == length:
            few = rng.choice(objects, 5, replace=False)
        if t % (2 * length) >= length:
            ids[t, 0] = (
                (t // 6 + rng.choice(6, 2, replace=False)) % objects if kind == "drift" else rng.permuted(few)[:2]
            )
    return Requests(ids, np.ones((1, objects), np.int64))
