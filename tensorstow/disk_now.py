"""The disk as it is when something is planned, beside the disk as it was when this box was measured.

A virtual disk, or one that others use, gives half of its rate an hour later. A plan for the old rate keeps the wrong
things in memory; so each planning for this box reads the model's own file for a moment, and plans for what it finds
where that differs much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .hosts import runs_here
from .ir.errors import InputError
from .ir.machine import Link, Machine, TierKind
from .ir.paths import cache_dir
from .ir.profiles import host_profile_path, load_machine
from .ir.program import ModelSource

OFF = 1.25
"""A rate that differs by more than this factor from the calibrated one takes its place."""


@dataclass(frozen=True, slots=True)
class DiskNow:
    """The rate of reading, in bytes per second, when this box was measured and now."""

    calibrated_bytes_per_s: float
    fresh_bytes_per_s: float

    @property
    def text(self) -> str:
        """Both numbers, for people."""
        now, then = self.fresh_bytes_per_s / 1e9, self.calibrated_bytes_per_s / 1e9
        return f"gives {now:.2f} GB/s now, {then:.2f} GB/s when this box was measured; planned for what it gives now"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "calibrated_bytes_per_s": self.calibrated_bytes_per_s,
            "fresh_bytes_per_s": self.fresh_bytes_per_s,
        }


def with_disk_now(machine: Machine, source: ModelSource | None) -> tuple[Machine, DiskNow | None]:
    """`machine` with the rate at which its disk reads now, where that is another one; else as it is, and None.

    Asked is the largest file of `source`, and only where the machine's link is the one that was measured of this box:
    what somebody names, or wrote by hand, stands as it is.
    """
    link = _measured_link(machine)
    path = None if link is None or source is None else _largest(Path(f.path) for f in source.files)
    if link is None or path is None:
        return machine, None
    from .runtime.probe_disk import probe_disk

    fresh = probe_disk(path, link.chunk_nbytes, enough=link.bytes_per_s / OFF)
    if fresh is None or link.bytes_per_s / OFF <= fresh <= link.bytes_per_s * OFF:
        return machine, None
    found = DiskNow(link.bytes_per_s, fresh)
    renewed = replace(link, bytes_per_s=fresh, source=f"{found.text} ({link.source})")
    return replace(machine, links=tuple(renewed if k is link else k for k in machine.links)), found


def _measured_link(machine: Machine) -> Link | None:
    """The link from the disk, as calibration has measured it here; None where it is another's."""
    from .runtime.calibrate import MEASURED

    profile = host_profile_path()
    if machine.fingerprint is None or not profile.exists() or not runs_here(machine):
        return None
    disks = [t.name for t in machine.tiers if t.kind is TierKind.SSD]
    link = next((k for k in machine.links if k.origin in disks), None)
    if link is None or not link.source.startswith(MEASURED):
        return None
    try:
        return link if link in load_machine("host").links else None
    except InputError:
        return None  # a profile that cannot be read any more


def _largest(paths: Iterable[Path]) -> Path | None:
    """Of the files on the disk that was measured, which is the cache's, the largest."""
    try:
        device = cache_dir().stat().st_dev
        found = [(p.stat().st_size, p) for p in paths if p.is_file() and p.stat().st_dev == device]
    except OSError:
        return None
    return max(found)[1] if found else None
