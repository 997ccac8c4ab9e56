"""The policy `recall` while a module runs: what followed when routing last looked like this.

It is that of `solvers/caching/recall.py`, which says how it works and where it comes from, event by event in numpy: the
likeness of earlier passes to this one, what followed the most alike of them, use counts at several decays, and a linear
model of these for each layer that learns as it goes. Beside the scores' own choice LRU's is followed in sets of
numbers, and what is evicted is what the better one of the two no longer has (`experts_lead`): so where scores mislead,
the loads exceed LRU's by a few cache fillings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...ir.program import ExpertCaching
from .experts_lead import Guarded, Lead
from .experts_worth import Counts, Key, Worth

FADE = 0.9
SHARPNESS = 0.5
REACH = 3.0
DECAYS = np.array((0.5, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999), np.float32)
DISCOUNTS = np.array((0.7, 0.9), np.float32)
TARGET = 0.7
SPAN = 8
STEP = 0.005
MOST_ALIKE = 256
"""Of more passes that are alike, the rest weighs little: these say what follows."""
WORD = 64

_AHEAD = np.arange(1, SPAN + 1)
_GAINS = ((1 - DISCOUNTS)[:, None] * DISCOUNTS[:, None] ** (_AHEAD - 1)).astype(np.float32)
_AIM = ((1 - TARGET) * TARGET ** (_AHEAD - 1)).astype(np.float32)


def recall_nbytes(experts: Sequence[int], memory: int) -> int:
    """Memory that layers of so many experts take where `memory` passes are remembered."""
    each = (2 * memory * 8 * -(-e // WORD) + (memory + SPAN + 2) * e for e in experts)
    return sum(each) + 4 * memory


def make_worths(caching: ExpertCaching) -> list[Worth]:
    """By cache of `caching`, in the order of its layers, what its experts are ranked by."""
    counts = [layer.experts for layer in caching.layers]
    if caching.shared:
        return [_counted(sum(counts), caching, guarded=True)]
    if not caching.memory:
        return [_counted(layer.experts, caching, guarded=not layer.fused) for layer in caching.layers]
    likeness = Likeness(counts, caching.memory)
    return [Recall(likeness, number, n, min(caching.slots, n)) for number, n in enumerate(counts)]


def _counted(objects: int, caching: ExpertCaching, *, guarded: bool) -> Worth:
    """Decayed counts; `guarded` where nothing but them may be planned: where `recall` may, so may LRU."""
    if guarded and caching.decay is not None:
        return Guarded(objects, caching.decay, min(caching.slots, objects))
    return Counts(objects, caching.decay)


class Likeness:
    """How much each of the last `memory` passes is like the one at hand, over all layers."""

    def __init__(self, experts: Sequence[int], memory: int) -> None:
        self.memory = memory
        self.now = -1
        self.like = np.zeros(memory, np.float32)
        """Entry j is of the pass `memory` - j before this one: the distance of a pair stays what it is."""
        self._layer = len(experts)
        words = [-(-e // WORD) for e in experts]
        # each row twice, so that the last `memory` passes lie in one piece
        self._masks = [np.zeros((2 * memory, w), np.uint64) for w in words]
        self._rows = memory + SPAN + 1
        self._used = [np.zeros((self._rows + 1, e), np.uint8) for e in experts]

    @property
    def nbytes(self) -> int:
        """Memory of what is remembered."""
        return self.like.nbytes + sum(a.nbytes for a in (*self._masks, *self._used))

    def see(self, layer: int, wanted: Sequence[int]) -> None:
        """`layer` of this pass, or of the next one, asks for `wanted`."""
        if layer <= self._layer:
            self.now += 1
            for masks, used in zip(self._masks, self._used, strict=True):
                masks[self.now % self.memory] = masks[self.now % self.memory + self.memory] = 0
                used[self.now % self._rows] = 0
        self._layer = layer
        masks, at = self._masks[layer], self.now % self.memory
        mask = np.zeros(masks.shape[1], np.uint64)
        for e in wanted:
            mask[e // WORD] |= np.uint64(1 << (e % WORD))
        self.like *= np.float32(FADE)
        # the row of this pass is that of the pass `memory` ago: what is forgotten is nobody's
        before = masks[at + 1 : at + self.memory]
        self.like[1:] += np.bitwise_count(before & mask).sum(axis=1, dtype=np.float32)
        masks[at] = masks[at + self.memory] = mask
        self._used[layer][self.now % self._rows][list(wanted)] = 1

    def followed(self, layer: int) -> NDArray[np.float32]:
        """What followed the passes most alike, by discount: float32 [discounts, experts]."""
        used = self._used[layer]
        known = min(self.now, self.memory - 1)
        if known < 2:
            return np.zeros((len(DISCOUNTS), used.shape[1]), np.float32)
        like = self.like[self.memory - known :]
        weights = np.exp(SHARPNESS * (like[:-1] - like.max()))  # of the pass just before, nothing has followed yet
        alike = np.flatnonzero(weights > np.exp(-REACH))
        if len(alike) > MOST_ALIKE:
            alike = alike[np.argpartition(-weights[alike], MOST_ALIKE)[:MOST_ALIKE]]
        if not len(alike):
            return np.zeros((len(DISCOUNTS), used.shape[1]), np.float32)
        after = (self.now - known + alike)[:, None] + _AHEAD
        rows = np.where(after <= self.now, after % self._rows, self._rows)  # the last row stays empty
        weights = weights[alike]
        seen = used[rows].reshape(len(alike), -1).astype(np.float32)
        return (_GAINS @ (weights @ seen).reshape(SPAN, -1)) / np.float32(weights.sum())

    def came(self, layer: int) -> NDArray[np.float32]:
        """The discounted uses in the last `SPAN` passes: what was to be foreseen before them."""
        rows = (self.now - SPAN + _AHEAD) % self._rows
        return _AIM @ self._used[layer][rows].astype(np.float32)


class Recall:
    """The worth of one layer's experts, `slots` of which lie in memory; `likeness` is that of all layers."""

    def __init__(self, likeness: Likeness, layer: int, experts: int, slots: int) -> None:
        features = len(DECAYS) + len(DISCOUNTS)
        self._likeness = likeness
        self._layer = layer
        self._counts = np.zeros((len(DECAYS), experts), np.float32)
        self._past = np.zeros((SPAN + 1, features, experts), np.float32)
        self._weights = np.zeros(features, np.float32)
        self._weights[len(DECAYS) // 2], self._weights[len(DECAYS)] = 0.2, 1.0
        self._squares = np.full(features, 1e-2, np.float32)
        self._recency = Counts(experts, None)
        self._scores = [0.0] * experts
        self._lead = Lead(slots)

    @property
    def nbytes(self) -> int:
        """Of what is remembered of the layer alone; of all layers' passes it counts with the first one."""
        return self._past.nbytes + (self._likeness.nbytes if self._layer == 0 else 0)

    def begin(self) -> None:
        """An event begins."""
        self._recency.begin()

    def count(self, expert: int, rank: int) -> None:
        """One use."""
        self._recency.count(expert, rank)

    def told(self, wanted: Sequence[int]) -> None:
        """Learn from what came, and score every expert anew."""
        self._likeness.see(self._layer, wanted)
        now = self._likeness.now
        if now >= SPAN:
            self._learn(self._past[(now - SPAN) % (SPAN + 1)])
        self._counts *= DECAYS[:, None]
        self._counts[:, list(wanted)] += (1 - DECAYS)[:, None]
        features = self._past[now % (SPAN + 1)]
        features[: len(DECAYS)] = self._counts
        features[len(DECAYS) :] = self._likeness.followed(self._layer)
        self._scores = (self._weights @ features).tolist()
        self._lead.serve(wanted, self._score, self._recency.key)

    def _learn(self, past: NDArray[np.float32]) -> None:
        error = self._likeness.came(self._layer) - self._weights @ past
        slopes = past @ error
        self._squares += slopes * slopes
        self._weights += STEP * slopes / np.sqrt(self._squares)

    def _score(self, expert: int) -> Key:
        return (self._scores[expert], float(expert))

    def key(self, expert: int) -> Key:
        """First what the one that leads has no longer, then by its own rank."""
        return (self._lead.inside(expert), *(self._recency.key if self._lead.guide else self._score)(expert))

    def rarely(self, expert: int, chance: float) -> bool:
        """By its score, which foresees its discounted uses."""
        return self._scores[expert] <= chance
