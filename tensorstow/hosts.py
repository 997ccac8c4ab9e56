"""Machines by name, and whether one of them is this box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .ir.errors import InputError, PlanMismatchError
from .ir.machine import Machine, TierKind
from .ir.paths import unwritable
from .ir.profiles import load_machine
from .needs import require_torch

Progress = Callable[[str, float], None]

CUDA = "cuda"
"""The name of this box as a machine that computes on its CUDA device."""


def silent(what: str, share: float) -> None:
    """Progress that nobody watches."""
    del what, share


def get_machine(name: str, *, progress: Progress = silent) -> Machine:
    """A machine by name or TOML file; 'host' and 'cuda' are measured on first use, and again when the box has changed.

    Raises InputError for 'cuda' where there is no CUDA device.
    """
    if name == CUDA:
        return _cuda_machine(progress)
    if name != "host":
        return load_machine(name)
    from .runtime.calibrate import calibrate, host_fingerprint, host_profile_path

    path = host_profile_path()
    if path.exists():
        machine = load_machine("host")
        if machine.fingerprint == host_fingerprint():
            return machine
    machine = calibrate(progress=progress, quick=True)
    _keep(machine, path)
    return machine


def _keep(machine: Machine, path: Path) -> None:
    """Write what was measured into the cache. Raises ExecutionError."""
    from .ir.profiles import write_machine

    try:
        write_machine(machine, path)
    except OSError as error:
        raise unwritable(path.parent, error) from error


def _cuda_machine(progress: Progress) -> Machine:
    require_torch(f"machine '{CUDA}'")
    from .runtime import torch_calibrate as cuda
    from .runtime.calibrate import host_fingerprint
    from .runtime.module.devices import no_cuda

    fingerprint = cuda.cuda_fingerprint(host_fingerprint())
    if fingerprint is None:
        raise InputError(f"machine '{CUDA}' is this box with a CUDA device, and {no_cuda()}; plan with --machine host")
    path = cuda.cuda_profile_path()
    if path.exists():
        machine = load_machine(str(path))
        if machine.fingerprint == fingerprint:
            return machine
    machine = cuda.calibrate_cuda(get_machine("host", progress=progress), fingerprint, progress=progress)
    _keep(machine, path)
    return machine


def runs_here(machine: Machine) -> bool:
    """Whether plans for `machine` can be executed on this box: it was measured here, and computes from DRAM, or from
    the memory of a CUDA device that is there."""
    from .runtime.calibrate import host_fingerprint

    computes_from = machine.tier[machine.units[0].tier].kind
    if computes_from is TierKind.HBM and machine.fingerprint is not None:
        from .runtime.torch_calibrate import cuda_fingerprint

        return machine.fingerprint == cuda_fingerprint(host_fingerprint())
    return computes_from is TierKind.DRAM and machine.fingerprint == host_fingerprint()


def on_processor(machine: Machine) -> bool:
    """Whether `machine` is this box and computes on its processor, so that operators can be measured for it."""
    return machine.tier[machine.units[0].tier].kind is TierKind.DRAM and runs_here(machine)


def require_host(machine: Machine) -> None:
    """Refuse, with what to do instead, to execute plans for a machine that is not this box."""
    if runs_here(machine):
        return
    if machine.name == CUDA:
        from .runtime.module.devices import no_cuda

        why = no_cuda() or "this box, its CUDA device or PyTorch is another than was measured"
        raise PlanMismatchError(
            f"the plan computes on a CUDA device, and {why}; plan again, with --machine host or cuda"
        )
    raise PlanMismatchError(
        f"machine '{machine.name}' (fingerprint {machine.fingerprint or 'none: a published profile'}) is not this "
        "box; plans for it can be shown and compared here, and run there. For this box plan with --machine host"
    )
