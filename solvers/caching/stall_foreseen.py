"""The replay of `stall` with forecasts in place of knowledge: evictions by `recall`, loads ahead by `attention`.

**Robust.** LRU on demand runs along in counters: what it would have waited is known. Where a cache has waited `slack`
fillings longer than that, it follows LRU, and nothing is loaded ahead into it (`lead`); while it does, the scores run
along, and lead again when LRU has waited so much longer than they would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jit import compiled
from .attention import WORD, attend, compare, credit, fraction, likeness_unit, masks_of, weight_table
from .lead import STATE, follow
from .problem import Ints, Requests
from .recall import Recall, evict, first_weights, learn, serve
from .stall import Pace, Stall, bring


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is loaded ahead by forecast: objects of the next `depth` events that are at least `likely`, and at least by
    `margin` likelier than what gives way. 0 depth: nothing."""

    depth: int = 24
    likely: float = 0.2
    margin: float = 0.1


def stall_foreseen(
    requests: Requests, capacity: int | Ints, pace: Pace, policy: Recall | None = None, ahead: Ahead | None = None
) -> Stall:
    """With forecasts: evictions by `recall`'s scores, loads ahead by what followed when routing looked alike."""
    policy, ahead = policy or Recall(), ahead or Ahead()
    limits = requests.capacities(capacity)
    unit = likeness_unit(requests.width, policy.fade)
    found = _replay_foreseen(
        requests.ids,
        requests.sizes,
        limits,
        requests.resets(),
        masks_of(requests.ids, -(-requests.objects // WORD)),
        policy.remembered(requests),
        (np.uint32(fraction(policy.fade)), np.uint32(unit), np.float32(policy.step)),
        weight_table(policy.sharpness, policy.reach, unit),
        np.array(policy.decays, np.float32),
        np.array(policy.discounts, np.float32),
        np.float32(policy.target),
        policy.span,
        (float(pace.load_ns), float(pace.compute_ns), pace.warm_rounds),
        (ahead.depth, float(ahead.likely), float(ahead.margin), float(policy.slack)),
    )
    return Stall(float(found[0]), requests.rounds - pace.warm_rounds, int(found[1]), int(found[2]), int(found[3]))


@compiled
def _forecast(likeness: Any, best: Any, t: Any, table: Any, ids: Any, c: Any, depth: Any, out: Any) -> None:
    """How likely each object is in the next `depth` events: float32 [depth, objects] into `out`, by attention."""
    memory = likeness.shape[0]
    caches, width = ids.shape[1], ids.shape[2]
    count = min(t, memory)
    out[:, :] = np.float32(0)
    total = np.float32(1e-6)
    for i in range(memory - count, memory):
        gap = np.int64(best) - np.int64(likeness[i])
        if gap >= table.shape[0]:
            continue
        s = t - memory + i
        weight = table[gap]
        total += weight
        for n in range(depth):
            at = s * caches + c + 1 + n
            if at > t * caches + c:
                break
            for k in range(width):
                o = ids[at // caches, at % caches, k]
                if o >= 0:
                    out[n, o] += weight
    for n in range(depth):
        for o in range(out.shape[1]):
            out[n, o] /= total


@compiled
def _replay_foreseen(ids: Any, sizes: Any, limits: Any, begins: Any, masks: Any, memory: Any, knobs: Any, table: Any, decays: Any, discounts: Any, target: Any, span: Any, pace: Any, plan: Any) -> Any:  # fmt: skip  # noqa: E501
    rounds, caches, width = ids.shape
    objects = sizes.shape[1]
    fade, unit, step = knobs
    load_ns, compute_ns, warm = pace
    depth, likely, margin, slack = plan
    traces, features = decays.shape[0], decays.shape[0] + discounts.shape[0]
    likeness = np.zeros(memory, np.uint32)
    futures = np.zeros((caches, discounts.shape[0], memory + 1, objects), np.float32)
    past = np.zeros((caches, span + 1, features, objects), np.float32)
    weights = first_weights(caches, traces, discounts.shape[0])
    squares = np.full((caches, features), 1e-2, np.float32)
    counts = np.zeros((caches, traces, objects), np.float32)
    error = np.zeros(objects, np.float32)
    key = np.zeros((caches, objects), np.float64)
    resident = np.zeros((caches, objects), np.bool_)
    part = np.full((caches, objects), -1.0, np.float64)
    early = np.zeros((caches, objects), np.bool_)
    stamp = np.full((caches, objects), -1, np.int64)
    used = np.zeros(caches, np.int64)
    guess = np.zeros((max(1, depth), objects), np.float32)
    tried = np.zeros((max(1, depth), objects), np.bool_)
    found = np.zeros(4, np.float64)
    # Of each cache: what the scores on demand and LRU on demand would have, and who leads.
    shadows = np.zeros((caches, 2, objects), np.bool_)
    filled = np.zeros((caches, 2), np.int64)
    lead = np.zeros((caches, STATE), np.float64)
    last = np.full((caches, objects), -1.0, np.float64)
    for t in range(rounds):
        counted = 1.0 if t >= warm else 0.0
        if begins[t]:
            resident[:] = False
            shadows[:] = False
            part[:] = -1.0
            used[:] = 0
            filled[:] = 0
        for c in range(caches):
            best = compare(masks[c], t, fade, unit, likeness)
            credit(ids[:, c], t, discounts, span, futures[c])
            if t >= span:
                learn(ids[:, c], t, target, span, past[c, (t - span) % (span + 1)], weights[c], squares[c], step, error)
            now = past[c, t % (span + 1)]
            for j in range(traces):
                for o in range(objects):
                    counts[c, j, o] *= decays[j]
            for k in range(width):
                if ids[t, c, k] >= 0:
                    stamp[c, ids[t, c, k]] = t
                    last[c, ids[t, c, k]] = t * width + (width - 1 - k)
                    for j in range(traces):
                        counts[c, j, ids[t, c, k]] += np.float32(1) - decays[j]
            now[:traces] = counts[c]
            attend(likeness, best, t, table, futures[c], now[traces:])
            for o in range(objects):
                value = 0.0
                for j in range(features):
                    value += weights[c, j] * now[j, o]
                key[c, o] = value / sizes[c, o]
            mask = masks[c, :, t]
            _, scored, filled[c, 0] = serve(ids[t, c], mask, sizes[c], limits[c], shadows[c, 0], filled[c, 0], key[c], shadows[c, 0], False)  # fmt: skip  # noqa: E501
            _, recent, filled[c, 1] = serve(ids[t, c], mask, sizes[c], limits[c], shadows[c, 1], filled[c, 1], last[c], shadows[c, 1], False)  # fmt: skip  # noqa: E501
            waited = 0.0
            for k in range(width):
                o = ids[t, c, k]
                if o < 0:
                    continue
                if not resident[c, o]:
                    resident[c, o] = True
                    used[c] += sizes[c, o]
                    found[1] += counted * sizes[c, o]
                if part[c, o] < 0:
                    part[c, o] = sizes[c, o] * load_ns
                waited += part[c, o]
                part[c, o] = 0.0
                early[c, o] = False
            found[0] += counted * waited
            cost = waited if lead[c, 0] == 0.0 else scored * load_ns
            guide = np.int64(follow(lead[c], cost, recent * load_ns, slack * limits[c] * load_ns))
            while used[c] > limits[c]:
                rank = key[c] if guide == 0 else last[c]
                victim = evict(resident[c], shadows[c, 1], guide == 1, mask, rank)
                found[3] += counted * sizes[c, victim] * early[c, victim]
                resident[c, victim] = False
                part[c, victim] = -1.0
                used[c] -= sizes[c, victim]
            if depth == 0:
                continue
            _forecast(likeness, best, t, table, ids, c, depth, guess)
            tried[:] = False
            budget = compute_ns
            while budget > 0:
                n, pick = -1, -1  # the likeliest that is missing; of equals the one needed first
                for m in range(depth):
                    d = (c + 1 + m) % caches
                    if lead[d, 0] != 0.0:
                        continue
                    for o in range(objects):
                        if guess[m, o] < likely or tried[m, o] or (resident[d, o] and part[d, o] == 0.0):
                            continue
                        if n < 0 or guess[m, o] > guess[n, pick]:
                            n, pick = m, o
                if n < 0:
                    break
                tried[n, pick] = True
                d = (c + 1 + n) % caches
                if not resident[d, pick]:
                    room = limits[d] - used[d]
                    while room < sizes[d, pick]:
                        # What the forecast wants in that event is worth its likelihood too.
                        victim = -1
                        for o in range(objects):
                            if not resident[d, o] or (d == c and stamp[d, o] == t):
                                continue
                            if guess[n, o] + margin > guess[n, pick]:
                                continue
                            if victim < 0 or key[d, o] < key[d, victim]:
                                victim = o
                        if victim < 0:
                            break
                        found[3] += counted * sizes[d, victim] * early[d, victim]
                        resident[d, victim] = False
                        part[d, victim] = -1.0
                        used[d] -= sizes[d, victim]
                        room += sizes[d, victim]
                    if room < sizes[d, pick]:
                        continue
                    resident[d, pick] = True
                    used[d] += sizes[d, pick]
                    early[d, pick] = True
                    found[2] += counted * sizes[d, pick]
                budget = bring(part, d, pick, sizes[d, pick], load_ns, budget)
    return found
