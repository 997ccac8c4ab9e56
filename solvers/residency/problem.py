"""What stays in the fast tier between uses: the problem and its fluid solution. DESIGN 4.1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two consecutive uses of `item`: used at step `start`, next at step `end`; `nbytes` of it.

    `clean`: a copy lies below whenever the gap begins, so that dropping it needs no store. Otherwise what is dropped
    must be stored, unless it was during an earlier gap of the same item in the same pass.

    An item with a dirty gap that reaches into the next pass is written in every pass, last at the start of the gap that
    is marked `written` (of the one that reaches over, if none is); what is dropped of it in any dirty gap must be
    stored between that write and then.

    In a periodic problem `end` may reach T and beyond: step `end` - T of the next pass; an item used once a pass has a
    gap (a, a + T). In other problems `start` may be -1: the item lies below when the pass begins and must be loaded.

    Between adjacent steps (`end` == `start` + 1) an item is an operand of both and cannot be absent; such a gap
    matters only for an item that is not clean, which may be stored meanwhile.
    """

    item: int
    nbytes: int
    start: int
    end: int
    clean: bool
    written: bool = False


@dataclass(frozen=True, slots=True)
class ResidencyProblem:
    """Two tiers, an order of T steps, and what may leave the fast tier between its uses.

    `base_nbytes`[t] are the operands and outputs of step t, present throughout it. Rates are bytes per second of each
    direction; with `shared_channel` the times of both add up. `periodic`: passes follow one another for ever.

    Raises:
        ValueError: numbers that are negative, not finite or do not match one another, overlapping gaps of an item.
    """

    durations_ns: tuple[int, ...]
    base_nbytes: tuple[int, ...]
    gaps: tuple[Gap, ...]
    capacity_nbytes: int
    load_bytes_per_s: float
    store_bytes_per_s: float
    periodic: bool
    shared_channel: bool = False

    def __post_init__(self) -> None:
        if len(self.durations_ns) != len(self.base_nbytes):
            raise ValueError(f"{len(self.durations_ns)} durations for {len(self.base_nbytes)} steps' bytes")
        for word, numbers in (("duration", self.durations_ns), ("bytes", self.base_nbytes)):
            for t, number in enumerate(numbers):
                if number < 0:
                    raise ValueError(f"step {t}: negative {word} {number}")
        if self.capacity_nbytes < 0:
            raise ValueError(f"negative capacity {self.capacity_nbytes}")
        for word, rate in (("load", self.load_bytes_per_s), ("store", self.store_bytes_per_s)):
            if not 0 <= rate < float("inf"):
                raise ValueError(f"{word} rate {rate} is not a finite number of bytes per second")
        self._check_gaps()

    def _check_gaps(self) -> None:
        steps = len(self.durations_ns)
        for g, gap in enumerate(self.gaps):
            if gap.nbytes < 0:
                raise ValueError(f"gap {g} of item {gap.item}: negative size {gap.nbytes}")
            if self.periodic and not (0 <= gap.start < steps and gap.start < gap.end <= gap.start + steps):
                raise ValueError(f"gap {g} of item {gap.item}: [{gap.start}, {gap.end}) is not within {steps} steps")
            if not self.periodic and not -1 <= gap.start < gap.end < steps:
                raise ValueError(f"gap {g} of item {gap.item}: [{gap.start}, {gap.end}) is not within {steps} steps")
        last: dict[int, Gap] = {}
        for gap in sorted(self.gaps, key=lambda gap: (gap.item, gap.start, gap.end)):
            before = last.get(gap.item)
            if before is not None and before.end > gap.start:
                raise ValueError(
                    f"item {gap.item}: gaps ({before.start}, {before.end}) and ({gap.start}, {gap.end}) overlap"
                )
            last[gap.item] = gap

    def covers(self, gap: Gap, step: int) -> bool:
        """Whether the gap's item is unused and alive throughout `step`."""
        return gap.start < step < gap.end or (self.periodic and gap.start < step + len(self.durations_ns) < gap.end)


@dataclass(frozen=True, slots=True)
class ResidencySolution:
    """A fluid timeline. Per gap fractions in [0, 1]; per step bytes, and nanoseconds of waiting before it.

    `absent`: what is not in the fast tier during the gap. `stored`: what is stored when the gap begins, and holds
    memory until it is; `ahead`: what is stored while it is kept, to be dropped in a later gap for nothing.
    Each of the transfers per step stands once for the wait before the step and once for the step itself.
    `memory_price`[t] is what one more byte of capacity at step t alone would save, in seconds per byte.
    """

    absent: tuple[float, ...]
    stored: tuple[float, ...]
    ahead: tuple[float, ...]
    stall_ns: tuple[float, ...]
    loaded_waiting: tuple[float, ...]
    loaded_running: tuple[float, ...]
    stored_waiting: tuple[float, ...]
    stored_running: tuple[float, ...]
    ahead_waiting: tuple[float, ...]
    ahead_running: tuple[float, ...]
    memory_price: tuple[float, ...]
