"""What an expert in memory is worth: the least one goes. Recency, or use counts that decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_LARGE = 1e200
"""Above this, counts are scaled back, long before they overflow."""

Key = tuple[float, ...]


class Worth(Protocol):
    """Ranks the objects of one cache of experts."""

    @property
    def nbytes(self) -> int:
        """Memory that it keeps."""
        ...

    def begin(self) -> None:
        """An event begins."""
        ...

    def count(self, expert: int, rank: int) -> None:
        """The event asks for `expert`; in its set, `rank` come before it."""
        ...

    def told(self, wanted: Sequence[int]) -> None:
        """All that the event asks for, after it was counted: at once, where that is known, else when it is over."""
        ...

    def key(self, expert: int) -> Key:
        """The least one goes."""
        ...

    def rarely(self, expert: int, chance: float) -> bool:
        """Whether it is asked for less often than in `chance` of the events, as far as that is known."""
        ...


class Counts:
    """Uses, each weighted by `decay` to the power of the events since, the least recent of equals first; with no
    `decay`, nothing but recency."""

    def __init__(self, objects: int, decay: float | None) -> None:
        self._decay = decay
        self._worth = [0.0] * objects
        self._last = [(-1, 0)] * objects
        self._scale = 1.0  # instead of multiplying every count, later uses weigh more
        self._now = 0

    @property
    def nbytes(self) -> int:
        """A number of each object: nothing that counts."""
        return 0

    def begin(self) -> None:
        """An event begins: what was counted before weighs less."""
        self._now += 1
        if self._decay is not None:
            self._scale /= self._decay
            if self._scale > _LARGE:
                self._worth = [w / self._scale for w in self._worth]
                self._scale = 1.0

    def count(self, expert: int, rank: int) -> None:
        """One use; of a set, the one of the smaller gate counts as the older."""
        self._last[expert] = (self._now, -rank)
        if self._decay is not None:
            self._worth[expert] += self._scale

    def told(self, wanted: Sequence[int]) -> None:
        """Nothing more is learned from the set."""

    def key(self, expert: int) -> Key:
        """Its count, then its last use."""
        return (self._worth[expert], *self._last[expert])

    def rarely(self, expert: int, chance: float) -> bool:
        """By its count; always, where there is none."""
        if self._decay is None:
            return True
        return self._worth[expert] <= chance * self._scale / max(1 - self._decay, 1e-9)
