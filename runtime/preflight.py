"""What an executor checks of a plan before it touches memory or disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph
from ..ir.machine import Machine, Unit
from ..ir.plan import Plan
from .reading import WeightReader

if TYPE_CHECKING:  # ONNX Runtime: executors without it have their memory for something else
    from .kernels import Kernel


def compute_unit(plan: Plan, graph: Graph, machine: Machine) -> Unit:
    """The unit that runs the plan: all its steps compute from one tier. Raises PlanMismatchError."""
    units = {u.name: u for u in machine.units}
    for number, step in enumerate(plan.steps):
        if step.unit not in units or step.op not in graph.operator:
            raise PlanMismatchError(
                f"step {number} runs '{step.op}' on '{step.unit}', which machine '{machine.name}' or the graph does "
                "not have; plan again"
            )
    used = [units[s.unit] for s in plan.steps] or list(machine.units)
    tiers = {u.tier for u in used}
    if plan.steps and len(tiers) > 1:
        raise PlanMismatchError(f"the plan computes from tiers {sorted(tiers)}; this executor computes from one")
    return used[0]


def check_store(graph: Graph, plan: Plan, store: WeightReader) -> None:
    """Every homed storage that the plan places lies in the store. Raises PlanMismatchError."""
    for name in plan.residencies_of:
        storage = graph.storage.get(name)
        if storage is None:
            raise PlanMismatchError(f"the plan places '{name}', which the graph does not have; plan again")
        if not storage.homed:
            continue
        entry = store.entries.get(storage.blob or "")
        if entry is None or storage.blob_offset + storage.nbytes > entry.nbytes:
            raise PlanMismatchError(
                f"'{name}' should be bytes [{storage.blob_offset}, {storage.blob_offset + storage.nbytes}) of blob "
                f"'{storage.blob}', of which the store has {entry.nbytes if entry else 0}; plan again"
            )


def opaque_elements(plan: Plan, graph: Graph, kernels: Mapping[str, Kernel]) -> dict[str, int]:
    """ONNX's element types of opaque tensors, as the kernels that read them declare; to make empty sequences."""
    found: dict[str, int] = {}
    for step in plan.steps:
        if step.op not in kernels:
            continue
        for port, tensor in zip(kernels[step.op].inputs, graph.operator[step.op].inputs, strict=False):
            if graph.tensor[tensor].storage is None and port.element:
                found.setdefault(tensor, port.element)
    return found
