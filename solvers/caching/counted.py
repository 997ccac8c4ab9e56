"""Policies that rank objects by what was counted so far: LRU, LFU, decayed frequency, gate scores, pinned sets.

One replay serves them all. An object's *worth* is its count, each earlier use weighted by `decay` to the power of the
rounds since; what is evicted has the least worth, the least recent of equals. Where sizes differ, `density` makes it
the worth per byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jit import compiled
from .event import take_in
from .problem import Flags, Ints, Outcome, Requests, asked


@dataclass(frozen=True, slots=True)
class Counted:
    """Which worth decides.

    `recency`: nothing but the time of the last use. `decay` in (0, 1] per round: 1 counts for ever. `gated`: a use
    counts by its gate instead of by 1. `density`: per byte, where sizes differ.
    """

    recency: bool = False
    decay: float = 1.0
    gated: bool = False
    density: bool = False


LRU = Counted(recency=True)
LFU = Counted()
DECAYED = Counted(decay=0.95, density=True)
GATED = Counted(decay=0.95, gated=True, density=True)


@dataclass(frozen=True, slots=True, eq=False)
class Pins:
    """Objects that stay.

    `kept` is bool [profiles, caches, objects]. `of_round` (int32 [rounds]) names the profile in force, -1 for none;
    where it changes, the objects of the new one that are missing are loaded, as far as they fit beside the cache's
    largest set. What is pinned is evicted only when nothing else is left.
    """

    kept: Flags
    of_round: Any


def replay_counted(requests: Requests, capacity: int | Ints, policy: Counted, pins: Pins | None = None) -> Outcome:
    """Replay a trace under a counting policy. Raises ValueError for a capacity below a set, or gates that are missing.

    A use without a gate counts 1. A round at which caches are emptied forgets no counts. Time is O(events x (width +
    evictions x objects)).
    """
    if policy.gated and requests.gates is None:
        raise ValueError("the policy ranks by gates, and the requests have none")
    limits = requests.capacities(capacity)
    weights = np.ones((1, 1, 1), np.float32)
    if policy.gated and requests.gates is not None:
        weights = np.ascontiguousarray(requests.gates)
    if pins is None:
        pins = Pins(np.zeros((1, requests.caches, requests.objects), np.bool_), np.full(requests.rounds, -1, np.int32))
    density = policy.density and not requests.unit_sized()
    hits, loaded, ahead = _replay(
        requests.ids,
        requests.sizes,
        limits,
        requests.least_capacity(),
        requests.resets(),
        weights,
        (policy.recency, policy.gated, density),
        float(policy.decay),
        pins.kept,
        pins.of_round,
    )
    return Outcome(hits, asked(requests), loaded, ahead)


@compiled
def _replay(ids: Any, sizes: Any, limits: Any, least: Any, begins: Any, weights: Any, flags: Any, decay: Any, kept: Any, of_round: Any) -> Any:  # fmt: skip  # noqa: E501
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    recency, gated, density = flags
    hits = np.zeros((rounds, caches), np.int32)
    loaded = np.zeros((rounds, caches), np.int64)
    ahead = np.zeros((rounds, caches), np.int64)
    for c in range(caches):
        resident = np.zeros(objects, np.bool_)
        pinned = np.zeros(objects, np.bool_)
        worth = np.zeros(objects, np.float64)
        last = np.full(objects, -1, np.int64)
        stamp = np.full(objects, -1, np.int64)
        used = 0
        profile = -1
        # Instead of multiplying every count in every round, later uses weigh more; scaled back before they overflow.
        scale = 1.0
        for t in range(rounds):
            if begins[t]:
                resident[:] = False
                used = 0
                profile = -1
                pinned[:] = False
            if of_round[t] != profile:
                profile = of_round[t]
                pinned[:] = False
                if profile >= 0:
                    room = limits[c] - least[c]
                    for o in range(objects):
                        if kept[profile, c, o] and sizes[c, o] <= room:
                            pinned[o] = True
                            room -= sizes[c, o]
                            if not resident[o]:
                                resident[o] = True
                                used += sizes[c, o]
                                loaded[t, c] += sizes[c, o]
                                ahead[t, c] += sizes[c, o]
            scale /= decay
            if scale > 1e200:
                for o in range(objects):
                    worth[o] /= scale
                scale = 1.0
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                stamp[o] = t
                # Within a set the one that ranks lower is taken for the older: it goes first.
                last[o] = t * width + (width - 1 - k)
                if not recency:
                    worth[o] += scale * weights[t, c, k] if gated else scale
            hits[t, c], missing = take_in(ids[t, c], sizes[c], resident)
            loaded[t, c] += missing
            used += missing
            while used > limits[c]:
                victim = -1
                low = 0.0
                for o in range(objects):
                    if not resident[o] or stamp[o] == t:
                        continue
                    value = worth[o]
                    if density:
                        value = value / sizes[c, o]
                    if victim >= 0 and pinned[o] and not pinned[victim]:
                        continue
                    alike = victim >= 0 and pinned[o] == pinned[victim]
                    if alike and (value > low or (value == low and last[o] > last[victim])):
                        continue
                    victim, low = o, value
                resident[victim] = False
                used -= sizes[c, victim]
    return hits, loaded, ahead
