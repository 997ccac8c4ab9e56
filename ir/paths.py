"""Where tensorstow keeps what it can make again, and how it writes files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def cache_dir() -> Path:
    """The cache: `$TENSORSTOW_CACHE`, else `$XDG_CACHE_HOME/tensorstow`, else `~/.cache/tensorstow`. Made if absent."""
    own = os.environ.get("TENSORSTOW_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(own) if own else Path(home) / "tensorstow"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """A new binary file that becomes `path` when the block ends well, and disappears when it does not."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(content)
