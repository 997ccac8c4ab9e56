"""All kinds of faults, in the order of the table."""

from __future__ import annotations

from tests.faults import disks, files, limits, processes, threads
from tests.faults.outcome import COSTLY, FAULTS, Outcome, SkippedFaultError, try_fault

__all__ = [
    "COSTLY",
    "FAULTS",
    "Outcome",
    "SkippedFaultError",
    "disks",
    "files",
    "limits",
    "processes",
    "threads",
    "try_fault",
]
