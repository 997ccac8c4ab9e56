"""Next-layer prediction and prefetch, as far as a trace alone can tell.

Pre-gated MoE (Hwang et al., ISCA 2024) and SmallThinker (arXiv 2507.20984) know the next layer's experts early because
the model was trained to say so. Here the forecast of a cache's next set comes from what went with the set of the cache
before it in the same round, counted online, and from how often each object was used lately: naive Bayes, decayed. The
objects that are likely enough and missing are brought in ahead; what was least recently used gives way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jit import compiled
from .event import take_in
from .problem import Ints, Outcome, Requests, asked


@dataclass(frozen=True, slots=True)
class Foresee:
    """`likely`: the least estimated probability for which an object is brought in ahead; `decay` of use counts, per
    round; `certain`: foresee the true set instead, as a pre-gated model would."""

    likely: float = 0.4
    decay: float = 0.95
    certain: bool = False


def replay_foreseen(requests: Requests, capacity: int | Ints, policy: Foresee | None = None) -> Outcome:
    """Replay with prefetch one cache ahead. Raises ValueError for a capacity below a set.

    An object is brought in ahead only where the forecast set, objects already there included, fits in the capacity; a
    hit may thus have been loaded a moment before: `Outcome.ahead` counts such loads, wanted or not.
    """
    policy = policy or Foresee()
    limits = requests.capacities(capacity)
    hits, loaded, ahead = _replay(
        requests.ids, requests.sizes, limits, requests.resets(), policy.likely, policy.decay, policy.certain
    )
    return Outcome(hits, asked(requests), loaded, ahead)


@compiled
def _drop(resident: Any, last: Any, stamp: Any, now: Any, sizes: Any, used: Any, limit: Any) -> Any:
    """Evict the least recently used, those of `now` apart, until `used` fits."""
    while used > limit:
        victim = -1
        for o in range(resident.shape[0]):
            if resident[o] and stamp[o] != now and (victim < 0 or last[o] < last[victim]):
                victim = o
        resident[victim] = False
        used -= sizes[victim]
    return used


@compiled
def _replay(ids: Any, sizes: Any, limits: Any, begins: Any, likely: Any, decay: Any, certain: Any) -> Any:
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    hits = np.zeros((rounds, caches), np.int32)
    loaded = np.zeros((rounds, caches), np.int64)
    ahead = np.zeros((rounds, caches), np.int64)
    counted = 0 if certain else objects
    together = np.zeros((caches, counted, counted), np.float32)
    seen = np.full((caches, objects), 1e-3, np.float32)
    rate = np.zeros((caches, objects), np.float64)
    resident = np.zeros((caches, objects), np.bool_)
    last = np.full((caches, objects), -1, np.int64)
    stamp = np.full((caches, objects), -1, np.int64)
    used = np.zeros(caches, np.int64)
    guess = np.zeros(objects, np.float64)
    for t in range(rounds):
        if begins[t]:
            resident[:] = False
            used[:] = 0
        for c in range(caches):
            row, before = (t, c - 1) if c else (t - 1, caches - 1)
            guess[:] = 0.0
            if certain:
                for k in range(width):
                    if ids[t, c, k] >= 0:
                        guess[ids[t, c, k]] = 1.0
            elif row >= 0:
                members = 0
                for k in range(width):
                    if ids[row, before, k] >= 0:
                        members += 1
                        for o in range(objects):
                            guess[o] += together[c, ids[row, before, k], o] / seen[before, ids[row, before, k]]
                for o in range(objects):
                    guess[o] = 0.5 * guess[o] / max(1, members) + 0.5 * (1 - decay) * rate[c, o]
            moment = 2 * (t * caches + c)
            room = limits[c]
            while True:  # the likeliest first
                best = -1
                for o in range(objects):
                    if stamp[c, o] != moment and guess[o] >= likely and (best < 0 or guess[o] > guess[best]):
                        best = o
                if best < 0 or sizes[c, best] > room:
                    break
                stamp[c, best] = moment
                room -= sizes[c, best]
                if not resident[c, best]:
                    resident[c, best] = True
                    used[c] += sizes[c, best]
                    ahead[t, c] += sizes[c, best]
            used[c] = _drop(resident[c], last[c], stamp[c], moment, sizes[c], used[c], limits[c])
            rate[c] *= decay
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                stamp[c, o] = moment + 1
                last[c, o] = t * width + (width - 1 - k)
                rate[c, o] += 1.0
                seen[c, o] += np.float32(1)
                if row >= 0 and not certain:
                    for j in range(width):
                        if ids[row, before, j] >= 0:
                            together[c, ids[row, before, j], o] += np.float32(1)
            hits[t, c], missing = take_in(ids[t, c], sizes[c], resident[c])
            loaded[t, c] = missing + ahead[t, c]
            used[c] += missing
            used[c] = _drop(resident[c], last[c], stamp[c], moment + 1, sizes[c], used[c], limits[c])
    return hits, loaded, ahead
