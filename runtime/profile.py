"""What the events of real passes say about operators and links."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from .trace import Event


@dataclass(frozen=True, slots=True)
class Profile:
    """Median nanoseconds of each operator by id; bytes per second of each lane while it was busy, by its name."""

    operator_ns: dict[str, int]
    lane_bytes_per_s: dict[str, float]


def summarise(passes: Sequence[Sequence[Event]], units: Collection[str]) -> Profile:
    """Medians over the events of several passes; `units` are the lanes that compute."""
    operators: dict[str, list[int]] = {}
    lanes: dict[str, list[float]] = {}
    for events in passes:
        moved: dict[str, list[Event]] = {}
        for e in events:
            if e.lane in units:
                operators.setdefault(e.name, []).append(e.end_ns - e.start_ns)
            elif e.nbytes:
                moved.setdefault(e.lane, []).append(e)
        for lane, found in moved.items():
            lanes.setdefault(lane, []).append(1e9 * sum(e.nbytes for e in found) / max(1, busy_ns(found)))
    return Profile(
        {op: round(median(ns)) for op, ns in operators.items()},
        {lane: median(rates) for lane, rates in lanes.items()},
    )


def busy_ns(events: Sequence[Event]) -> int:
    """Nanoseconds in which at least one of the events was under way."""
    total, end = 0, 0
    for e in sorted(events, key=lambda e: e.start_ns):
        total += max(0, e.end_ns - max(e.start_ns, end))
        end = max(end, e.end_ns)
    return total
