"""Counts over sliding windows of a trace: how steady routing is, and how many objects it touches.

SRP, segment routing best performance, is that of 'Not All Models Suit Expert Offloading' (arXiv 2505.16056): take an
object for active in the whole of a window of m rounds if it is used in at least c of them; the F1 score of that
forecast over all windows, at the best threshold c. With h[c] the number of windows and objects with count c,

    F1(t) = 2 sum_{c >= t} c h[c] / (m sum_{c >= t} h[c] + sum_c c h[c]).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled
from .problem import Ints, Requests


def count_windows(requests: Requests, m: int) -> Ints:
    """Windows and objects by how often the window uses the object: int64 [caches, m + 1].

    All windows of `m` consecutive rounds that no reset (`begins`) divides. Raises ValueError for m < 1.
    """
    if m < 1:
        raise ValueError(f"windows of {m} rounds; give 1 or more")
    return _count(requests.ids, requests.objects, requests.resets(), m)


def srp(histogram: Ints) -> tuple[float, int]:
    """The best F1 score over thresholds c >= 1, and that threshold, of a histogram int64 [m + 1].

    (0.0, 1) where no window uses anything, or there is no window.
    """
    m = len(histogram) - 1
    counts = np.arange(m + 1, dtype=np.float64)
    h = histogram.astype(np.float64)
    kept = np.cumsum(h[::-1])[::-1][1:]
    used = np.cumsum((counts * h)[::-1])[::-1][1:]
    below = m * kept + float((counts * h).sum())
    scores = np.divide(2 * used, below, out=np.zeros(m), where=below > 0)
    best = int(np.argmax(scores))
    return float(scores[best]), best + 1


def working_set(histogram: Ints, objects: int) -> float:
    """Objects that a window uses, in the mean, of a histogram int64 [m + 1] of one cache; 0.0 without a window."""
    total = int(histogram.sum())
    return objects * (1.0 - float(histogram[0]) / total) if total else 0.0


def predictability(requests: Requests, *, pairs: bool = True) -> NDArray[np.float64]:
    """How much of each set could be foreseen, by simple rules that learn as they go: float64 [3, caches].

    The share of a set's objects among as many guesses. Row 0: the objects used most so far; row 1: the set of the
    round before; row 2: what mostly went with the set of the cache before, in the same round (the last cache of the
    round before for cache 0), ties by use so far. Nothing is foreseen in the first round. Without `pairs` row 2 is not
    a number, and what it takes to count them (`pairs_nbytes`) is saved.
    """
    found = _predict(requests.ids, requests.objects, pairs)
    if not pairs:
        found[2] = np.nan
    return found


def pairs_nbytes(caches: int, objects: int) -> int:
    """Memory of a count of each pair of objects of two caches that follow one another."""
    return 4 * caches * objects * objects


@compiled
def _count(ids: Any, objects: Any, begins: Any, m: Any) -> Any:
    rounds, caches, width = ids.shape
    found = np.zeros((caches, m + 1), np.int64)
    for c in range(caches):
        count = np.zeros(objects, np.int64)
        since = np.zeros(objects, np.int64)  # the number of complete windows when `count` last changed
        windows = 0
        start = 0
        for t in range(rounds + 1):
            if t == rounds or (begins[t] and t > 0):
                for o in range(objects):
                    found[c, count[o]] += windows - since[o]
                    count[o] = 0
                    since[o] = 0
                windows = 0
                start = t
                if t == rounds:
                    break
            for k in range(width):
                o = ids[t, c, k]
                if o >= 0:
                    found[c, count[o]] += windows - since[o]
                    since[o] = windows
                    count[o] += 1
            if t - start >= m:
                for k in range(width):
                    o = ids[t - m, c, k]
                    if o >= 0:
                        found[c, count[o]] += windows - since[o]
                        since[o] = windows
                        count[o] -= 1
            if t - start >= m - 1:
                windows += 1
    return found


@compiled
def _predict(ids: Any, objects: Any, pairs: Any) -> Any:
    rounds, caches, width = ids.shape
    counted = objects if pairs else 0
    together = np.zeros((caches, counted, counted), np.float32)
    used = np.zeros((caches, objects), np.float32)
    right = np.zeros((3, caches), np.int64)
    wanted = np.zeros(caches, np.int64)
    score = np.zeros(objects, np.float32)
    for t in range(rounds):
        for c in range(caches):
            before, row = (c - 1, t) if c else (caches - 1, t - 1)
            size = 0
            for k in range(width):
                size += ids[t, c, k] >= 0
            if t > 0:
                wanted[c] += size
                right[0, c] += _guessed(ids[t, c], used[c], size)
                for k in range(width):
                    for j in range(width):
                        right[1, c] += ids[t, c, k] >= 0 and ids[t, c, k] == ids[t - 1, c, j]
                if pairs:
                    for o in range(objects):
                        score[o] = np.float32(1e-6) * used[c, o]
                    for k in range(width):
                        if ids[row, before, k] >= 0:
                            seen = max(np.float32(1), used[before, ids[row, before, k]])
                            for o in range(objects):
                                score[o] += together[c, ids[row, before, k], o] / seen
                    right[2, c] += _guessed(ids[t, c], score, size)
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                used[c, o] += np.float32(1)
                if pairs and row >= 0:
                    for j in range(width):
                        if ids[row, before, j] >= 0:
                            together[c, ids[row, before, j], o] += np.float32(1)
    found = np.zeros((3, caches), np.float64)
    for c in range(caches):
        if wanted[c]:
            for n in range(3):
                found[n, c] = right[n, c] / wanted[c]
    return found


@compiled
def _guessed(ids: Any, score: Any, size: Any) -> Any:
    """How many of a set are among the `size` objects of the greatest score, the lower number first of equals."""
    found = 0
    for k in range(ids.shape[0]):
        o = ids[k]
        if o < 0:
            continue
        above = 0
        for p in range(score.shape[0]):
            above += score[p] > score[o] or (score[p] == score[o] and p < o)
        found += above < size
    return found
