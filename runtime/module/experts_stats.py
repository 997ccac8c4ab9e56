"""What a cache of experts has done: counted as it goes, noted event by event, summed up over passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass


@dataclass(slots=True)
class ExpertStats:
    """What a cache has done: sets that were asked for, experts of them that were here and that had to be loaded, those
    loaded ahead and those of them that were used; bytes read, time waited for them, and time taken to decide: to rank
    what is there, and to foresee what the next layer asks for."""

    events: int = 0
    hits: int = 0
    misses: int = 0
    ahead: int = 0
    ahead_used: int = 0
    read_nbytes: int = 0
    stalled_ns: int = 0
    decided_ns: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of what was asked for that was here, or on its way."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


Noted = tuple[int, ExpertStats]
"""A layer's number, and what all layers together have done when its event is over."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Passes as they ran: by layer, nanoseconds that none of them waited longer for its experts; the share of uses that
    were hits; bytes read in a pass, in the mean."""

    wait_ns: tuple[int, ...]
    hit_rate: float
    read_nbytes: float


def since(before: ExpertStats, now: ExpertStats) -> ExpertStats:
    """What was done between the two."""
    return ExpertStats(*(n - b for n, b in zip(astuple(now), astuple(before), strict=True)))


def seen_in(noted: Sequence[Noted], layers: int, passes: int) -> Seen:
    """Of `passes` alike, and one before them that does not count. `noted` begins with what stood before that one, of no
    layer.

    A layer that is called several times in a pass may have waited for the longest of its calls in the same one.
    """
    stalled = [stats.stalled_ns for _, stats in noted]
    begin = (len(noted) - 1) // (passes + 1)
    waits: list[list[int]] = [[] for _ in range(layers)]
    for at in range(begin + 1, len(noted)):
        waits[noted[at][0]].append(stalled[at] - stalled[at - 1])
    done = since(noted[begin][1], noted[-1][1])
    return Seen(
        tuple(sum(sorted(each)[-max(1, -(-len(each) // passes)) :]) for each in waits),
        done.hit_rate,
        done.read_nbytes / passes,
    )
