"""Who leads: a policy that may mislead, or LRU beside it. Both are followed in sets of numbers, and what is evicted is
what the one that leads no longer has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .experts_worth import Counts, Key

SLACK = 2.0
"""Cache fillings that whoever leads may load more than the other."""


class Lead:
    """Whose choice is followed: 0 that of the scores, 1 LRU's. Who leads changes when it has loaded `SLACK` fillings of
    `slots` more than the other since the last change (Fiat et al., 'Competitive paging algorithms', 1991)."""

    def __init__(self, slots: int) -> None:
        self.guide = 0
        self._slots = slots
        self._kept: tuple[set[int], set[int]] = (set(), set())
        self._loads = [0, 0]

    def serve(self, wanted: Sequence[int], score: Callable[[int], Key], recency: Callable[[int], Key]) -> None:
        """An event: both load what they miss of `wanted`, and evict what has the least key."""
        for number, key in enumerate((score, recency)):
            self._loads[number] += _served(self._kept[number], wanted, self._slots, key)
        led, other = self._loads[self.guide], self._loads[1 - self.guide]
        if led > other + SLACK * self._slots:
            self.guide = 1 - self.guide
            self._loads = [0, 0]
        elif led < other:
            self._loads = [0, 0]  # credit is not saved up: what was good once may become bad

    def inside(self, expert: int) -> float:
        """1.0 for what the one that leads has, which goes after all that it has not."""
        return float(expert in self._kept[self.guide])


class Guarded:
    """The worth of objects whose uses fade by `decay`, with LRU beside it."""

    def __init__(self, objects: int, decay: float, slots: int) -> None:
        self._own, self._recent = Counts(objects, decay), Counts(objects, None)
        self._lead = Lead(slots)

    @property
    def nbytes(self) -> int:
        """Some numbers of each object: nothing that counts."""
        return 0

    def begin(self) -> None:
        """An event begins."""
        self._own.begin()
        self._recent.begin()

    def count(self, expert: int, rank: int) -> None:
        """One use."""
        self._own.count(expert, rank)
        self._recent.count(expert, rank)

    def told(self, wanted: Sequence[int]) -> None:
        """What both would have loaded, and who leads from now on."""
        self._lead.serve(wanted, self._own.key, self._recent.key)

    def key(self, expert: int) -> Key:
        """First what the one that leads has no longer, then by its own rank."""
        worth = self._recent if self._lead.guide else self._own
        return (self._lead.inside(expert), *worth.key(expert))

    def rarely(self, expert: int, chance: float) -> bool:
        """By its count."""
        return self._own.rarely(expert, chance)


def _served(kept: set[int], wanted: Sequence[int], slots: int, key: Callable[[int], Key]) -> int:
    """Have `kept` serve a set as a cache of `slots` does that evicts the least `key`; how many were loaded."""
    asked = set(wanted)
    loads = len(asked - kept)
    kept |= asked
    while len(kept) > slots:
        kept.discard(min((kept - asked) or kept, key=key))
    return loads
