"""Experts that a plan reads whole: fused into one tensor a layer, which an operator takes, whoever is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .ir.files import PlanFile
from .ir.sizes import format_size

EXPERTS = "experts"
"""What transformers calls the module that holds the experts of a layer."""


@dataclass(frozen=True, slots=True)
class WholeExperts:
    """Layers whose experts operators read whole, how many experts one has at most, and the bytes of all."""

    layers: int
    experts: int
    nbytes: int

    @property
    def facts(self) -> dict[str, Any]:
        """As `plan --json` has it."""
        return {"layers": self.layers, "experts": self.experts, "nbytes": self.nbytes}

    @property
    def text(self) -> str:
        """A line of a plan's table."""
        return (
            f"the {self.experts} experts of each of {self.layers} layers are read whole, {format_size(self.nbytes)} a "
            "pass, whichever the tokens choose"
        )


def whole_experts(file: PlanFile) -> WholeExperts | None:
    """What `file`, the plan of a module, reads so: parameters [experts, rows, columns] of modules called 'experts'."""
    if file.module is None:
        return None
    read = {t for op in file.graph.operators for t in op.inputs}
    layers: dict[str, list[tuple[int, int]]] = {}
    for parameter in file.module.parameters:
        tensor = file.graph.tensor[parameter.tensor]
        path = parameter.names[0].split(".")
        if tensor.id in read and tensor.shape is not None and len(tensor.shape) == 3 and EXPERTS in path:
            layer = ".".join(path[: path.index(EXPERTS)])
            layers.setdefault(layer, []).append((tensor.shape[0], tensor.nbytes))
    return _together(list(layers.values())) if layers else None


def _together(layers: Sequence[Sequence[tuple[int, int]]]) -> WholeExperts:
    tensors = [t for layer in layers for t in layer]
    return WholeExperts(len(layers), max(n for n, _ in tensors), sum(nbytes for _, nbytes in tensors))
