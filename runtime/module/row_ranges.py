"""Products with a weight that is placed in ranges of its rows: a range's columns are computed when the range is there.

The result has to have the bits of the undivided product. PyTorch's kernels choose how to sum by the shapes of their
operands and by where in a matrix an element stands, never by values. So before the first product of each shape the
divided and the undivided one are computed and compared, on a weight that is zero but for rows at the ranges' ends and a
sample of others: zeros that nobody has written take no memory. Where they differ the whole weight is read, each time:
slower, and in memory that was not planned, but the right bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import nn

from ...ir.errors import PlanMismatchError
from ...ir.graph import Graph
from ...ir.program import RowRanges
from ..memory import untouched
from .lazy import LazyTensor
from .replaced import Forward
from .weights import Source, Weights

EDGE_ROWS = 8
"""Of each range so many rows from either end are compared: of the tiles that a kernel cuts short, some of each."""
SAMPLED_ROWS = 512
"""Of all rows between, so many."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Rows [`lo`, `hi`); `at` has, by step, the range and, if that is placed too, the bias."""

    lo: int
    hi: int
    steps: tuple[int, ...]
    at: dict[int, tuple[torch.Tensor, ...]]


def by_ranges(weights: Weights, module: nn.Module, original: Forward, ranges: Sequence[Source]) -> Forward | None:
    """Of an nn.Linear whose weight is placed as `ranges`; None where these do not come with its bias."""
    held: dict[str, Any] = module._parameters  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
    weight, bias = held["weight"], held.get("bias")
    beside = [bias.source] if isinstance(bias, LazyTensor) else []
    found: list[_Range] = []
    lo = 0
    for one in ranges:
        steps = weights.common_steps([one, *beside])
        if not steps:
            return None
        found.append(_Range(lo, lo + one.shape[0], steps, weights.together([one, *beside])))
        lo += one.shape[0]
    same: dict[tuple[Any, ...], bool] = {}
    clock, using, plain, dtype = weights.clock, weights.using, torch.Tensor, ranges[0].dtype

    def forward(input: torch.Tensor) -> Any:  # noqa: A002 - PyTorch's name
        if type(input) is not plain:
            return original(input)
        if input.dtype is not dtype or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return original(input)
        with using, torch.no_grad():
            if held.get("weight") is not weight or held.get("bias") is not bias:
                return original(input)  # somebody has put another there, or this thread, in `forwards.together`
            key = (input.shape, input.stride(), weight.source.requires_grad, torch.get_num_threads())
            if key not in same:
                same[key] = agree(input, weight, bias is not None, [(r.lo, r.hi) for r in found])
            if not same[key]:
                return original(input)
            made = torch.empty((*input.shape[:-1], lo), dtype=dtype)
            for one in found:
                values = one.at.get(clock.step) or one.at[weights.arrive(one.steps)]
                own = None if bias is None else (values[1] if beside else bias)[one.lo : one.hi]
                made[..., one.lo : one.hi] = F.linear(input, values[0], own)
            return made

    return update_wrapper(forward, original)


def range_sources(
    graph: Graph, rows: RowRanges, whole: Source, steps: Mapping[str, tuple[int, ...]]
) -> tuple[Source, ...]:
    """The ranges of the weight `whole`, which `steps` read. Raises PlanMismatchError where they are not its rows."""
    found: list[Source] = []
    row_nbytes = whole.tensor.nbytes // max(1, whole.shape[0])
    begin = whole.storage.blob_offset + whole.tensor.offset
    wanted = (whole.storage.blob, whole.tensor.dtype, *whole.shape[1:])
    for name in rows.ranges:
        tensor = graph.tensor.get(name)
        storage = None if tensor is None else graph.storage.get(tensor.storage or "")
        if tensor is None or storage is None or not tensor.shape:
            raise PlanMismatchError(f"'{name}' should be rows of '{whole.name}', and is no weight; plan again")
        at = storage.blob_offset + tensor.offset
        same = (storage.blob, tensor.dtype, *tensor.shape[1:]) == wanted
        if not same or at != begin or tensor.nbytes != tensor.shape[0] * row_nbytes:
            raise PlanMismatchError(
                f"'{name}' should be rows of '{whole.name}' from byte {begin} of '{whole.storage.blob}' on, and is "
                f"{tensor.nbytes} bytes from {at} of '{storage.blob}' on; plan again"
            )
        begin += tensor.nbytes
        strides = tuple(whole.strides)
        at_steps = steps.get(tensor.id, ())
        found.append(
            Source(name, tensor, storage, whole.dtype, strides, at_steps, None, requires_grad=whole.requires_grad)
        )
    end = whole.storage.blob_offset + whole.tensor.offset + whole.tensor.nbytes
    if begin != end:
        raise PlanMismatchError(
            f"the ranges of '{whole.name}' end at byte {begin} of '{whole.storage.blob}', it ends at {end}; plan again"
        )
    whole.ranges = tuple(found)
    return whole.ranges


def agree(input: torch.Tensor, weight: torch.Tensor, biased: bool, spans: Sequence[tuple[int, int]]) -> bool:  # noqa: A002
    """Whether a product of such an `input` with a weight such as `weight` has the same bits in ranges of rows.

    Compared are random numbers, in an input of the same shape and strides, and in the rows that `_rows` chooses.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.empty_strided(input.shape, input.stride(), dtype=input.dtype)
    if not x.numel():
        return False
    x.copy_(torch.randn(input.shape, generator=generator))
    whole = _zeros(weight)
    rows = [_rows(hi - lo, max(EDGE_ROWS, SAMPLED_ROWS // len(spans)), generator) for lo, hi in spans]
    for (lo, _), chosen in zip(spans, rows, strict=True):
        for row in chosen.tolist():
            whole[lo + row].copy_(torch.randn(weight.shape[1], generator=generator))
    bias = torch.randn(weight.shape[0], generator=generator).to(x.dtype) if biased else None
    wanted = F.linear(x, _like(whole, weight), bias)
    if not wanted.is_contiguous():
        return False
    for (lo, hi), chosen in zip(spans, rows, strict=True):
        part = F.linear(x, _like(whole[lo:hi], weight), None if bias is None else bias[lo:hi])
        if not torch.equal(part[..., chosen], wanted[..., lo:hi][..., chosen]):
            return False
    return True


def _like(matrix: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """PyTorch chooses kernels by whether a weight requires a gradient, too."""
    return nn.Parameter(matrix, requires_grad=True) if weight.requires_grad else matrix


def _rows(size: int, sampled: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of a range, counted from its first one: both ends, and a sample of what lies between."""
    if size <= 2 * EDGE_ROWS + sampled:
        return torch.arange(size)
    between = torch.randint(EDGE_ROWS, size - EDGE_ROWS, (sampled,), generator=generator)
    return torch.cat([torch.arange(EDGE_ROWS), between.unique(), torch.arange(size - EDGE_ROWS, size)])


def _zeros(weight: torch.Tensor) -> torch.Tensor:
    """A matrix of the shape and type of `weight`, of zeros, which has memory only where it is written to."""
    memory = untouched(weight.numel() * weight.element_size())
    return torch.frombuffer(memory, dtype=weight.dtype).view(tuple(weight.shape))
