from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.ir.machine import Machine, TierKind
from tensorstow.ir.profiles import read_machine, write_machine
from tensorstow.runtime import calibrate as module
from tensorstow.runtime import calibrate_disk, calibrate_kernels
from tensorstow.runtime.calibrate import calibrate, host_fingerprint, host_profile_path, physical_cores
from tensorstow.runtime.calibrate_disk import Scratch, measure_disk, scratch_nbytes
from tensorstow.runtime.fit_rates import Observation, fit

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrate")


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[Machine, list[tuple[str, float]]]:
    heard: list[tuple[str, float]] = []
    return calibrate(quick=True, directory=folder, progress=lambda stage, part: heard.append((stage, part))), heard


def test_calibrate_measures_this_machine(
    measured: tuple[Machine, list[tuple[str, float]]], folder: Path, tmp_path: Path
) -> None:
    machine, heard = measured
    assert machine.name == "host"
    assert machine.fingerprint == host_fingerprint()
    assert machine.tier["dram"].kind is TierKind.DRAM
    assert set(machine.link) == {("ssd", "dram"), ("dram", "ssd")}
    unit = machine.units[0]
    assert (unit.name, unit.tier, unit.threads) == ("cpu", "dram", physical_cores())
    # Units of measure: a slip of a thousand would leave these ranges on any machine there is.
    assert 1e-7 < unit.launch_s < 1e-2
    assert 1e8 < unit.bytes_per_s < 1e13
    assert 1e9 < dict(unit.flops_per_s)["float32"] < 1e15
    assert {"matmul", "matmul_t", "matvec", "elementwise", "copy"} <= {r.cost_class for r in unit.rates}
    for link in machine.links:
        assert 1e6 < link.bytes_per_s < 1e12
        assert 0 <= link.latency_s < 1
        assert link.chunk_nbytes % 4096 == 0
        assert 0 <= link.contention < 100
    assert {stage for stage, _ in heard} >= {"disk", "kernels"}
    assert all(0 <= part <= 1 for _, part in heard)
    assert not list(folder.iterdir())
    write_machine(machine, tmp_path / "host.toml")
    assert read_machine(tmp_path / "host.toml") == machine


def test_the_disk_file_has_no_name_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scratch(tmp_path, 64 * MIB) as scratch:
        assert not list(tmp_path.iterdir())
        disk = measure_disk(scratch, quick=True, progress=lambda part: None)
    assert disk.file_nbytes == 64 * MIB
    free = 300 * MIB

    def free_nbytes(folder: Path) -> int:
        return free

    monkeypatch.setattr(calibrate_disk, "free_nbytes", free_nbytes)
    assert scratch_nbytes(tmp_path, quick=False) == 128 * MIB
    free = 100 * MIB
    with pytest.raises(ExecutionError, match="104857600 bytes are free"):
        scratch_nbytes(tmp_path, quick=True)


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tensorstow.runtime.calibrate import calibrate\n"
        "calibrate(directory=Path(sys.argv[1]), progress=lambda *a: print(*a, flush=True))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b"disk")
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode != 0
    assert not list(tmp_path.iterdir())


def test_a_measuring_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__package__", "tensorstow.no_such_package")
    monkeypatch.setattr(calibrate_disk, "_QUICK_FILE_NBYTES", 64 * MIB)
    with pytest.raises(ExecutionError, match=r"status 1: .*no_such_package"):
        calibrate(quick=True, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_profile_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    assert host_profile_path().parent == tmp_path
    assert host_fingerprint() == host_fingerprint()


def test_contention_is_what_a_product_takes_longer_beside_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {None: 2.0, "read": 2.5, "write": 1.9}
    states: list[str | None] = [None]

    class Product:
        def __init__(self, sample: object, threads: int) -> None: ...

        def mean_s(self, window_s: float) -> float:
            return took[states[-1]]

    monkeypatch.setattr(calibrate_kernels, "Bench", Product)
    found = calibrate_kernels._contention(2, 0.1, states.append)  # pyright: ignore[reportPrivateUsage]
    assert found == {"read": pytest.approx(0.25), "write": 0.0}
    assert states[-1] is None
    assert {"read", "write"} <= set(states)


def test_fit_finds_the_rates_behind_the_times() -> None:
    sizes = [(10**6, 10**4), (10**8, 10**7), (10**9, 10**6), (10**7, 10**8)]
    seen = [Observation("matmul", "float32", f, b, f / 2e11 + b / 5e9) for f, b in sizes]
    seen += [Observation("copy", "float32", 0, b, b / 4e10) for _, b in sizes]
    copy, matmul = fit(seen)
    assert copy.flops_per_s is None
    assert copy.bytes_per_s == pytest.approx(4e10)
    assert matmul.flops_per_s == pytest.approx(2e11)
    assert matmul.bytes_per_s == pytest.approx(5e9)


def test_fit_never_gives_a_negative_rate() -> None:
    # More bytes, less time: no rate of bytes explains that.
    seen = [Observation("conv", "float32", 10**8, b, t) for b, t in ((10**6, 2e-3), (10**7, 1e-3))]
    (rate,) = fit(seen)
    assert rate.flops_per_s is not None
    assert rate.flops_per_s > 0
    assert rate.bytes_per_s is None
    (single,) = fit(seen[:1])
    assert single.flops_per_s == pytest.approx(5e10)


NEEDS = """
import ctypes, numpy as np
from tensorstow.runtime.memory import settle_allocator
from tensorstow.runtime.workspace import measure_workspace

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: everything comes from the heap
hole = libc.malloc(16 << 20)
libc.malloc(300_000)  # stays above the hole, so that malloc takes it again instead of mapping memory
libc.free(hole)
settle_allocator()
print(*(measure_workspace(lambda: np.ones(n << 20, np.uint8).sum() and None) for n in (32, 8, 0)))
"""


def test_workspace_is_seen_even_where_freed_memory_is_reused() -> None:
    """In a process of its own: threads that other tests left behind allocate, too."""
    done = subprocess.run([sys.executable, "-c", NEEDS], capture_output=True, text=True, check=True, timeout=120)
    large, small, none = map(int, done.stdout.split())
    assert abs(large - 32 * MIB) < MIB
    assert abs(small - 8 * MIB) < MIB
    assert none < MIB
