"""Measures this machine: its disk, its memory, its kernels; and writes down how."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..ir.errors import ExecutionError
from ..ir.machine import Link, Machine, Rate, Tier, TierKind, Unit
from ..ir.paths import cache_dir
from ..ir.profiles import host_profile_path
from ..ir.sizes import format_size
from ..ir.threads import physical_cores
from .calibrate_disk import Direction, Disk, Scratch, measure_disk, scratch_nbytes
from .directio import free_nbytes
from .memory import available_nbytes

__all__ = ["calibrate", "host_fingerprint", "host_profile_path", "memory_nbytes", "physical_cores"]

Progress = Callable[[str, float], None]

MEASURED = "measured "
"""How the `source` of a link begins that was measured here."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """What `runtime.calibrate_kernels` found: seconds per launch, bytes and operations per second, and the share that a
    product takes longer while the disk is read or written."""

    launch_s: float
    bytes_per_s: float
    peaks: dict[str, float]
    rates: tuple[Rate, ...]
    contention: dict[str, float]
    skipped: tuple[str, ...]


def calibrate(
    *, progress: Callable[[str, float], None] | None = None, quick: bool = False, directory: Path | None = None
) -> Machine:
    """This machine, named 'host', as measured now: some 25 seconds, or 10 when `quick`.

    Tiers 'dram' (what may still become resident) and 'ssd' (what is free of the filesystem of `directory`, by default
    the cache), links between them, and the unit 'cpu' with one thread per physical core. The file it measures with
    has no name, so nothing of it outlives the process. `progress` hears the stage and the part of it that is done.
    Raises ExecutionError where the disk is too full or a measurement fails.
    """
    tell: Progress = progress or (lambda stage, part: None)
    folder = directory or cache_dir()
    # Before anything of ours is resident or on the disk.
    memory, storage = memory_nbytes(), free_nbytes(folder)
    threads = physical_cores()
    with Scratch(folder, scratch_nbytes(folder, quick=quick)) as scratch:
        disk = measure_disk(scratch, quick=quick, progress=lambda part: tell("disk", part))
        kernels = _measure_kernels(threads, scratch, disk.read.chunk_nbytes, quick=quick, tell=tell)
        alone = _one_thread(quick=quick, tell=tell) if threads > 1 else None
    return _machine(memory, storage, disk, kernels, alone, threads, quick=quick)


def host_fingerprint() -> str:
    """What ties a profile to a machine: a digest of processor, cores, installed memory and ONNX Runtime's version.

    Neither free memory nor free disk belong to it: they change by the minute, and plans name their own budget.
    """
    parts = (_processor(), str(physical_cores()), str(_installed_memory()), version("onnxruntime"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def memory_nbytes() -> int:
    """Bytes that may still become resident: within the memory cgroup, or MemAvailable, whichever is less."""
    return available_nbytes()


def _measure_kernels(threads: int, scratch: Scratch, chunk: int, *, quick: bool, tell: Progress) -> Kernels:
    """All kernels on `threads` threads; the disk is read or written beside when the child asks for it."""
    with contextlib.ExitStack() as load, _child({"threads": threads, "quick": quick}) as child:
        for message in _messages(child):
            if "progress" in message:
                tell("kernels", message["progress"])
            elif "load" in message:
                load.close()
                if message["load"]:
                    load.enter_context(_busy(scratch, chunk, write=message["load"] == "write"))
                _answer(child)
            elif "result" in message:
                return _kernels(message["result"])
    raise ExecutionError(_failed(child))


def _one_thread(*, quick: bool, tell: Progress) -> Kernels:
    """The products alone on one thread, for the note in the profile."""
    with _child({"threads": 1, "quick": quick, "products_only": True}) as child:
        for message in _messages(child):
            if "progress" in message:
                tell("one thread", message["progress"])
            elif "load" in message:
                _answer(child)
            elif "result" in message:
                return _kernels(message["result"])
    raise ExecutionError(_failed(child))


@contextlib.contextmanager
def _child(options: dict[str, object]) -> Generator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.calibrate_kernels"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # So that it finds this very package, however we were found.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(options) + "\n")
        child.stdin.flush()
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _messages(child: subprocess.Popen[str]) -> Generator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        yield json.loads(line)
    assert child.stderr is not None
    said = child.stderr.read().strip().splitlines()
    raise ExecutionError(_failed(child, said[-1] if said else "it said nothing"))


def _answer(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def _failed(child: subprocess.Popen[str], said: str = "no result") -> str:
    return f"measuring the kernels ended with status {child.wait()}: {said}; calibrate again, or report this"


@contextlib.contextmanager
def _busy(scratch: Scratch, chunk: int, *, write: bool) -> Generator[None]:
    """Inside the block, the scratch file is read, or written, over and over as the engine of transfers does it."""
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            if write:
                scratch.write(chunk, 0, scratch.nbytes, stop=stop.is_set)
            else:
                scratch.read(chunk, 0, scratch.nbytes, stop=stop.is_set)

    mover = threading.Thread(target=move, name="tensorstow-calibrate", daemon=True)
    mover.start()
    try:
        yield
    finally:
        stop.set()
        mover.join()


def _kernels(result: dict[str, Any]) -> Kernels:
    return Kernels(
        launch_s=result["launch_s"],
        bytes_per_s=result["bytes_per_s"],
        peaks=result["peaks"],
        rates=tuple(Rate(**rate) for rate in result["rates"]),
        contention=dict(result["contention"]),
        skipped=tuple(result["skipped"]),
    )


def _machine(
    memory: int, storage: int, disk: Disk, kernels: Kernels, alone: Kernels | None, threads: int, *, quick: bool
) -> Machine:
    past = "with O_DIRECT" if disk.direct else "through the page cache, dropped after each request (no O_DIRECT there)"
    how = f"{MEASURED}{past} on a file of {format_size(disk.file_nbytes)}"
    notes = [
        f"ONNX Runtime {version('onnxruntime')}, one-node models as the executor runs them, {threads} threads",
    ]
    if alone is not None:
        peaks = ", ".join(f"{dtype} {rate / 1e9:.1f}" for dtype, rate in sorted(alone.peaks.items()))
        notes.append(f"one thread: {peaks} GFLOP/s, {alone.bytes_per_s / 1e9:.1f} GB/s")
    if kernels.skipped:
        notes.append(f"no kernel for: {', '.join(sorted(set(kernels.skipped)))}")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Machine(
        name="host",
        tiers=(
            Tier("dram", TierKind.DRAM, memory, source="available to this process when it was measured"),
            Tier("ssd", TierKind.SSD, storage, alignment=4096, source="free on the filesystem when it was measured"),
        ),
        links=(
            _link("ssd", "dram", disk.read, how, kernels.contention.get("read", 0.0)),
            _link("dram", "ssd", disk.write, how, kernels.contention.get("write", 0.0)),
        ),
        units=(
            Unit(
                "cpu",
                "dram",
                flops_per_s=tuple(sorted(kernels.peaks.items())),
                bytes_per_s=kernels.bytes_per_s,
                launch_s=kernels.launch_s,
                rates=kernels.rates,
                threads=threads,
                source="; ".join(notes),
            ),
        ),
        fingerprint=host_fingerprint(),
        measured=f"{now} on {_processor()}, {'quick' if quick else 'full'} run",
    )


def _link(origin: str, target: str, found: Direction, how: str, contention: float) -> Link:
    rate, latency, chunk = found.bytes_per_s, found.latency_s, found.chunk_nbytes
    return Link(origin, target, rate, latency, chunk, source=how, contention=round(contention, 3))


def _processor() -> str:
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _installed_memory() -> int:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
