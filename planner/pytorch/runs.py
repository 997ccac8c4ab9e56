"""Tensors that a module stacks or cuts out of those of its checkpoint, followed as runs of bytes, not as values.

transformers says how with operations on tensors (stack, cat, chunk). They run here on stand-ins that know where their
bytes lie, so a stacked tensor of many gigabytes costs nothing, and is read from the places of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any

from ...ir.program import FilePiece
from .tensors import FileTensor

PIECES_LIMIT = 1 << 16
"""A tensor in more pieces than this would be read a few bytes at a time: its layout has to be changed, not followed."""


class NotRunsError(Exception):
    """An operation that does more than move whole runs of bytes."""


class Runs:
    """A dense tensor known by the places of its bytes, in order; `element_nbytes` for each element."""

    def __init__(self, dtype: str, shape: Sequence[int], pieces: Iterable[FilePiece]) -> None:
        self.kind = dtype
        self.shape = tuple(shape)
        self.pieces = _joined(pieces)
        if len(self.pieces) > PIECES_LIMIT:
            raise NotRunsError(f"it would lie in {len(self.pieces)} pieces")

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of dimensions, as torch's method."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape or one dimension, as torch's method."""
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self) -> Runs:
        """Itself: its elements are dense."""
        return self

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Runs, ...]:
        """As torch.chunk."""
        return _split(self, -(-self.shape[dim] // chunks), dim)

    def split(self, split_size: int | Sequence[int], dim: int = 0) -> tuple[Runs, ...]:
        """As torch.split."""
        return _split(self, split_size, dim)

    def __getattr__(self, name: str) -> Any:
        raise NotRunsError(f"it is asked for .{name}")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch calls for its functions on these."""
        known = {"stack": _stack, "cat": _cat, "chunk": cls.chunk, "split": cls.split}
        name = getattr(func, "__name__", str(func))
        if name not in known:
            raise NotRunsError(f"it goes through torch.{name}")
        return known[name](*args, **(kwargs or {}))


def runs_of(tensor: FileTensor) -> Runs:
    """The stand-in of a tensor of a file."""
    return Runs(tensor.dtype, tensor.shape, tensor.pieces)


def as_tensor(name: str, runs: Runs) -> FileTensor:
    """The tensor that a stand-in became."""
    return FileTensor(name, runs.kind, runs.shape, runs.pieces)


def _stack(tensors: Sequence[Runs], dim: int = 0) -> Runs:
    at = dim % (tensors[0].ndim + 1)
    return _cat([Runs(t.kind, (*t.shape[:at], 1, *t.shape[at:]), t.pieces) for t in tensors], at)


def _cat(tensors: Sequence[Runs], dim: int = 0) -> Runs:
    first = tensors[0]
    at = dim % first.ndim
    for t in tensors:
        same = t.kind == first.kind and t.ndim == first.ndim
        if not same or any(a != b for i, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if i != at):
            raise NotRunsError(f"{list(first.shape)} of {first.kind} is joined with {list(t.shape)} of {t.kind}")
    shape = (*first.shape[:at], sum(t.shape[at] for t in tensors), *first.shape[at + 1 :])
    outer = prod(first.shape[:at])
    blocks = [_equal_parts(t.pieces, outer) for t in tensors]
    return Runs(first.kind, shape, [p for o in range(outer) for block in blocks for p in block[o]])


def _split(runs: Runs, size: int | Sequence[int], dim: int) -> tuple[Runs, ...]:
    at, length = dim % runs.ndim, runs.shape[dim]
    sizes = [min(size, length - i) for i in range(0, length, size)] if isinstance(size, int) else list(size)
    edges = list(accumulate(sizes, initial=0))
    if edges[-1] != length:
        raise NotRunsError(f"a dimension of {length} is cut into {sizes}")
    rows = _equal_parts(runs.pieces, prod(runs.shape[:at]) * length)
    found: list[Runs] = []
    for lo, hi in pairwise(edges):
        kept = [p for i, row in enumerate(rows) if lo <= i % length < hi for p in row]
        found.append(Runs(runs.kind, (*runs.shape[:at], hi - lo, *runs.shape[at + 1 :]), kept))
    return tuple(found)


def _equal_parts(pieces: Sequence[FilePiece], count: int) -> list[list[FilePiece]]:
    """The bytes of `pieces`, in order, in `count` equal parts."""
    total = sum(p.nbytes for p in pieces)
    if count > PIECES_LIMIT:
        raise NotRunsError(f"it would be cut into {count} pieces")
    size = total // max(count, 1)
    parts: list[list[FilePiece]] = [[] for _ in range(count)]
    at = 0
    for piece in pieces:
        done = 0
        while done < piece.nbytes:
            step = min(piece.nbytes - done, size - at % size)
            parts[at // size].append(FilePiece(piece.path, piece.file_offset + done, step))
            at, done = at + step, done + step
    return parts


def _joined(pieces: Iterable[FilePiece]) -> tuple[FilePiece, ...]:
    """The same bytes with neighbours in the file as one piece."""
    found: list[FilePiece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last is not None and last.path == piece.path and last.file_offset + last.nbytes == piece.file_offset:
            found[-1] = FilePiece(last.path, last.file_offset, last.nbytes + piece.nbytes)
        elif piece.nbytes or not found:
            found.append(piece)
    return tuple(found)
