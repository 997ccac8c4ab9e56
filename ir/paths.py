"""Where tensorstow keeps what it can make again, and how it writes files."""

from __future__ import annotations

import fcntl
import glob
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import ExecutionError

_UNFINISHED = ".unfinished"
"""How the names of files end that are not yet what they will be."""


def cache_dir() -> Path:
    """The cache: `$TENSORSTOW_CACHE`, else `$XDG_CACHE_HOME/tensorstow`, else `~/.cache/tensorstow`. Made if absent.

    Raises ExecutionError where there is no such folder and none can be made.
    """
    own = os.environ.get("TENSORSTOW_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(own) if own else Path(home) / "tensorstow"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        named = "TENSORSTOW_CACHE names" if own else "without TENSORSTOW_CACHE it is"
        raise ExecutionError(
            f"there is no folder for the cache: {named} '{path}': {error.strerror or error}; set TENSORSTOW_CACHE to a "
            "folder that can be written"
        ) from error
    return path


def unwritable(folder: Path, error: OSError) -> ExecutionError:
    """The error for a cache in whose `folder` something cannot be made."""
    return ExecutionError(
        f"the cache cannot be written: '{folder}': {error.strerror or error}; set TENSORSTOW_CACHE to a folder that "
        "can be, on a disk with room"
    )


@contextmanager
def cache_scratch() -> Generator[Path]:
    """A new folder in the cache, which is removed with what is in it when the block ends. Raises ExecutionError where
    none can be made."""
    folder = cache_dir()
    try:
        made = tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    with made as name:
        yield Path(name)


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """A new binary file that becomes `path` when the block ends well, and disappears when it does not.

    Where its process is killed, '.NAME.*.unfinished' stays beside it, until somebody writes `path` again.
    """
    _remove_left(path)
    descriptor, name = _locked(path)
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


def _locked(path: Path) -> tuple[int, str]:
    """A new file beside `path`, open, with a lock that ends with its process: one without is that of a dead process."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
        with suppress(OSError):  # a file system without locks: what is left there stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, name
        os.close(descriptor)  # somebody found it before it was locked, and took it for left


def _remove_left(path: Path) -> None:
    """Remove what killed writers of `path` have left. What cannot be removed stays: it is in nobody's way."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_UNFINISHED}"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
            finally:
                os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(content)
