"""Having the compiled search ready, once in a process."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]

_loaded: list[bool] = []


def load_compiled(notes: list[str], progress: Progress | None) -> tuple[bool, float]:
    """Have the compiled search ready: whether it is, and the seconds that it took. What stands in the way is noted."""
    if _loaded:
        return _loaded[0], 0.0
    began = time.monotonic()
    try:
        from .. import jit
        from . import exact
    except ImportError as error:
        _loaded.append(False)
        notes.append(f"without numba there is no exact search, only first fit and CP-SAT ({error})")
        return False, time.monotonic() - began
    if progress is not None and not jit.is_compiled(exact.kernel.search):
        progress(f"compiling the packing search, once: it is kept in {jit.cache_folder()}")
    exact.warm_up()
    notes.extend(jit.uncached)
    _loaded.append(True)
    return True, time.monotonic() - began
