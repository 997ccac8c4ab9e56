"""Where the elements of a torch tensor lie in its storage, in the words of `ir.graph`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

OPAQUE = "opaque"


def dtype_name(dtype: torch.dtype) -> str:
    """numpy's (or ml_dtypes') name of a torch dtype: 'float32', 'bfloat16', 'float8_e4m3fn', ..."""
    return str(dtype).removeprefix("torch.")


def known_shape(value: torch.Tensor) -> tuple[int, ...] | None:
    """The shape, None where it depends on data, or where the layout has no storage (sparse tensors)."""
    sizes = (*value.shape, *value.stride())
    if value.layout is not torch.strided or any(isinstance(n, torch.SymInt) for n in sizes):
        return None
    return tuple(value.shape)


def covered(value: torch.Tensor) -> tuple[int, int]:
    """First byte and number of bytes of the smallest range of its storage that holds every element of `value`.

    Elements of others may lie inside that range too: those between the rows of a slice, say.
    """
    start = int(value.storage_offset()) * value.element_size()
    if value.numel() == 0:
        return start, 0
    last = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    return start, (last + 1) * value.element_size()


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a dense tensor with the last dimension innermost."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(1, n)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill a range, each once, in whatever order of dimensions."""
    step = 1
    for stride, n in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if n != 0 and stride != step:
            return False
        step *= n
    return True


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the strides are those of `row_major`, dimensions of one element aside."""
    wanted = row_major(shape)
    return 0 in shape or all(n == 1 or s == w for n, s, w in zip(shape, strides, wanted, strict=True))
