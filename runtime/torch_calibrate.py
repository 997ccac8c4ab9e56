"""Measures the CUDA device of this box: its memory, the way there and back, its arithmetic."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from ..ir.machine import Link, Machine, Tier, TierKind, Unit
from ..ir.paths import cache_dir
from .module.devices import no_cuda

COPIED_NBYTES = 256 << 20
"""Long enough that a copy's beginning does not count."""
CHUNK_NBYTES = 4 << 20
SIDE = 4096
"""Of the square matrices whose product is timed."""
ALIGNMENT = 256
"""Of the vendor's allocator; kernels choose wide loads by it."""
DTYPES = ("float32", "float16", "bfloat16")
REPEATS = 5


class Probe(Protocol):
    """A device that can be timed; every method returns seconds of one such operation."""

    name: str

    def free_nbytes(self) -> int:
        """Memory that is free now."""
        ...

    def copy_s(self, nbytes: int, *, inward: bool) -> float:
        """Between the host's pinned memory and the device."""
        ...

    def move_s(self, nbytes: int) -> float:
        """From one place of the device to another: reads and writes `nbytes` each."""
        ...

    def product_s(self, side: int, dtype: str) -> float:
        """Of two square matrices."""
        ...

    def launch_s(self) -> float:
        """A kernel that does nothing worth speaking of, among others."""
        ...


def cuda_profile_path() -> Path:
    """Where the measured profile is kept."""
    return cache_dir() / "cuda.toml"


def cuda_fingerprint(host: str | None) -> str | None:
    """What ties a profile to this box and its device: a digest of the host's fingerprint, the device's name and memory,
    and PyTorch's version. None where there is no CUDA device."""
    if no_cuda() is not None:
        return None
    found: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    parts = (str(host), str(found.name), str(found.total_memory), torch.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def calibrate_cuda(
    host: Machine, fingerprint: str, *, probe: Probe | None = None, progress: Callable[[str, float], None] | None = None
) -> Machine:
    """`host` with the device before it: the tier 'hbm', the links of it and 'dram', and the unit 'gpu' alone.

    The processor's unit is left out: what is planned for this machine computes on the device.
    """
    found: Probe = probe or CudaProbe()
    tell = progress or _silent
    tell("CUDA copies", 0.0)
    inward, outward = (_rate(COPIED_NBYTES, found, inward=way) for way in (True, False))
    latency = (_copied(found, 4096, inward=True), _copied(found, 4096, inward=False))
    tell("CUDA arithmetic", 0.5)
    flops = {dtype: 2 * SIDE**3 / _median(lambda d=dtype: found.product_s(SIDE, d)) for dtype in DTYPES}
    unit = Unit(
        "gpu",
        "hbm",
        flops_per_s=tuple(sorted(flops.items())),
        bytes_per_s=2 * COPIED_NBYTES / _median(lambda: found.move_s(COPIED_NBYTES)),
        launch_s=_median(found.launch_s),
        source=f"PyTorch {torch.__version__} on {found.name}: products of {SIDE} x {SIDE}, a copy within the device",
    )
    how = f"measured with pinned memory, {COPIED_NBYTES >> 20} MiB at once"
    hbm = Tier("hbm", TierKind.HBM, found.free_nbytes(), alignment=ALIGNMENT, source="free when it was measured")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return replace(
        host,
        name="cuda",
        tiers=(hbm, *host.tiers),
        links=(
            Link("dram", "hbm", inward, latency[0], CHUNK_NBYTES, source=how),
            Link("hbm", "dram", outward, latency[1], CHUNK_NBYTES, source=how),
            *host.links,
        ),
        units=(unit,),
        fingerprint=fingerprint,
        measured=f"{now} on {found.name}; the host: {host.measured}",
    )


def _silent(what: str, part: float) -> None:
    """Progress that nobody watches."""


def _rate(nbytes: int, probe: Probe, *, inward: bool) -> float:
    return nbytes / _copied(probe, nbytes, inward=inward)


def _copied(probe: Probe, nbytes: int, *, inward: bool) -> float:
    return _median(lambda: probe.copy_s(nbytes, inward=inward))


def _median(measure: Callable[[], float]) -> float:
    measure()  # the first one also makes what is made once
    return median(measure() for _ in range(REPEATS))


class CudaProbe:
    """The CUDA device that is current."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.device)

    def free_nbytes(self) -> int:
        """Memory that is free, that of PyTorch's cache included."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])

    def copy_s(self, nbytes: int, *, inward: bool) -> float:
        """Between pinned memory and the device."""
        host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        there = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        source, target = (host, there) if inward else (there, host)
        return self._timed(lambda: target.copy_(source, non_blocking=True))

    def move_s(self, nbytes: int) -> float:
        """Within the device."""
        one = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        other = torch.empty_like(one)
        return self._timed(lambda: other.copy_(one))

    def product_s(self, side: int, dtype: str) -> float:
        """Of two square matrices."""
        a = torch.randn(side, side, device=self.device).to(getattr(torch, dtype))
        b, c = torch.randn_like(a), torch.empty_like(a)
        return self._timed(lambda: torch.mm(a, b, out=c))

    def launch_s(self) -> float:
        """Among others: the device runs behind the calls."""
        x = torch.zeros(1, device=self.device)
        calls = 200
        return self._timed(lambda: [x.add_(1) for _ in range(calls)]) / calls

    def _timed(self, call: Callable[[], object]) -> float:
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin
