"""When XLA's memory space assignment lets an asynchronous copy run: the cost-analysis prefetch interval picker.

Source: `CostAnalysisPrefetchIntervalPicker` in xla/service/memory_space_assignment/prefetch_interval_picker.cc and
`AsynchronousCopyResource` in algorithm.cc of openxla/xla. Its copy that starts at logical time s runs behind the
instructions s + 1 up to the use; in our terms it starts at instant s + 1. Nest levels do not exist here: a pass is one
computation. All times are nanoseconds; instants below 0 lie in the pass before, those above T in the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXPLORED_DECREASING = 100
"""`kNumExploredDecreasingIntervals`: how many intervals are tried once only longer ones are left."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """Elapsed computing over the time of the copy: `least`, below which a prefetch is not worth it; `preferred`, where
    the search begins. `most` limits a stay without copies or a prefetch: elapsed over the time to copy all the memory.

    The values are those of XLA's own runner and tests (0.8, 1.5, 10).
    """

    least: float = 0.8
    preferred: float = 1.5
    most: float = 10.0


class Clock:
    """Computing time between two instants of a periodic order."""

    def __init__(self, durations_ns: Sequence[int]) -> None:
        self.steps = len(durations_ns)
        self._sums: NDArray[np.int64] = np.concatenate([[0], np.cumsum(np.tile(durations_ns, 4))]).astype(np.int64)

    def elapsed(self, start: int, end: int) -> int:
        """Nanoseconds of the steps `start` to `end` - 1, for -T <= start <= end <= 3 T."""
        return int(self._sums[end + self.steps] - self._sums[start + self.steps])

    def to(self, earliest: int, latest: int, end: int) -> NDArray[np.int64]:
        """`elapsed(s, end)` for every s from `earliest` to `latest`."""
        return self._sums[end + self.steps] - self._sums[earliest + self.steps : latest + self.steps + 1]


def prefetch_starts(
    clock: Clock, earliest: int, end: int, copy_ns: float, most_ns: float, ratios: Ratios
) -> Iterator[int]:
    """Start instants of a copy of `copy_ns` that must be complete at `end`, in the order in which XLA tries them.

    It begins with the interval whose elapsed time is nearest to `preferred` copies and goes on alternately one later,
    one earlier. Where no later ones are left the earlier ones are taken in hundredths of the longest interval.
    Intervals shorter than `least` copies or longer than `most_ns` are never tried.
    """
    if earliest > end:
        return
    elapsed = clock.to(earliest, end, end)
    enough = np.flatnonzero(elapsed >= ratios.least * copy_ns)
    if not len(enough):
        return
    last = int(enough[-1])
    short = np.flatnonzero(elapsed[: last + 1] <= most_ns)
    first = int(short[0]) if len(short) else last
    best = first + int(np.argmin(np.abs(ratios.preferred * copy_ns - elapsed[first : last + 1])))
    later, earlier, ahead = best + 1, best, False
    while later <= last or earlier >= first:
        if ahead:
            yield earliest + later
            later += 1
            ahead = earlier < first
            continue
        yield earliest + earlier
        target = float(elapsed[earlier]) + float(elapsed[first]) / EXPLORED_DECREASING if later > last else 0.0
        earlier -= 1
        while earlier >= first and elapsed[earlier] < target:
            earlier -= 1
        ahead = later <= last


def eviction_end(clock: Clock, start: int, latest: int, copy_ns: float, ratios: Ratios, retry: int) -> int:
    """`PreferredEvictionEndTime`: the first instant by which `preferred` copies' time has elapsed, more in each retry
    (`kEvictionRetryMultiplier`); at most `latest`."""
    wanted = (1 + 2.0 * retry) * ratios.preferred * copy_ns
    return next((e for e in range(start + 1, latest) if clock.elapsed(start, e) >= wanted), latest)


class CopyResource:
    """What is left of each step's time for copies behind it. A copy takes from the steps of its interval, the earliest
    first; one that was granted is not moved again (XLA may delay earlier ones within their own intervals)."""

    def __init__(self, durations_ns: Sequence[int]) -> None:
        self._left: NDArray[np.int64] = np.asarray(durations_ns, dtype=np.int64).copy()

    def take(self, start: int, end: int, needed_ns: int) -> list[tuple[int, int]] | None:
        """Grants of (step, nanoseconds) behind the steps `start` to `end` - 1, or None where too little is left."""
        steps = np.arange(start, end) % max(len(self._left), 1)
        before = np.concatenate([[0], np.cumsum(self._left[steps])])
        if before[-1] < needed_ns:
            return None
        shares = np.diff(np.minimum(before, needed_ns))
        grants = [(int(t), int(n)) for t, n in zip(steps, shares, strict=True) if n]
        self._left[steps] -= shares
        return grants

    def give(self, grants: list[tuple[int, int]]) -> None:
        """Return what was granted."""
        for step, nanoseconds in grants:
            self._left[step] += nanoseconds
