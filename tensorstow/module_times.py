"""Times that the operators of a PyTorch module take on this box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .hosts import Progress
from .ir.machine import Machine

if TYPE_CHECKING:
    from .modules import ModuleModel
    from .planner.pytorch import OpLowered

MEASURED_S = 20.0
"""Seconds that measuring a model's operators may take; each distinct one is measured once on a box."""


def measured_here(lowered: OpLowered, model: ModuleModel, machine: Machine, progress: Progress) -> OpLowered:
    """`lowered` with the times that its operators, and the module's own Python, take on this box."""
    from .runtime.torch_rates_python import UnrecordableError, python_ns

    try:
        python = python_ns(model.module, model.args, model.kwargs)
    except UnrecordableError:
        python = 0
    return with_times(lowered, machine, progress, python_ns=python)


def with_times(
    lowered: OpLowered, machine: Machine, progress: Progress, *, python_ns: int = 0, warm: bool = False
) -> OpLowered:
    """`lowered` with the times that its operators take on this box, and `python_ns` of Python beside them. `warm`: the
    plan says where results lie, in memory that was touched before."""
    from .planner.pytorch.measured import requests, with_measured
    from .runtime.torch_rates import measure

    unit = machine.units[0]
    threads = unit.threads or torch_threads()
    progress("measuring operators", 0.0)
    found = measure(
        requests(lowered, unit),
        threads=threads,
        budget_s=MEASURED_S,
        warm=warm,
        progress=lambda share: progress("measuring operators", share),
    )
    return with_measured(lowered, unit, found.times, python_ns=python_ns)


def torch_threads() -> int:
    """Threads that torch computes with."""
    import torch

    return torch.get_num_threads()
