"""tensorstow: decides what lives where, and when, in the memory of a machine that runs neural networks.

>>> import tensorstow as ts
>>> machine = ts.Machine.detect(dram="300MiB")
>>> plan = ts.plan("model.onnx", machine=machine)
>>> model = ts.apply(plan)
>>> outputs = model.run({"input": array})
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import Applied, Machine, apply, compare, plan
    from .ecosystem.device_map import device_map, from_device_map
    from .ir.errors import ExecutionError, InfeasibleError, InputError, PlanMismatchError, TensorstowError
    from .ir.files import PlanFile, read_plan, write_plan

_HOMES = {
    "Applied": ".api",
    "Machine": ".api",
    "apply": ".api",
    "compare": ".api",
    "plan": ".api",
    "device_map": ".ecosystem.device_map",
    "from_device_map": ".ecosystem.device_map",
    "ExecutionError": ".ir.errors",
    "InfeasibleError": ".ir.errors",
    "InputError": ".ir.errors",
    "PlanMismatchError": ".ir.errors",
    "TensorstowError": ".ir.errors",
    "PlanFile": ".ir.files",
    "read_plan": ".ir.files",
    "write_plan": ".ir.files",
}

__all__ = [
    "Applied",
    "ExecutionError",
    "InfeasibleError",
    "InputError",
    "Machine",
    "PlanFile",
    "PlanMismatchError",
    "TensorstowError",
    "__version__",
    "apply",
    "compare",
    "device_map",
    "from_device_map",
    "plan",
    "read_plan",
    "write_plan",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: solvers and engines take long to load."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module 'tensorstow' has no attribute {name!r}")
