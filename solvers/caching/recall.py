"""The learned policy: decayed counts and the trace's own past, weighed by a linear model that learns as it goes.

An object's score is a weighted sum of features: its use counts decayed at several rates, and what followed the earlier
rounds whose routing was most alike (`attention`), at several discounts. The weights belong to a cache and are learned
online by least squares (normalised steps, Adagrad), against the discounted uses that in fact came: `span` rounds later
the forecast of a round is compared with them. The least score, per byte where sizes differ, is evicted. It begins with
an empty memory and sees each set only after it was asked for.

**Robust.** Two shadow caches run along in counters only: LRU, and the scores. What is really evicted follows one of
them, and changes over when that one has loaded `slack` cache fillings more than the other since the last change (the
combination of Fiat et al., 'Competitive paging algorithms', J. Algorithms 12, 1991). So where scores mislead, the
loads exceed LRU's by a few cache fillings for each change of the trace's nature, however long it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jit import compiled
from .attention import WORD, attend, compare, credit, fraction, likeness_unit, masks_of, weight_table
from .event import take_in
from .problem import Ints, Outcome, Requests, asked


@dataclass(frozen=True, slots=True)
class Recall:
    """How far back it looks, and how it weighs. Decays and discounts per round, `fade` per event.

    `memory` rounds are compared; `sharpness` and `reach` are those of `attention.weight_table`; `discounts` those of
    what followed; `target` that of the uses the model learns to foresee, over `span` rounds; `step` its first step.
    """

    memory: int = 4096
    fade: float = 0.9
    sharpness: float = 0.5
    reach: float = 3.0
    decays: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999)
    discounts: tuple[float, ...] = (0.7, 0.9)
    target: float = 0.7
    span: int = 8
    step: float = 0.005
    slack: float = 2.0

    def remembered(self, requests: Requests) -> int:
        """`memory`, or as many rounds as fit in 256 MiB of futures."""
        row = 4 * requests.objects * requests.caches * len(self.discounts)
        return int(max(16, min(self.memory, (256 << 20) // row, requests.rounds)))


def replay_recall(
    requests: Requests, capacities: Sequence[int | Ints], policy: Recall | None = None
) -> tuple[Outcome, ...]:
    """Replay a trace at several capacities at once. Raises ValueError for a capacity below a set.

    A round at which caches are emptied forgets nothing that was learned.
    """
    policy = policy or Recall()
    limits = np.stack([requests.capacities(c) for c in capacities])
    fillings = np.maximum(1, (policy.slack * limits).astype(np.int64))
    unit = likeness_unit(requests.width, policy.fade)
    hits, loaded = _replay(
        requests.ids,
        requests.sizes,
        limits,
        fillings,
        requests.resets(),
        masks_of(requests.ids, -(-requests.objects // WORD)),
        policy.remembered(requests),
        (np.uint32(fraction(policy.fade)), np.uint32(unit), np.float32(policy.step)),
        weight_table(policy.sharpness, policy.reach, unit),
        np.array(policy.decays, np.float32),
        np.array(policy.discounts, np.float32),
        np.float32(policy.target),
        policy.span,
    )
    wanted = asked(requests)
    return tuple(Outcome(h, wanted, n, np.zeros_like(n)) for h, n in zip(hits, loaded, strict=True))


@compiled
def first_weights(caches: Any, decays: Any, discounts: Any) -> Any:
    """Weights before anything is learned: what followed counts as it is, use counts as a tie-break."""
    found = np.zeros((caches, decays + discounts), np.float32)
    found[:, decays // 2] = np.float32(0.2)
    found[:, decays] = np.float32(1)
    return found


@compiled
def learn(ids: Any, t: Any, target: Any, span: Any, past: Any, weights: Any, squares: Any, step: Any, error: Any) -> None:  # fmt: skip  # noqa: E501
    """One step of the weights of a cache, from the features that round t - span had and the uses since."""
    error[:] = np.float32(0)
    gain = np.float32(1) - target
    for h in range(1, span + 1):
        for k in range(ids.shape[1]):
            if ids[t - span + h, k] >= 0:
                error[ids[t - span + h, k]] += gain
        gain *= target
    for j in range(past.shape[0]):
        for o in range(past.shape[1]):
            error[o] -= weights[j] * past[j, o]
    for j in range(past.shape[0]):
        slope = np.float32(0)
        for o in range(past.shape[1]):
            slope += error[o] * past[j, o]
        squares[j] += slope * slope
        weights[j] += step * slope / np.sqrt(squares[j])


@compiled
def evict(resident: Any, shadow: Any, guided: Any, mask: Any, key: Any) -> Any:
    """What has the least key among what may go, first of all what the guide no longer has."""
    victim = -1
    stray = False
    for o in range(resident.shape[0]):
        if not resident[o] or (mask[o // 32] >> np.uint32(o % 32)) & np.uint32(1):
            continue
        outside = guided and not shadow[o]
        if victim < 0 or (outside and not stray) or (outside == stray and key[o] < key[victim]):
            victim, stray = o, outside
    return victim


@compiled
def serve(ids: Any, mask: Any, sizes: Any, limit: Any, resident: Any, used: Any, key: Any, shadow: Any, guided: Any) -> Any:  # fmt: skip  # noqa: E501
    """Look a set up, load what is missing, evict until it fits: hits, loaded size and what is used now."""
    hits, loaded = take_in(ids, sizes, resident)
    used += loaded
    while used > limit:
        victim = evict(resident, shadow, guided, mask, key)
        resident[victim] = False
        used -= sizes[victim]
    return hits, loaded, used


@compiled
def _replay(ids: Any, sizes: Any, limits: Any, slack: Any, begins: Any, masks: Any, memory: Any, knobs: Any, table: Any, decays: Any, discounts: Any, target: Any, span: Any) -> Any:  # fmt: skip  # noqa: E501
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    cases = limits.shape[0]
    fade, unit, step = knobs
    traces, features = decays.shape[0], decays.shape[0] + discounts.shape[0]
    likeness = np.zeros(memory, np.uint32)
    futures = np.zeros((caches, discounts.shape[0], memory + 1, objects), np.float32)
    past = np.zeros((caches, span + 1, features, objects), np.float32)
    weights = first_weights(caches, traces, discounts.shape[0])
    squares = np.full((caches, features), 1e-2, np.float32)
    counts = np.zeros((caches, traces, objects), np.float32)
    error = np.zeros(objects, np.float32)
    key = np.zeros(objects, np.float64)
    last = np.full((caches, objects), -1.0, np.float64)
    hits = np.zeros((cases, rounds, caches), np.int32)
    loaded = np.zeros((cases, rounds, caches), np.int64)
    # Of each capacity and cache: the real one, that of the scores, LRU's; loads of the last two since the last change.
    resident = np.zeros((cases, caches, 3, objects), np.bool_)
    used = np.zeros((cases, caches, 3), np.int64)
    since = np.zeros((cases, caches, 2), np.int64)
    guide = np.zeros((cases, caches), np.int64)
    for t in range(rounds):
        if begins[t]:
            resident[:] = False
            used[:] = 0
        for c in range(caches):
            best = compare(masks[c], t, fade, unit, likeness)
            credit(ids[:, c], t, discounts, span, futures[c])
            if t >= span:
                learn(ids[:, c], t, target, span, past[c, (t - span) % (span + 1)], weights[c], squares[c], step, error)  # fmt: skip  # noqa: E501
            now = past[c, t % (span + 1)]
            for j in range(traces):
                for o in range(objects):
                    counts[c, j, o] *= decays[j]
            for k in range(width):
                if ids[t, c, k] >= 0:
                    last[c, ids[t, c, k]] = t * width + (width - 1 - k)
                    for j in range(traces):
                        counts[c, j, ids[t, c, k]] += np.float32(1) - decays[j]
            now[:traces] = counts[c]
            attend(likeness, best, t, table, futures[c], now[traces:])
            for o in range(objects):
                key[o] = 0.0
            for j in range(features):
                for o in range(objects):
                    key[o] += weights[c, j] * now[j, o]
            for o in range(objects):
                key[o] /= sizes[c, o]
            for n in range(cases):
                limit = limits[n, c]
                own, shadow = resident[n, c, 1], resident[n, c, 2]
                _, more, used[n, c, 1] = serve(ids[t, c], masks[c, :, t], sizes[c], limit, own, used[n, c, 1], key, own, False)  # fmt: skip  # noqa: E501
                _, lru, used[n, c, 2] = serve(ids[t, c], masks[c, :, t], sizes[c], limit, shadow, used[n, c, 2], last[c], own, False)  # fmt: skip  # noqa: E501
                since[n, c, 0] += more
                since[n, c, 1] += lru
                if since[n, c, guide[n, c]] > since[n, c, 1 - guide[n, c]] + slack[n, c]:
                    guide[n, c] = 1 - guide[n, c]
                    since[n, c] = 0
                elif since[n, c, guide[n, c]] < since[n, c, 1 - guide[n, c]]:
                    since[n, c] = 0  # credit is not saved up: what was good once may become bad
                leader = resident[n, c, 1 + guide[n, c]]
                rank = key if guide[n, c] == 0 else last[c]
                hits[n, t, c], loaded[n, t, c], used[n, c, 0] = serve(ids[t, c], masks[c, :, t], sizes[c], limit, resident[n, c, 0], used[n, c, 0], rank, leader, True)  # fmt: skip  # noqa: E501
    return hits, loaded
