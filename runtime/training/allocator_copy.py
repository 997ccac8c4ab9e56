"""The second form of the allocator, for where no compiler is at hand: the executor copies results to their places."""

from __future__ import annotations

from collections.abc import Sequence

from .slots import Allocation, RegionStats, Slot, address_of, check_slots


class CopyRegion:
    """A region whose slots nothing takes: the executor copies each result to its place.

    So a result is there twice for as long as the copy takes, and nothing bounds the workspace; `reason` says why it is
    so. glibc's thresholds let large blocks return to the system as they are freed, at the cost of page faults.
    """

    native = False

    def __init__(self, planned: memoryview, reason: str) -> None:
        self.reason = reason
        self.begin = address_of(planned)
        self.nbytes = planned.nbytes
        self._misses = 0
        self._view: memoryview | None = planned.cast("B")

    def script(self, operators: Sequence[Sequence[Slot]]) -> CopyScript:
        """As of the other form."""
        check_slots(operators, self.begin, self.nbytes)
        return CopyScript(self, operators)

    def count(self, misses: int) -> None:
        """Slots that were not taken."""
        self._misses += misses

    def stats(self) -> RegionStats:
        """Only `misses` are known."""
        return RegionStats(misses=self._misses)

    def reset_peaks(self) -> None:
        """Count from now on."""
        self._misses = 0

    def close(self) -> int:
        """Let go of the memory; no tensor was ever allocated in it."""
        self._view = None
        return 0


class CopyScript:
    """A script of the form that copies: each slot with an address is missed, every time."""

    def __init__(self, region: CopyRegion, operators: Sequence[Sequence[Slot]]) -> None:
        self._region = region
        self._slots = [tuple(slots) for slots in operators]
        self._places = [tuple(k for k, s in enumerate(slots) if s.address) for slots in self._slots]
        self._now = self._last = -1

    def enter(self) -> None:
        """Begin a pass."""
        self._now = -1

    def leave(self) -> None:
        """End it."""
        self.done()

    def at(self, t: int) -> int:
        """As of the other form."""
        missed = self.done()
        self._now = t if 0 <= t < len(self._slots) else -1
        return missed if self._now >= 0 else -1

    def done(self) -> int:
        """As of the other form."""
        self._last, self._now = self._now, -1
        missed = len(self.missed())
        self._region.count(missed)
        return missed

    def missed(self) -> tuple[int, ...]:
        """Positions of the slots with an address of the operator that ended last."""
        return self._places[self._last] if self._last >= 0 else ()

    def logging(self, on: bool) -> None:
        """Nothing can be logged."""

    def log(self) -> tuple[Allocation, ...]:
        """Nothing."""
        return ()

    def slots(self, t: int) -> tuple[Slot, ...]:
        """The slots of operator t."""
        return self._slots[t]

    def learn(self, t: int, addresses: Sequence[int]) -> tuple[bool, ...]:
        """There is nothing to be learned: false for each."""
        return tuple(False for _ in addresses)
