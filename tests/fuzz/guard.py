"""What a reader may do with a file of a stranger: refuse it in words, or read it; no more memory, no other file."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorstow.ir.errors import TensorstowError

ROOM_NBYTES = 512 << 20
"""What a reader may take beyond what the process has: many times what any file here holds."""

_opened: list[str] | None = None
_hooked = False


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        _opened.append(os.fsdecode(arguments[0]))


@contextmanager
def opened_files() -> Generator[list[str]]:
    """Every path that Python opens in the block (an audit hook, which cannot be removed and rests outside of it)."""
    global _opened, _hooked
    if not _hooked:
        sys.addaudithook(_note)
        _hooked = True
    _opened = found = list[str]()
    try:
        yield found
    finally:
        _opened = None


@contextmanager
def little_memory() -> Generator[None]:
    """The process may take ROOM_NBYTES of addresses more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_NBYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def harm_of(read: Callable[[Path], object], path: Path, allowed: Path) -> str:
    """What harm reading `path` did, in words: an error that is none of ours, one that comes of memory running out, a
    file opened outside of the folder `allowed`. Empty where none: it was read, or refused."""
    with opened_files() as opened, little_memory():
        try:
            read(path)
        except TensorstowError as error:
            if isinstance(error.__cause__, MemoryError):
                return f"took all memory that it got: {error}"
            if not str(error).strip():
                return "refused without a word"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the fuzzer looks for
            return f"{type(error).__name__}: {error}"
    outside = [p for p in opened if not _inside(p, allowed)]
    return f"opened {outside[0]}" if outside else ""


SYSTEM = ("/proc/", "/sys/fs/cgroup/", "/sys/devices/system/cpu/", "/dev/null")
"""What is asked about memory and cores."""


def _inside(path: str, allowed: Path) -> bool:
    if path.startswith((*SYSTEM, sys.prefix, sys.base_prefix)) or path.endswith((".py", ".pyc", ".so")):
        return True  # modules that are imported on the way
    return Path(path).resolve().is_relative_to(allowed.resolve())
