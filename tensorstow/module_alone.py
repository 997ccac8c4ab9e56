"""A planned module without its plan: what `run --verify` compares with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ir.files import PlanFile
from .module_arrays import arrays, fresh_inputs, on_device
from .module_runs import remake


def unconstrained(file: PlanFile, moved: Path | None, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the module returns with all its weights in memory, as PyTorch runs it without us."""
    import torch

    from .moe_runs import compute_eagerly
    from .planner.pytorch.hf import fill_kept

    made = remake(file, moved)
    if made.matched is not None:
        fill_kept(made.module, made.matched, made.module.state_dict())
    if file.module is not None and file.module.experts is not None:
        compute_eagerly(made.module)
    device = _computes_on(file)
    module = made.module if device.type == "cpu" else made.module.to(device)
    args, kwargs = on_device(fresh_inputs(made, inputs), device)
    with torch.no_grad():
        return arrays(module(*args, **kwargs))


def _computes_on(file: PlanFile) -> Any:
    """PyTorch's device that the plan's unit stands for."""
    import torch

    from .runtime.module import devices
    from .runtime.preflight import compute_unit

    found = devices.device_for(compute_unit(file.plan, file.graph, file.machine), file.machine)
    return torch.device("cpu") if found is None else found.torch_device
