"""What memory the process has, may have, and gives back."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from mmap import MADV_NOHUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

from ..ir.errors import ExecutionError

# glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MMAP_MAX = 65536
_DEFAULT_THRESHOLD = 128 << 10
_MAP_NORESERVE = 0x4000  # Linux's; the module mmap has no name for it before Python 3.13


def peak_rss_nbytes() -> int:
    """The most bytes the process ever had resident (VmHWM of /proc/self/status), or had since `reset_peak`."""
    return _status_nbytes("VmHWM")


def current_rss_nbytes() -> int:
    """Bytes the process has resident now (VmRSS); the kernel counts them to some hundred KiB."""
    return _status_nbytes("VmRSS")


def resident_nbytes() -> dict[str, int]:
    """The same by what lies there: 'anonymous' memory, pages of 'files' that are mapped, memory 'shared' with others;
    without those that the kernel does not tell.

    It maps the pages of a library around the one that is touched, where they are in memory anyway: the second is partly
    what others have read.
    """
    kinds = {"anonymous": "RssAnon", "files": "RssFile", "shared": "RssShmem"}
    status = _text(Path("/proc/self/status"))
    found = {kind: re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE) for kind, key in kinds.items()}
    return {kind: int(match[1]) << 10 for kind, match in found.items() if match}


def reset_peak() -> bool:
    """Make the present resident set the peak, proc(5); False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def available_nbytes(root: Path = Path("/")) -> int:
    """Bytes that may still become resident: the least of MemAvailable and the room in each memory cgroup around us.

    The page cache that a cgroup is charged with counts as room, for the kernel drops it first. `root` is where /proc
    and /sys are looked for.
    """
    rooms = [room for _, room in _cgroups(root)]
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if found:
        rooms.append(int(found[1]) << 10)
    if not rooms:
        raise ExecutionError(f"'{root / 'proc/meminfo'}' does not tell MemAvailable, so no memory can be promised")
    return max(0, min(rooms))


def limit_nbytes(root: Path = Path("/")) -> int | None:
    """The least limit of the memory cgroups around us: who has more resident is killed. None where there is none."""
    return min((limit for limit, _ in _cgroups(root)), default=None)


def settle_allocator(*, mapped_nbytes: int = _DEFAULT_THRESHOLD, trimmed_nbytes: int = _DEFAULT_THRESHOLD) -> None:
    """Fix glibc's thresholds, by default where they begin, so that large freed blocks return to the system for good.

    By default glibc raises them to the largest block that was freed, up to 32 MiB, and then keeps that much and more:
    what stays resident would depend on what ran before. (Kernels' workspaces have an allocator of their own.) Without
    effect where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mapped_nbytes)
        mallopt(_M_TRIM_THRESHOLD, trimmed_nbytes)


@contextmanager
def kept_heap() -> Generator[None]:
    """While this lasts, memory that is freed stays with the process, so that what is taken has been touched before.

    Afterwards it returns to the system, and the thresholds are those of `settle_allocator`. Without effect where the C
    library is another than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, _MMAP_MAX)
        settle_allocator()
        trim_heap()


def trim_heap() -> None:
    """Give the free memory of the heap back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def untouched(nbytes: int) -> mmap:
    """`nbytes` zeros that take memory only where they are written to, a page at a time; gone with their last user."""
    reserved = mmap(-1, nbytes, flags=MAP_PRIVATE | MAP_ANONYMOUS | _MAP_NORESERVE)
    with suppress(OSError):  # a kernel without huge pages
        reserved.madvise(MADV_NOHUGEPAGE)  # else a byte that is written takes two megabytes
    return reserved


def _status_nbytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", _text(Path("/proc/self/status")), re.MULTILINE)
    if not found:
        raise ExecutionError(f"'/proc/self/status' has no {key}, so resident memory cannot be measured here")
    return int(found[1]) << 10


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Of our memory cgroup and all above it, cgroup v1 and v2: the limit, and limit minus usage, plus page cache."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, prefix = root / "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            limit, usage, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:depth])
            most, now = _text(folder / limit).strip(), _text(folder / usage).strip()
            if most.isdigit() and now.isdigit():
                cache = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
                yield int(most), int(most) - int(now) + sum(map(int, cache))
