"""How many threads this process computes with: decided once, as the engine's pool can be made only once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .errors import InputError

_fixed: int | None = None


def physical_cores() -> int:
    """Cores this process may run on, hardware threads of one core counted once."""
    cores: set[str] = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def fix_threads(threads: int | None, make_pool: Callable[[int], None]) -> int:
    """Make the engine's pool of `threads` threads (None: what it has, else one per physical core) by `make_pool`, once
    for all who ask; returns how many it has.

    Raises InputError where the process has a pool of another size already, or one that is not ours.
    """
    global _fixed
    if _fixed is None:
        wanted = threads or physical_cores()
        try:
            make_pool(wanted)
        except Exception as error:  # engines have exception types of their own
            raise InputError(
                f"the engine's thread pool was made by other code of this process, so {wanted} threads cannot be set; "
                "use tensorstow before that code, or in a process of its own"
            ) from error
        _fixed = wanted
    if threads is not None and threads != _fixed:
        raise InputError(
            f"this process already computes with {_fixed} threads, {threads} were asked for; the engine fixes the "
            "number once: start a new process for another"
        )
    return _fixed
