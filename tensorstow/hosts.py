"""Machines by name, and whether one of them is this box."""

from __future__ import annotations

from collections.abc import Callable

from .ir.errors import PlanMismatchError
from .ir.machine import Machine, TierKind
from .ir.profiles import load_machine

Progress = Callable[[str, float], None]


def silent(what: str, share: float) -> None:
    """Progress that nobody watches."""
    del what, share


def get_machine(name: str, *, progress: Progress = silent) -> Machine:
    """A machine by name or TOML file; 'host' is measured on first use, and again when the box has changed."""
    if name != "host":
        return load_machine(name)
    from .ir.profiles import write_machine
    from .runtime.calibrate import calibrate, host_fingerprint, host_profile_path

    path = host_profile_path()
    if path.exists():
        machine = load_machine("host")
        if machine.fingerprint == host_fingerprint():
            return machine
    machine = calibrate(progress=progress, quick=True)
    write_machine(machine, path)
    return machine


def runs_here(machine: Machine) -> bool:
    """Whether plans for `machine` can be executed on this box: it computes from DRAM, and was measured here."""
    from .runtime.calibrate import host_fingerprint

    computes_from = machine.tier[machine.units[0].tier].kind
    return computes_from is TierKind.DRAM and machine.fingerprint == host_fingerprint()


def require_host(machine: Machine) -> None:
    """Refuse, with what to do instead, to execute plans for a machine that is not this box."""
    if not runs_here(machine):
        raise PlanMismatchError(
            f"machine '{machine.name}' (fingerprint {machine.fingerprint or 'none: a published profile'}) is not this "
            "box; plans for it can be shown and compared here, and run there. For this box plan with --machine host"
        )
