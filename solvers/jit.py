"""Compilation by numba, and where its results are kept.

The cache lies in `$NUMBA_CACHE_DIR` if that is set, else in the project's cache directory (`$TENSORSTOW_CACHE`,
`$XDG_CACHE_HOME/tensorstow` or `~/.cache/tensorstow`, the rule of `ir.paths`, which solvers may not import) under
`numba`. Where nothing can be written the code is compiled anew in each process: `uncached` then says why. A package
installed read-only is no obstacle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.core.config

F = TypeVar("F", bound=Callable[..., Any])

config: Any = numba.core.config

uncached: list[str] = []
"""Why compiled code could not be kept; empty where it could."""


def cache_folder() -> Path:
    """The folder that keeps compiled code; it need not exist."""
    if own := os.environ.get("TENSORSTOW_CACHE"):
        return Path(own) / "numba"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorstow" / "numba"


@cache
def _sources_digest(folder: Path) -> str:
    """Changes with the code of a folder's kernels: what numba keeps of a function has others compiled into it, and
    numba looks at the function's own file alone."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        if b"jit import compiled" in content:
            found.update(content)
    return found.hexdigest()[:12]


def compiled(function: F) -> F:
    """`function` compiled at its first call, without the interpreter's lock, and kept on disk if that is possible.

    What it calls of other compiled functions lies in its own folder, and is kept with it.
    """
    before = config.CACHE_DIR
    try:
        sources = Path(function.__code__.co_filename).parent
        folder = (Path(before) if before else cache_folder()) / _sources_digest(sources)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "may not be written", str(folder))
        config.CACHE_DIR = str(folder)
        return cast("F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except (OSError, RuntimeError) as error:  # RuntimeError: numba found no place to cache
        if not uncached:
            uncached.append(f"compiled code is not kept: {error}")
        return cast("F", numba.njit(nogil=True, error_model="numpy")(function))
    finally:
        config.CACHE_DIR = before


def is_compiled(function: Any) -> bool:
    """Whether a first call will not have to compile: this process has done so, or finds it in the cache.

    A file of the cache may be out of date: this answer serves a message, nothing else.
    """
    if function.signatures:
        return True
    cache = getattr(function, "_cache", None)
    folder = getattr(cache, "cache_path", None)
    if folder is None:
        return False
    return any(Path(folder).glob(f"*{function.py_func.__name__}-*.nbi"))
