"""What followed when routing last looked like this: the kernels of `recall` and `stall`.

Every event is compared with its counterparts at earlier rounds. The *likeness* of round s to round t at cache c is the
number of objects that their sets share, summed over the events up to (t, c) in the order of time, each weighted by
`fade` to the power of the events since. It costs one population count for each remembered round and event, since the
distance t - s of a pair stays what it is as both move on. Rounds weigh exp(`sharpness` x likeness), the most alike
most, and what they were followed by, discounted over the rounds after them, is the forecast: attention over the trace,
with nothing learned. It finds repeated phrases, and tokens whose routing is a matter of the token alone.

Loops are spelt out: this is compiled code, and `compare` and `attend` are written so that it can use vectors: whole
numbers of 32 bits, no negative indices. Sets are bit masks of 32-bit words; a likeness is counted in units that keep
the greatest possible one below 2^15, so that a product with a 16-bit fraction does not overflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..jit import compiled

WORD = 32
_TOP = 1 << 15


def likeness_unit(width: int, fade: float) -> int:
    """What one shared object adds to a likeness, for sets of at most `width`."""
    return max(1, int(_TOP * (1.0 - fade) / max(1, width)))


def fraction(fade: float) -> int:
    """`fade` as a 16-bit fraction."""
    return round(fade * 65536)


def weight_table(sharpness: float, reach: float, unit: int) -> NDArray[np.float32]:
    """exp(-sharpness x d / unit) for whole differences d of likeness, as long as that is not below exp(-reach)."""
    steps = max(1, int(reach / sharpness * unit))
    return np.exp(-sharpness * np.arange(steps, dtype=np.float64) / unit).astype(np.float32)


@compiled
def masks_of(ids: Any, words: Any) -> Any:
    """Sets as bits: uint32 [caches, words, rounds]."""
    rounds, caches, width = ids.shape
    found = np.zeros((caches, words, rounds), np.uint32)
    for t in range(rounds):
        for c in range(caches):
            for k in range(width):
                if ids[t, c, k] >= 0:
                    found[c, ids[t, c, k] // 32, t] |= np.uint32(1) << np.uint32(ids[t, c, k] % 32)
    return found


@compiled
def compare(masks: Any, t: Any, fade: Any, unit: Any, likeness: Any) -> Any:
    """Bring `likeness` (uint32 [memory], the last entry is the round before t) up to an event; return the largest.

    `masks` (uint32 [words, rounds]) are those of the event's cache.
    """
    count = min(t, likeness.shape[0])
    like = likeness[likeness.shape[0] - count :]
    for i in range(count):
        like[i] = np.uint32(like[i] * fade) >> np.uint32(16)
    for w in range(masks.shape[0]):
        mask = masks[w, t]
        if mask == np.uint32(0):
            continue
        row = masks[w, t - count : t]
        for i in range(count):
            x = mask & row[i]
            x = np.uint32(x - ((x >> np.uint32(1)) & np.uint32(0x55555555)))
            x = np.uint32((x & np.uint32(0x33333333)) + ((x >> np.uint32(2)) & np.uint32(0x33333333)))
            x = np.uint32((x + (x >> np.uint32(4))) & np.uint32(0x0F0F0F0F))
            x = np.uint32(x + (x >> np.uint32(8)))
            x = np.uint32((x + (x >> np.uint32(16))) & np.uint32(63))
            like[i] = np.uint32(like[i] + np.uint32(x * unit))
    best = np.uint32(0)
    for i in range(count):
        best = max(best, like[i])
    return best


@compiled
def credit(ids: Any, t: Any, discounts: Any, span: Any, futures: Any) -> None:
    """Tell the rounds before t what followed them: `ids` [rounds, width] and `futures` of one cache.

    `futures` is float32 [discounts, memory + 1, objects], a ring over rounds; entry s holds the sum over the h rounds
    after s of (1 - d) d^(h-1) for each use.
    """
    ring = futures.shape[1]
    for g in range(discounts.shape[0]):
        gain = np.float32(1) - discounts[g]
        futures[g, t % ring, :] = np.float32(0)
        for h in range(1, min(span, t) + 1):
            for k in range(ids.shape[1]):
                if ids[t, k] >= 0:
                    futures[g, (t - h) % ring, ids[t, k]] += gain
            gain *= discounts[g]


@compiled
def attend(likeness: Any, best: Any, t: Any, table: Any, futures: Any, out: Any) -> None:
    """The weighted mean of `futures` over the rounds most alike, into `out` (float32 [discounts, objects]).

    `table` is that of `weight_table`. The round just before t has no future yet and is left out.
    """
    memory = likeness.shape[0]
    ring = futures.shape[1]
    count = min(t, memory) - 1
    out[:, :] = np.float32(0)
    if count < 1:
        return
    like = likeness[memory - 1 - count : memory - 1]
    start = (t - 1 - count) % ring
    low = np.uint32(max(0, np.int64(best) - table.shape[0]))
    total = np.float32(1e-6)
    for block in range(0, count, 64):
        part = like[block : block + 64]
        most = np.uint32(0)
        for i in range(part.shape[0]):
            most = max(most, part[i])
        if most <= low:
            continue
        for i in range(part.shape[0]):
            if part[i] <= low:
                continue
            weight = table[best - part[i]]
            total += weight
            at = start + block + i
            if at >= ring:
                at -= ring
            for g in range(out.shape[0]):
                row = futures[g, at]
                for o in range(out.shape[1]):
                    out[g, o] += weight * row[o]
    for g in range(out.shape[0]):
        for o in range(out.shape[1]):
            out[g, o] /= total
