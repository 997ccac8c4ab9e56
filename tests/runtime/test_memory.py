"""Tests of runtime/memory.py and runtime/arena.py."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime import arena as arena_module
from tensorstow.runtime import memory
from tensorstow.runtime.arena import Arena

MEMINFO = "MemTotal: 1000 kB\nMemAvailable:     900 kB\n"


def _system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_available_is_that_of_the_system_without_a_cgroup(tmp_path: Path) -> None:
    assert memory.available_nbytes(_system(tmp_path, "", {})) == 900 << 10


def test_available_is_the_room_of_the_tightest_cgroup_v2_with_its_page_cache(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/memory.max": "500000",
        "sys/fs/cgroup/a/memory.current": "450000",
        "sys/fs/cgroup/a/memory.stat": "anon 400000\ninactive_file 20000\nactive_file 10000\n",
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.current": "10",
    }
    assert memory.available_nbytes(_system(tmp_path, "0::/a/b\n", files)) == 80000


def test_the_limit_is_the_least_of_the_cgroups_around_us(tmp_path: Path) -> None:
    v1 = {
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "300000",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    }
    v2 = {"sys/fs/cgroup/a/memory.max": "max", "sys/fs/cgroup/a/memory.current": "10"}
    assert memory.limit_nbytes(_system(tmp_path / "1", "4:memory:/x\n", v1)) == 200000
    assert memory.limit_nbytes(_system(tmp_path / "2", "0::/a\n", v2)) is None


def test_available_is_the_room_of_a_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "300000",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "250000",
        "sys/fs/cgroup/memory/x/memory.stat": "inactive_file 7\ntotal_inactive_file 1000\ntotal_active_file 2000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "250000",
    }
    assert memory.available_nbytes(_system(tmp_path, "4:memory:/x\n0::/\n", files)) == 53000


def test_an_arena_is_aligned_present_and_really_returned() -> None:
    nbytes = (32 << 20) + 5
    before = memory.current_rss_nbytes()
    arena = Arena(nbytes)
    assert arena.address % mmap.PAGESIZE == 0
    assert arena.nbytes % mmap.PAGESIZE == 0
    assert memory.current_rss_nbytes() - before > 30 << 20
    view = arena.view(4096, 16)
    np.frombuffer(view, np.uint8)[:] = 7
    assert bytes(arena.view(4100, 4)) == b"\x07" * 4
    del view
    arena.close()
    arena.close()
    assert memory.current_rss_nbytes() - before < 4 << 20
    with pytest.raises(ExecutionError, match="closed"):
        arena.view(0, 1)


def test_an_arena_gives_its_pages_back_though_a_view_is_held() -> None:
    before = memory.current_rss_nbytes()
    arena = Arena(32 << 20)
    view = arena.view(0, 32 << 20)
    arena.close()
    assert memory.current_rss_nbytes() - before < 4 << 20
    assert view[100] == 0


def test_an_arena_that_does_not_fit_is_refused_before_it_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "available_nbytes", lambda: 1 << 20)
    with pytest.raises(ExecutionError, match=r"needs 2097152 bytes, 1048576 bytes of memory are available"):
        Arena(2 << 20)


def test_the_peak_can_be_reset() -> None:
    if not memory.reset_peak():
        pytest.skip("this system does not allow it")
    Arena(16 << 20).close()
    assert memory.peak_rss_nbytes() - memory.current_rss_nbytes() > 12 << 20


FAULTS = """
import resource
from tensorstow.runtime.memory import kept_heap, settle_allocator

def faults():
    found = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"x" * (8 << 20)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del block
    return sorted(found)[2]

settle_allocator()
counts = [faults()]
with kept_heap():
    counts.append(faults())
print(*counts, faults())
"""


def test_a_kept_heap_gives_memory_that_was_touched_before() -> None:
    """In a process of its own, whose heap nobody has cut up: pages that a block of 8 MiB touches for the first time."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, kept, behind = map(int, done.stdout.split())
    pages = (8 << 20) // mmap.PAGESIZE
    if before < pages // 2:
        pytest.skip("the system gives pages that are larger, or the C library is not glibc")
    assert kept < pages // 8
    assert behind >= pages // 2
