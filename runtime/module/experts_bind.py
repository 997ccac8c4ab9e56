"""Where a module has its experts, as a plan names them; and what stands there while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from ...ir.errors import InputError, PlanMismatchError
from ...ir.program import ExpertLayer
from .experts_slots import Piece, fused_pieces, whole_piece
from .lazy import LazyTensor
from .weights import Weights

Held: TypeAlias = "list[tuple[dict[str, Any], str, LazyTensor]]"
"""Parameters of one expert: the dictionary of its module, the name there, and what stands there."""

_TOLD = frozenset(("shape", "dtype", "device", "ndim", "size", "dim", "layout", "is_cuda"))


class Slices:
    """Stands for a fused parameter while the loop over experts runs: `[e]` is the slice of expert e, else nothing."""

    def __init__(self, lazy: LazyTensor, take: Callable[[int], torch.Tensor]) -> None:
        self._lazy = lazy
        self._take = take

    def __getitem__(self, expert: Any) -> torch.Tensor:
        single = isinstance(expert, int) or (isinstance(expert, torch.Tensor) and expert.numel() == 1)
        if not single:
            raise InputError(
                f"'{self._lazy.source.name}' is read expert by expert, and is indexed with {expert!r} here; plan the "
                "module with memory for all of its experts"
            )
        return self._take(int(expert))

    def __getattr__(self, name: str) -> Any:
        if name in _TOLD:
            return getattr(self._lazy, name)
        raise InputError(
            f"'{self._lazy.source.name}' is read expert by expert, and its '{name}' is asked for; plan the module with "
            "memory for all of its experts"
        )


def expert_pieces(
    modules: Mapping[str, nn.Module], layers: Sequence[ExpertLayer]
) -> tuple[Weights, list[list[list[Piece]]]]:
    """By layer and expert its pieces, and the weights that placed them. Raises PlanMismatchError."""
    found: list[list[list[Piece]]] = []
    lazies: list[LazyTensor] = []
    for layer in layers:
        part = modules.get(layer.module)
        if part is None or not layer.parameters or layer.experts < 1:
            raise PlanMismatchError(
                f"the plan caches {len(layer.parameters)} parameters of {layer.experts} experts of '{layer.module}', "
                "which the module does not have; plan again"
            )
        if layer.fused:
            if not hasattr(type(part).forward, "__wrapped__"):
                raise PlanMismatchError(
                    f"'{layer.module}' is a {type(part).__name__}, which is not of transformers' experts; plan again"
                )
            held = [_lazy(part, name, layer) for name in layer.parameters]
            lazies += held
            columns = [fused_pieces(lazy, layer.experts) for lazy in held]
            found.append([list(row) for row in zip(*columns, strict=True)])
        else:
            members = list(part.children())
            if len(members) != layer.experts:
                raise PlanMismatchError(
                    f"'{layer.module}' has {len(members)} experts, the plan is for {layer.experts}; plan again"
                )
            rows = [held_by_experts(member, layer.parameters) for member in members]
            lazies += [lazy for row in rows for _, _, lazy in row]
            found.append([[whole_piece(lazy) for _, _, lazy in row] for row in rows])
    return lazies[0].weights, found


def held_by_experts(expert: nn.Module, names: Sequence[str]) -> Held:
    """The parameters `names` of one expert of a list. Raises PlanMismatchError for one that no plan has placed."""
    found: Held = []
    for name in names:
        prefix, _, attribute = name.rpartition(".")
        try:
            part = expert.get_submodule(prefix)
        except AttributeError as error:
            raise PlanMismatchError(f"an expert has no module '{prefix}'; plan again") from error
        lazy = part._parameters.get(attribute)  # pyright: ignore[reportPrivateUsage]
        if not isinstance(lazy, LazyTensor):
            raise PlanMismatchError(f"the plan does not place '{name}' of an expert; plan again")
        found.append((part._parameters, attribute, lazy))  # pyright: ignore[reportPrivateUsage, reportArgumentType]
    return found


def _lazy(part: nn.Module, name: str, layer: ExpertLayer) -> LazyTensor:
    found = part._parameters.get(name)  # pyright: ignore[reportPrivateUsage]
    if not isinstance(found, LazyTensor):
        raise PlanMismatchError(f"the plan does not place '{name}' of '{layer.module}'; plan again")
    return found
