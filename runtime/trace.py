"""What happened when, for a trace viewer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """`name` occupied `lane` in [start_ns, end_ns) of `time.perf_counter_ns`; `nbytes` moved, 0 for a kernel.

    Lanes are the units' names, the links' lanes, and 'wait' for the time in which a step waited for a transfer.
    """

    lane: str
    name: str
    start_ns: int
    end_ns: int
    nbytes: int = 0
