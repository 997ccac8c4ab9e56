"""`compiled` for this folder: what is kept of its kernels changes with any of them, as one is compiled into another."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ..packing import jit


@cache
def _digest() -> str:
    """Changes with the code of this folder's kernels: numba looks at the file of the outermost function alone."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        content = path.read_bytes()
        if b"\n@compiled" in content:
            found.update(content)
    return "caching-" + found.hexdigest()[:12]


def compiled(function: jit.F) -> jit.F:
    """`function` compiled at its first call and kept, as by `packing.jit.compiled`."""
    before = jit.config.CACHE_DIR
    jit.config.CACHE_DIR = str((Path(before) if before else jit.cache_folder()) / _digest())
    try:
        return jit.compiled(function)
    finally:
        jit.config.CACHE_DIR = before
