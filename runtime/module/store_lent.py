"""Memory of a module that is let go for a while, and comes back as it was: with what else has shown bytes of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...ir.errors import InputError
from ..store_pieces import PIECE_NBYTES
from .store_parts import Part

ALIGNMENT = 64
"""PyTorch's memory begins at multiples of this; bits of a product depend on where its operands lie within them."""

Read = Callable[[str, int, memoryview], None]
"""Fill with the bytes of a blob from an offset on."""


@dataclass(slots=True)
class Shown:
    """A tensor that no plan places, whose elements lie in memory that is let go; meanwhile it has some of its own."""

    tensor: Any
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class Memory:
    """What lies in one stretch of memory: a part, or several parts and other tensors that overlap. `missing` parts are
    not in the file yet."""

    parts: tuple[Part, ...]
    shown: tuple[Shown, ...]
    addresses: tuple[int, ...]
    missing: int
    freed: bool = False

    def free(self) -> None:
        """Leave the parts' tensors shape and type, and one element for all."""
        self.freed = True
        for one in self.shown:
            tensor = one.tensor
            with mode_of(tensor):
                own = torch.empty_strided(one.shape, one.strides, dtype=tensor.dtype)
                own.copy_(tensor.data)
                tensor.data = own
        for part in self.parts:
            for tensor in part.tensors:
                with mode_of(tensor):
                    tensor.data = tensor.new_zeros(()).expand(part.shape)

    def restore(self, read: Read) -> None:
        """Give everything its bytes back, if they were let go; what overlapped does so again."""
        if not self.freed:
            return
        if len(self.parts) == 1 and not self.shown:
            self._restore_part(read)
        else:
            self._restore_all(read)
        self.freed = False

    def _restore_part(self, read: Read) -> None:
        part = self.parts[0]
        with mode_of(part.tensors[0]):
            fresh = part.tensors[0].new_empty_strided(part.shape, part.strides)
        _read(part, bytes_of(fresh, part.nbytes), read)
        for tensor in part.tensors:
            with mode_of(tensor):
                tensor.data = fresh

    def _restore_all(self, read: Read) -> None:
        begin = min(self.addresses) // ALIGNMENT * ALIGNMENT
        end = max(a + p.nbytes for p, a in zip(self.parts, self.addresses, strict=True))
        end = max([end, *(one.address + _extent(one.tensor) for one in self.shown)])
        whole = torch.empty(end - begin, dtype=torch.uint8)
        content = bytes_of(whole, end - begin)
        for part, address in zip(self.parts, self.addresses, strict=True):
            _read(part, content[address - begin :][: part.nbytes], read)
        for part, address in zip(self.parts, self.addresses, strict=True):
            for tensor in part.tensors:
                with mode_of(tensor):
                    tensor.data = _within(whole, address - begin, tensor, part.shape, part.strides)
        for one in self.shown:
            with mode_of(one.tensor):
                view = _within(whole, one.address - begin, one.tensor, one.shape, one.strides)
                view.copy_(one.tensor.data)  # a pass may have written to it
                one.tensor.data = view


def memories_of(parts: Sequence[Part], module: nn.Module) -> list[Memory]:
    """The memory that `parts` lie in, each stretch once, with the other tensors of `module` that overlap them.

    Raises InputError where overlapping tensors could not be made again.
    """
    own = {id(t) for part in parts for t in part.tensors}
    others = {id(t): t for t in (*module.parameters(), *module.buffers()) if id(t) not in own and _in_memory(t)}
    shown = [Shown(t, t.data_ptr(), tuple(t.shape), tuple(t.stride())) for t in others.values()]
    spans: list[tuple[int, int, Part | Shown]] = [(p.address, p.address + p.nbytes, p) for p in parts]
    spans += [(one.address, one.address + _extent(one.tensor), one) for one in shown]
    found: list[Memory] = []
    stretch: list[Part | Shown] = []
    reached = 0
    for begin, end, one in sorted(spans, key=lambda s: s[:2]):
        if begin >= reached and stretch:
            found += _memory(stretch)
            stretch = []
        stretch.append(one)
        reached = max(reached, end)
    return found + _memory(stretch)


def _memory(stretch: Sequence[Part | Shown]) -> list[Memory]:
    parts = tuple(one for one in stretch if isinstance(one, Part))
    shown = tuple(one for one in stretch if isinstance(one, Shown))
    if not parts:
        return []
    if len(stretch) > 1:
        for one in stretch:
            tensor = one.tensors[0] if isinstance(one, Part) else one.tensor
            if one.address % tensor.element_size():
                raise InputError(
                    f"a {tensor.dtype} of shape {list(tensor.shape)} shares memory with another and lies at address "
                    f"{one.address}, which is no multiple of its {tensor.element_size()} bytes; give it memory of its "
                    "own (.clone())"
                )
    return [Memory(parts, shown, tuple(p.address for p in parts), len(parts))]


def _in_memory(tensor: torch.Tensor) -> bool:
    """Whether it is a plain tensor with elements in the host's memory, each at an address of its own."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.device.type != "cpu":
        return False
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return False
    return tensor.numel() > 0 and all(s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from its first element to the end of its last one."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _within(
    whole: torch.Tensor, at: int, like: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...]
) -> torch.Tensor:
    """A tensor over the memory of `whole` from byte `at` on, of the type of `like`."""
    made = torch.empty(0, dtype=like.dtype)
    return made.set_(whole.untyped_storage(), at // like.element_size(), shape, strides)


def _read(part: Part, target: NDArray[np.uint8], read: Read) -> None:
    for start in range(0, part.nbytes, PIECE_NBYTES):
        read(part.blob, part.offset + start, target[start : start + PIECE_NBYTES].data)


def bytes_of(tensor: Any, nbytes: int) -> NDArray[np.uint8]:
    """The memory of a dense tensor, as long as somebody else keeps it alive."""
    if not nbytes:
        return np.empty(0, np.uint8)
    return np.frombuffer(memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())), np.uint8)


def mode_of(tensor: Any) -> AbstractContextManager[None]:
    """In which a tensor was made, so that another one can take its memory's place: PyTorch has two kinds."""
    return torch.inference_mode(tensor.is_inference())
