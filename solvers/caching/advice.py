"""One bit of advice for each request, and a fallback that does not need it.

Mark & Predict, from 'Paging with Succinct Predictions' (Antoniadis et al., arXiv 2210.02775), for phase predictions. A
phase is a longest stretch of requests whose objects fit in the cache together; the bit of a request says that its
object will not be asked for in the next phase. Objects asked for in this phase are marked and stay; of the others one
with the bit set goes first, else any, drawn by a seeded generator. Marking alone bounds the harm of wrong bits by a
factor logarithmic in the cache's size, whatever the advice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled
from .event import take_in
from .problem import Ints, Outcome, Requests, asked

Bits = NDArray[np.bool_]


def true_bits(requests: Requests, capacity: int | Ints) -> Bits:
    """The advice that knows the future: whether the object is not asked for in the phase after. Shaped as `ids`."""
    limits = requests.capacities(capacity)
    return _true_bits(requests.ids, requests.sizes, limits, requests.resets())


def counted_bits(requests: Requests, capacity: int | Ints, *, decay: float = 0.95) -> Bits:
    """Advice from the past: whether the object's decayed count, this use included, is below those that fill the cache.

    The objects of the greatest decayed counts that fit in the capacity together get no bit. A round at which caches are
    emptied forgets no counts.
    """
    limits = requests.capacities(capacity)
    return _counted_bits(requests.ids, requests.sizes, limits, np.float64(decay))


def replay_advised(requests: Requests, capacity: int | Ints, bits: Bits, *, seed: int = 0) -> Outcome:
    """Mark & Predict with the bits given. Raises ValueError for bits of another shape than the requests."""
    if bits.shape != requests.ids.shape:
        raise ValueError(f"bits {bits.shape} and ids {requests.ids.shape} have different shapes")
    limits = requests.capacities(capacity)
    hits, loaded = _replay(requests.ids, requests.sizes, limits, requests.resets(), bits, seed % 2**31)
    return Outcome(hits, asked(requests), loaded, np.zeros_like(loaded))


@compiled
def _phases(ids: Any, sizes: Any, limit: Any, begins: Any) -> Any:
    """The phase of each round of one cache: a set that does not fit beside what the phase has seen begins the next."""
    rounds, width = ids.shape
    seen = np.full(sizes.shape[0], -1, np.int64)
    found = np.zeros(rounds, np.int64)
    phase, used = 0, 0
    for t in range(rounds):
        more = 0
        for k in range(width):
            if ids[t, k] >= 0 and seen[ids[t, k]] != phase:
                more += sizes[ids[t, k]]
        if used + more > limit or (begins[t] and t > 0):
            phase += 1
            used = 0
        for k in range(width):
            o = ids[t, k]
            if o >= 0 and seen[o] != phase:
                seen[o] = phase
                used += sizes[o]
        found[t] = phase
    return found


@compiled
def _true_bits(ids: Any, sizes: Any, limits: Any, begins: Any) -> Any:
    rounds, caches, width = ids.shape
    bits = np.ones((rounds, caches, width), np.bool_)
    for c in range(caches):
        phases = _phases(ids[:, c], sizes[c], limits[c], begins)
        # The phase, after the one at hand, in which each object is next asked for, and its own next one.
        later = np.full(sizes.shape[1], -1, np.int64)
        now = np.full(sizes.shape[1], -1, np.int64)
        for t in range(rounds - 1, -1, -1):
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                if now[o] != phases[t]:
                    later[o] = now[o]
                    now[o] = phases[t]
                bits[t, c, k] = later[o] != phases[t] + 1
    return bits


@compiled
def _counted_bits(ids: Any, sizes: Any, limits: Any, decay: Any) -> Any:
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    bits = np.zeros((rounds, caches, width), np.bool_)
    for c in range(caches):
        worth = np.zeros(objects, np.float64)
        for t in range(rounds):
            worth *= decay
            for k in range(width):
                if ids[t, c, k] >= 0:
                    worth[ids[t, c, k]] += 1.0
            for k in range(width):
                o = ids[t, c, k]
                if o >= 0:
                    above = 0
                    for p in range(objects):
                        if worth[p] > worth[o] or (worth[p] == worth[o] and p < o):
                            above += sizes[c, p]
                    bits[t, c, k] = above + sizes[c, o] > limits[c]
    return bits


@compiled
def _replay(ids: Any, sizes: Any, limits: Any, begins: Any, bits: Any, seed: Any) -> Any:
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    hits = np.zeros((rounds, caches), np.int32)
    loaded = np.zeros((rounds, caches), np.int64)
    state = np.uint64(seed * 2654435761 + 88172645463325252)
    for c in range(caches):
        resident = np.zeros(objects, np.bool_)
        marked = np.zeros(objects, np.bool_)
        leaves = np.zeros(objects, np.bool_)
        stamp = np.full(objects, -1, np.int64)
        phases = _phases(ids[:, c], sizes[c], limits[c], begins)
        used = 0
        for t in range(rounds):
            if begins[t]:
                resident[:] = False
                used = 0
            if t > 0 and phases[t] != phases[t - 1]:
                marked[:] = False
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                marked[o] = True
                stamp[o] = t
                leaves[o] = bits[t, c, k]
            hits[t, c], missing = take_in(ids[t, c], sizes[c], resident)
            loaded[t, c] += missing
            used += missing
            while used > limits[c]:
                victim = -1
                best = np.uint64(0)
                for o in range(objects):
                    if not resident[o] or stamp[o] == t or marked[o]:
                        continue
                    state ^= state << np.uint64(13)
                    state ^= state >> np.uint64(7)
                    state ^= state << np.uint64(17)
                    draw = state >> np.uint64(2)
                    if leaves[o]:
                        draw += np.uint64(1) << np.uint64(62)
                    if victim < 0 or draw > best:
                        victim, best = o, draw
                resident[victim] = False
                used -= sizes[c, victim]
    return hits, loaded
