"""What this box has and what it lacks: packages, solvers, memory, disk, processor, GPU, compiler."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .ir.errors import ExecutionError, InputError, TensorstowError
from .ir.paths import cache_dir
from .ir.sizes import format_size
from .needs import require_torch

if TYPE_CHECKING:
    from .solvers.linear import LinearAnswer

REQUIRED = ("numpy", "onnx", "onnxruntime", "torch", "highspy", "ortools", "pulp", "numba", "typer", "rich", "plotly")
OPTIONAL = {
    "transformers": "hf:DIR models and generate(); pip install 'tensorstow[hf]'",
    "safetensors": "weights of hf:DIR; pip install 'tensorstow[hf]'",
}

SOLVE_S = 10.0
"""Seconds for a program of two columns; none takes more than a tenth of one."""


class State(str, Enum):
    """How a thing stands: there, not there but not needed for everything, or there and not working."""

    FINE = "ok"
    LACKS = "lacks"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` says what lacks without it and what to do."""

    subject: str
    state: State
    text: str
    advice: str = ""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"subject": self.subject, "state": self.state.value, "text": self.text, "advice": self.advice}


def examine() -> tuple[Finding, ...]:
    """Look at everything. Nothing is changed but the cache's folder, in which a file is written and removed."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        *(_versions, _packages, _solvers, _processor, _memory, _disk, _profile, _gpu, _compiler),
    )
    return tuple(found for look in looks for found in look())


def _versions() -> Iterator[Finding]:
    yield Finding("tensorstow", State.FINE, f"{__version__}, Python {platform.python_version()} on {platform.system()}")
    if sys.platform != "linux":
        yield Finding(
            "system", State.LACKS, platform.system(), "planning works; running plans needs Linux (O_DIRECT, cgroups)"
        )


def _packages() -> Iterator[Finding]:
    for name in REQUIRED:
        found = _version(name)
        if found is None:
            yield Finding(name, State.BROKEN, "not installed", f"tensorstow needs it: pip install {name}")
        else:
            yield Finding(name, State.FINE, found)
    for name, purpose in OPTIONAL.items():
        found = _version(name)
        if found is None:
            yield Finding(name, State.LACKS, "not installed", f"needed for {purpose}")
        else:
            yield Finding(name, State.FINE, found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _solvers() -> Iterator[Finding]:
    """Each engine on a program whose answer is known: least x + y with x + 2 y >= 4 and 3 x + y >= 6 is 2.8, in whole
    numbers 3."""
    import numpy as np

    from .solvers.engines import WHOLE, solve_whole
    from .solvers.linear import ENGINES, LinearProgram

    program = LinearProgram(
        cost=np.ones(2),
        col_lower=np.zeros(2),
        col_upper=np.full(2, 10.0),
        row_lower=np.array([4.0, 6.0]),
        row_upper=np.full(2, np.inf),
        starts=np.array([0, 2, 4], dtype=np.int32),
        indices=np.array([0, 1, 0, 1], dtype=np.int32),
        values=np.array([1.0, 2.0, 3.0, 1.0]),
    )
    whole = replace(program, integer=np.ones(2, dtype=np.bool_))
    for name in dict.fromkeys([*ENGINES, *WHOLE]):
        wrong: list[str] = []
        if name in ENGINES:
            wrong += _wrong(ENGINES[name](program, SOLVE_S), 2.8)
        if name in WHOLE:
            wrong += _wrong(solve_whole(whole, name, SOLVE_S), 3.0)
        if wrong:
            yield Finding(f"solver {name}", State.BROKEN, "; ".join(wrong), "choose another with --engine")
        else:
            kinds = " and ".join(k for k, those in (("linear", ENGINES), ("integer", WHOLE)) if name in those)
            yield Finding(f"solver {name}", State.FINE, f"{kinds} programs")


def _wrong(answer: LinearAnswer, optimum: float) -> Iterator[str]:
    found = None if answer.values is None else float(answer.values.sum())
    if found is None or abs(found - optimum) > 1e-6:
        yield f"answers {answer.status.value} {found} where {optimum} is right {answer.detail}".rstrip()


def _processor() -> Iterator[Finding]:
    model = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", State.FINE, f"{model}, {usable} of {os.cpu_count()} cores usable")


def _memory() -> Iterator[Finding]:
    from .runtime.calibrate import memory_nbytes
    from .runtime.memory import available_nbytes

    yield Finding(
        "memory", State.FINE, f"{format_size(memory_nbytes())}, {format_size(available_nbytes())} available now"
    )


def _disk() -> Iterator[Finding]:
    from .runtime.directio import DirectFile

    remedy = "set TENSORSTOW_CACHE to a folder that can be written"
    try:
        folder = cache_dir()
    except ExecutionError as error:
        yield Finding("disk", State.BROKEN, str(error.__cause__ or error), remedy)
        return
    try:
        free = shutil.disk_usage(folder).free
        file = DirectFile.scratch(folder, 1 << 20)
    except (OSError, TensorstowError) as error:
        yield Finding("disk", State.BROKEN, f"{folder}: {error}", remedy)
        return
    direct = file.direct
    file.close()
    text = f"{folder}, {format_size(free)} free, O_DIRECT {'works' if direct else 'does not'}"
    advice = "" if direct else "reads go through the page cache, which counts as memory: set TENSORSTOW_CACHE to a disk"
    yield Finding("disk", State.FINE if direct else State.LACKS, text, advice)


def _profile() -> Iterator[Finding]:
    from .ir.profiles import host_profile_path, load_machine
    from .runtime.calibrate import host_fingerprint

    remedy = "the first plan measures it, or: tensorstow machine calibrate"
    try:
        if not host_profile_path().exists():
            yield Finding("calibration", State.LACKS, "this box has not been measured", remedy)
            return
        machine = load_machine("host")
    except ExecutionError:
        return  # there is no cache to keep a profile in, and that is said of the disk
    except TensorstowError as error:
        yield Finding("calibration", State.BROKEN, str(error), "tensorstow machine calibrate")
        return
    if machine.fingerprint != host_fingerprint():
        yield Finding("calibration", State.LACKS, f"measured {machine.measured}, before the box changed", remedy)
        return
    rates = ", ".join(f"{k.name} {k.bytes_per_s / 1e9:.2f} GB/s" for k in machine.links)
    yield Finding("calibration", State.FINE, f"measured {machine.measured}: {rates}")


def _gpu() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding(
            "gpu", State.LACKS, f"PyTorch cannot be loaded: {error}", "pip install torch; ONNX models need none"
        )
        return
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"PyTorch is built for CUDA {built}, and sees no device" if built else "this PyTorch is built for CPUs"
        yield Finding("gpu", State.LACKS, f"none; {why}", "plans for HBM can be made and shown here, not run")
        return
    for i in range(torch.cuda.device_count()):
        held = torch.cuda.get_device_properties(i)
        yield Finding("gpu", State.FINE, f"{held.name}, {format_size(held.total_memory)}")


def _compiler() -> Iterator[Finding]:
    try:
        require_torch("the allocator")
    except InputError:
        return  # it is one for PyTorch, and that this lacks is said
    from .runtime.training.allocator_build import native_library

    try:
        native_library()
    except ExecutionError as error:
        yield Finding("compiler", State.LACKS, str(error), "training plans run with copies in its place, and slower")
    else:
        yield Finding("compiler", State.FINE, "the allocator for training is compiled")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
