"""Tensors that stand in for those on 'meta' while a module is traced as if it were on the CPU."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..memory import untouched


@contextmanager
def on_cpu(module: nn.Module, given: Any) -> Generator[Any]:
    """The module's tensors and the arguments, those on 'meta' replaced by ones on the CPU that take no memory.

    Operators are chosen by device, so a graph that was traced on 'meta' would not be the one that the CPU executes.
    """
    made: dict[int, torch.Tensor] = {}

    def stand_in(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_meta:
            return value
        if id(value) not in made:
            made[id(value)] = _untouched(value)
        return made[id(value)]

    tables: list[dict[str, Any]] = [t for p in module.modules() for t in (p._parameters, p._buffers)]  # pyright: ignore
    before = [dict(t) for t in tables]
    try:
        for table in tables:
            table.update((name, stand_in(value)) for name, value in list(table.items()))
        yield pytree.tree_map(stand_in, given)
    finally:
        for table, values in zip(tables, before, strict=True):
            table.update(values)


def _untouched(value: torch.Tensor) -> torch.Tensor:
    """A tensor of the same form on the CPU whose memory is reserved only, never touched."""
    span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) if value.numel() else 0
    region = untouched(max(span * value.element_size(), 1))
    flat = torch.frombuffer(region, dtype=torch.uint8, count=span * value.element_size()) if span else torch.empty(0)
    tensor = flat.view(value.dtype).as_strided(value.shape, value.stride())
    made = nn.Parameter(tensor, value.requires_grad) if isinstance(value, nn.Parameter) else tensor
    return made.requires_grad_(value.requires_grad)
