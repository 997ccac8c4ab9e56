"""Memory for experts, and how one is read from the store into a place of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ir.errors import PlanMismatchError
from ...ir.program import row_major
from ..arena import Arena
from ..directio import BLOCK, never
from ..tiers import load_homed
from .experts_stats import ExpertStats
from .lazy import LazyTensor
from .weights import Source, Weights, shaped

READ_NBYTES = 4 << 20
"""The largest request."""
VECTOR = 64
"""Bits of a matrix product depend on its operands' addresses where these are not multiples of a vector."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter of one expert: `nbytes` bytes from byte `start` of the storage of `source` on.

    `lead` is the distance of its address from a block's boundary: that of its bytes in the store, so that they are
    read straight to their place, or at least what it is, within a vector, in PyTorch's own memory.
    """

    source: Source
    start: int
    nbytes: int
    lead: int
    shape: tuple[int, ...]


def fused_pieces(lazy: LazyTensor, experts: int) -> list[Piece]:
    """By expert, its slice of a parameter [experts, ...]. Raises PlanMismatchError for another shape."""
    source = lazy.source
    if not source.shape or source.shape[0] != experts or source.strides != row_major(source.shape):
        raise PlanMismatchError(
            f"'{source.name}' has shape {list(source.shape)} and strides {list(source.strides)}; it was planned as "
            f"{experts} experts one after another: plan again"
        )
    each = source.tensor.nbytes // experts
    return [_piece(source, e * each, each, source.shape[1:]) for e in range(experts)]


def whole_piece(lazy: LazyTensor) -> Piece:
    """All of a parameter that belongs to one expert."""
    return _piece(lazy.source, 0, lazy.source.tensor.nbytes, lazy.source.shape)


def _piece(source: Source, at: int, nbytes: int, shape: tuple[int, ...]) -> Piece:
    stored = source.storage.blob_offset + source.tensor.offset
    lead = (stored + at) % BLOCK if stored % VECTOR == 0 else at % VECTOR
    return Piece(source, source.tensor.offset + at, nbytes, lead, shape)


class ExpertSlots:
    """`slots` places, each large enough for every expert of `experts`: a sequence of pieces each, alike in number.

    Any thread may `load`. The memory is the host's, every page of it present.
    """

    def __init__(
        self, weights: Weights, experts: Sequence[Sequence[Piece]], slots: int, stats: ExpertStats, *, tier: str
    ) -> None:
        self.experts = experts
        self.slots = slots
        self._weights = weights
        self._stats = stats
        self._counting = threading.Lock()
        widths = [max(p.lead + p.nbytes for p in pieces) for pieces in zip(*experts, strict=True)]
        self._begins: list[int] = []
        end = 0
        for width in widths:
            self._begins.append(end)
            end += -(-width // BLOCK) * BLOCK
        self.slot_nbytes = end
        self._arena = Arena(end * slots, tier=tier)
        self._elements = torch.frombuffer(self._arena.view(0, self._arena.nbytes), dtype=torch.uint8)
        self._version = self._elements._version

    @property
    def nbytes(self) -> int:
        """Of all places."""
        return self._arena.nbytes

    def _begin(self, number: int, slot: int, piece: Piece) -> int:
        return slot * self.slot_nbytes + self._begins[number] + piece.lead

    def load(self, expert: int, slot: int) -> None:
        """Read all pieces of `expert`. Raises ExecutionError where they cannot be read."""
        nbytes = 0
        for number, piece in enumerate(self.experts[expert]):
            target = self._arena.view(self._begin(number, slot, piece), piece.nbytes)
            store, storage = self._weights.memory.store, piece.source.storage
            load_homed(store, storage, piece.start, target, READ_NBYTES, never)
            nbytes += piece.nbytes
        with self._counting:
            self._stats.read_nbytes += nbytes

    def tensor(self, expert: int, number: int, slot: int) -> torch.Tensor:
        """Piece `number` of `expert`, as PyTorch shows a slice of a parameter."""
        piece = self.experts[expert][number]
        begin = self._begin(number, slot, piece)
        return self._elements[begin : begin + piece.nbytes].view(piece.source.dtype).view(piece.shape)

    def parameter(self, expert: int, number: int, slot: int) -> torch.Tensor:
        """Piece `number` of `expert`, which is a whole parameter, as one."""
        piece = self.experts[expert][number]
        begin = self._begin(number, slot, piece)
        return shaped(self._elements[begin : begin + piece.nbytes], piece.source)

    def written(self) -> bool:
        """Whether PyTorch has written to the places since it was last asked, which it must not."""
        before, self._version = self._version, self._elements._version
        return before != self._version

    def close(self) -> None:
        """Give the memory back; again is allowed."""
        self._elements = torch.empty(0)
        self._arena.close()
