"""How fast a disk is at this moment, by reading a little of a file that lies there anyway."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from ..ir.errors import ExecutionError
from .calibrate_disk import read_rate
from .directio import BLOCK, DirectFile
from .lanes import REQUESTS
from .pages import Pages

PROBE_S = 0.2
LOOKS, PAUSE_S = 4, 0.2
"""So often is a disk read that seems to be slow, with pauses: somebody else may use it for a moment, or it has just
been written to; and what the file's bytes come from when they are read again is what they come from in each pass but
the first."""
LEAST_NBYTES = 64 << 20
"""A smaller file is read in less time than says anything; it is also one that hardly matters."""


def probe_disk(path: Path, chunk: int, *, enough: float = 0.0, seconds: float = PROBE_S) -> float | None:
    """Bytes per second that the file `path` gives in requests of `chunk` bytes, several at once as in a pass.

    Read are ranges from a random place on, and into pages like those of an arena: into others a disk may read at half
    the rate. A rate below `enough` is asked for again, of the same ranges; the best counts. None where nothing can be
    told: a file that is too small or cannot be read, or a filesystem without O_DIRECT, where the page cache may answer
    instead.
    """
    chunk = max(chunk // BLOCK, 1) * BLOCK
    try:
        file = DirectFile.open_whole(path, "probe another")
    except OSError:
        return None
    targets = [Pages(chunk) for _ in range(REQUESTS)]
    try:
        for target in targets:  # as an arena's are before anything is read: a large page takes a while to be made
            target.populate()
        count = (file.nbytes or 0) // chunk
        if not file.direct or count * chunk < max(LEAST_NBYTES, REQUESTS * chunk):
            return None
        first = random.randrange(count)  # no seed: one that many plans have read would tell of another layer
        offsets = [(first + i) % count * chunk for i in range(count)]
        best = 0.0
        for look in range(LOOKS):
            if look:
                time.sleep(PAUSE_S)
            rate = read_rate(file, targets, iter(offsets), chunk, stop=_after(seconds)).bytes_per_s
            best = max(best, rate)
            if best >= enough:
                break
        return best
    except (ExecutionError, OSError):
        return None  # whoever needs the file will say what is wrong with it
    finally:
        file.close()
        for target in targets:
            target.close()


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end
