"""What autograd saves, by its bytes: which saves are of the same bytes, and whether they changed since."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, Protocol, cast

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

from ...ir.errors import ExecutionError
from ..directio import BLOCK
from .allocator import SMALLEST_NBYTES


class ModifiedError(ExecutionError, RuntimeError):
    """A saved tensor was written in place before the backward pass read it. autograd raises a RuntimeError there."""


class Content(Protocol):
    """The bytes of a storage at the time when they were saved. `version` is the storage's, as autograd counts it."""

    version: int


class Contents:
    """Finds what was saved before, for as long as a save of it lives.

    By the storage, not by its address: a weak reference keeps the number of a storage from being used again.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[StorageWeakRef, weakref.ref[Content]]] = {}

    def find(self, tensor: torch.Tensor) -> Content | None:
        """The content that a save of `tensor` shares: of the same storage, and nothing wrote to it in between."""
        entry = self._found.get(storage_of(tensor))
        content = None if entry is None else entry[1]()
        return content if content is not None and content.version == tensor._version else None

    def add(self, tensor: torch.Tensor, content: Content) -> None:
        """Later saves of these bytes find `content`, in place of an older one of this storage."""
        storage = StorageWeakRef(tensor.untyped_storage())
        found, number = self._found, storage.cdata

        def forget(gone: weakref.ref[Content]) -> None:
            entry = found.get(number)
            if entry is not None and entry[1] is gone:
                found.pop(number, None)

        found[number] = (storage, weakref.ref(content, forget))

    def __len__(self) -> int:
        return len(self._found)


def storage_of(tensor: torch.Tensor) -> int:
    """The number of its storage: no other has it while this one, or a weak reference to it, lives."""
    return int(cast(Any, tensor.untyped_storage())._cdata)


def can_leave(tensor: torch.Tensor) -> bool:
    """Whether its bytes can go below and come back as an equal tensor: plain, dense, in host memory, not small."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.untyped_storage().nbytes() >= SMALLEST_NBYTES
    )


def storages_of(module: torch.nn.Module) -> frozenset[int]:
    """Numbers of the storages of its parameters and buffers, which are in memory whether they are saved or not."""
    own = (*module.parameters(), *module.buffers())
    return frozenset(storage_of(t) for t in own if not is_lazy(t) and t.layout is torch.strided)


class Shape:
    """How a saved tensor lies in its storage."""

    __slots__ = ("dtype", "offset", "size", "stride")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.size = tensor.size()
        self.stride = tensor.stride()
        self.offset = int(tensor.storage_offset())

    def over(self, base: torch.Tensor) -> torch.Tensor:
        """The tensor, where `base` are the bytes of its storage."""
        offset = int(base.storage_offset()) // self.dtype.itemsize + self.offset
        with torch.no_grad():
            return torch.empty(0, dtype=self.dtype).set_(base.untyped_storage(), offset, self.size, self.stride)


def block_aligned(nbytes: int) -> torch.Tensor:
    """Uninitialised bytes at an address that the disk can write to, so at least as aligned as torch's own."""
    room = torch.empty(nbytes + BLOCK, dtype=torch.uint8)
    lead = -room.data_ptr() % BLOCK
    return room[lead : lead + nbytes]


def all_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its storage, whole. It shares memory, not the version."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def view_of(data: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor of bytes, which must outlive the view."""
    return memoryview((ctypes.c_char * data.nbytes).from_address(data.data_ptr())).cast("B")


def modified(shape: tuple[int, ...]) -> ModifiedError:
    """The error for a saved tensor of that shape."""
    return ModifiedError(
        f"a saved tensor of shape {list(shape)} was modified by an in-place operation before the backward pass read "
        "it; autograd refuses this without hooks, too: write `x = x + y` in place of `x += y`"
    )
