"""Weights of a module that exists in memory alone: written to a nameless file, each freed when it is there."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph, Tensor
from ...ir.paths import cache_dir
from ...ir.program import BlobSource, ModuleProgram, Parameter, row_major
from ..directio import DirectFile
from ..memory import settle_allocator, trim_heap
from ..reading import BlobEntry, CheckedBlobs
from ..store import Progress, layout
from ..store_build import BlobWriter
from ..store_pieces import PIECE_NBYTES
from .lazy import LazyTensor

_REMEDY = "the disk or the memory of this machine is at fault; make the module again"


@dataclass(slots=True)
class _Part:
    """Bytes [offset, offset + nbytes) of a blob are the elements of `tensors`: one, or several that share memory."""

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    tensors: tuple[Any, ...]
    freed: bool = False

    def free(self) -> None:
        """Leave the tensors shape and type, and one element for all."""
        self.freed = True
        for tensor in self.tensors:
            with _mode_of(tensor):
                tensor.data = tensor.new_zeros(()).expand(self.shape)


class MemoryStore(CheckedBlobs):
    """The placed parameters of one module, which hold no memory as long as this has them."""

    def __init__(self, entries: list[BlobEntry], file: DirectFile, parts: dict[str, list[_Part]]) -> None:
        super().__init__(entries, file, remedy=_REMEDY)
        self._parts = parts

    def restore(self) -> None:
        """Give every parameter that still is without memory its bytes back; the module is as it was.

        Raises ExecutionError where the file cannot be read.
        """
        self.hand_over()()

    def hand_over(self) -> Callable[[], None]:
        """What `restore` does. From here on this holds no parameter: those who read from it run for as long as what the
        parameters have become is not forgotten."""
        parts, self._parts = self._parts, {}
        return partial(self._restore_all, parts)

    def _restore_all(self, of_blobs: dict[str, list[_Part]]) -> None:
        for blob, parts in of_blobs.items():
            for part in parts:
                if part.freed:
                    self._restore(blob, part)

    def _restore(self, blob: str, part: _Part) -> None:
        with _mode_of(part.tensors[0]):
            fresh = part.tensors[0].new_empty_strided(part.shape, part.strides)
        content = _bytes(fresh, part.nbytes)
        for start in range(0, part.nbytes, PIECE_NBYTES):
            self.read(blob, part.offset + start, content[start : start + PIECE_NBYTES].data)
        for tensor in part.tensors:
            with _mode_of(tensor):
                tensor.data = fresh
        part.freed = False


def store_module(
    program: ModuleProgram,
    graph: Graph,
    module: Any,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> MemoryStore:
    """Move the placed parameters of `module` (an nn.Module) into a nameless file in `folder` (by default the cache).

    They are written one by one, and each one's memory is freed as soon as it is in the file: afterwards it has its
    shape and type and one element. Raises InputError for a parameter that is not as the program says, ExecutionError
    where the disk has no room or fails; the module is then as it was.
    """
    folder = cache_dir() if folder is None else folder
    parts = _parts(program, graph, module)
    offsets, nbytes = layout(program)
    settle_allocator()
    file = DirectFile.scratch(folder, nbytes)
    entries: list[BlobEntry] = []
    try:
        with BlobWriter(file, nbytes, progress, keep_open=True) as writer:
            waiting: list[tuple[int, list[_Part]]] = []
            for source, begin in zip(program.blobs, offsets, strict=True):
                assert writer.position == begin, (source.blob, writer.position, begin)
                entries.append(_write_blob(source, parts[source.blob], writer))
                waiting.append((begin + source.nbytes, parts[source.blob]))
                _free_written(waiting, writer.written)
        _free_written(waiting, nbytes)
    except BaseException:
        try:
            MemoryStore(entries, file, parts).restore()
        finally:
            file.close()
        raise
    trim_heap()
    return MemoryStore(entries, file, parts)


def _write_blob(source: BlobSource, parts: list[_Part], writer: BlobWriter) -> BlobEntry:
    begin = writer.position
    for part in parts:
        writer.write(np.zeros(begin + part.offset - writer.position, np.uint8))
        writer.write(_bytes(part.tensors[0], part.nbytes))
    writer.write(np.zeros(begin + source.nbytes - writer.position, np.uint8))
    return BlobEntry(source.blob, begin, source.nbytes, writer.finish_blob())


def _free_written(waiting: list[tuple[int, list[_Part]]], written: int) -> None:
    """Free what has reached the file as a whole."""
    while waiting and waiting[0][0] <= written:
        for part in waiting.pop(0)[1]:
            part.free()


def _bytes(tensor: Any, nbytes: int) -> NDArray[np.uint8]:
    """The memory of a dense tensor, as long as somebody else keeps it alive."""
    if not nbytes:
        return np.empty(0, np.uint8)
    return np.frombuffer(memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())), np.uint8)


def _parts(program: ModuleProgram, graph: Graph, module: Any) -> dict[str, list[_Part]]:
    """What each blob is made of, in the order of its bytes; everything that may be wrong is found here."""
    found: dict[str, dict[int, _Part]] = {source.blob: {} for source in program.blobs}
    named: dict[int, tuple[str, _Part]] = {}  # by tensor
    for parameter in program.parameters:
        wanted = graph.tensor.get(parameter.tensor)
        storage = graph.storage.get((wanted and wanted.storage) or "")
        if wanted is None or storage is None or storage.blob not in found:
            raise PlanMismatchError(f"parameter '{parameter.names[0]}' has no blob in the graph; plan again")
        part = _part(parameter, wanted, storage.blob_offset + wanted.offset, module)
        same = found[storage.blob].setdefault(part.offset, part)
        if same is not part:
            if _address(same) != _address(part) or same.nbytes != part.nbytes:
                raise PlanMismatchError(
                    f"parameter '{parameter.names[0]}' ({part.nbytes} bytes) shares blob '{storage.blob}' with "
                    f"another ({same.nbytes} bytes) that lies elsewhere in memory; plan again"
                )
            same.tensors = tuple({id(t): t for t in (*same.tensors, *part.tensors)}.values())
        for tensor in part.tensors:
            other, first = named.setdefault(id(tensor), (parameter.names[0], same))
            if first is not same:
                raise InputError(
                    f"parameters '{other}' and '{parameter.names[0]}' are tied, one tensor in two places, and they "
                    "were not when the plan was made; plan again"
                )
    ordered: dict[str, list[_Part]] = {}
    for source in program.blobs:
        ordered[source.blob] = sorted(found[source.blob].values(), key=lambda p: p.offset)
        _check_blob(source, ordered[source.blob])
    return ordered


def _check_blob(source: BlobSource, parts: list[_Part]) -> None:
    end = 0
    for part in parts:
        if part.offset < end:
            raise PlanMismatchError(
                f"parameters overlap in blob '{source.blob}': one ends at byte {end}, the next begins at "
                f"{part.offset}; plan again"
            )
        end = part.offset + part.nbytes
    if not parts or end > source.nbytes:
        raise PlanMismatchError(
            f"blob '{source.blob}' has {source.nbytes} bytes, the parameters in it end at byte {end}; plan again"
        )


def _mode_of(tensor: Any) -> AbstractContextManager[None]:
    """In which a tensor was made, so that another one can take its memory's place: PyTorch has two kinds."""
    return torch.inference_mode(tensor.is_inference())


def _part(parameter: Parameter, wanted: Tensor, offset: int, module: Any) -> _Part:
    """The tensors of a parameter, checked. Raises InputError with what is and what should be."""
    tensors = {id(t): t for t in (_find(module, name) for name in parameter.names)}
    shape = wanted.shape or ()
    strides = parameter.strides or row_major(shape)
    for name, tensor in zip(parameter.names, (_find(module, n) for n in parameter.names), strict=True):
        if isinstance(tensor, LazyTensor):
            raise InputError(
                f"parameter '{name}' is run by a plan already, that of this module or of one that shares it; end that "
                "first (.tensorstow.give_back()), or plan one module that holds both"
            )
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (tuple(tensor.shape), dtype) != (shape, wanted.dtype):
            raise InputError(
                f"parameter '{name}' has shape {list(tensor.shape)} of {dtype}, the plan is for {list(shape)} of "
                f"{wanted.dtype}; plan again for the module as it is"
            )
        if tensor.is_conj() or tensor.is_neg():
            kind = "conjugate" if tensor.is_conj() else "negative"
            raise InputError(
                f"parameter '{name}' is the {kind} of what is in its memory, and was not when the plan was made; make "
                "it one of its own (.resolve_conj().resolve_neg()), or plan again"
            )
        if tensor.device.type != "cpu":
            raise InputError(f"parameter '{name}' is on device '{tensor.device}'; move the module to 'cpu' first")
        laid = tuple(s for s, n in zip(tensor.stride(), shape, strict=True) if n > 1)
        asked = tuple(s for s, n in zip(strides, shape, strict=True) if n > 1)
        if laid != asked and wanted.nbytes:
            raise InputError(
                f"parameter '{name}' has strides {list(tensor.stride())}, the plan is for {list(strides)}; plan again"
            )
    part = _Part(offset, wanted.nbytes, shape, tuple(strides), tuple(tensors.values()))
    if len({t.data_ptr() for t in part.tensors}) > 1:
        raise InputError(
            f"parameters {list(parameter.names)} were tied when the plan was made and are not now; plan again"
        )
    return part


def _find(module: Any, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    try:
        found = module.get_submodule(owner)
    except AttributeError:
        found = None
    for table in ("_parameters", "_buffers"):
        tensor = getattr(found, table, {}).get(last)
        if tensor is not None:
            return tensor
    raise InputError(f"the module has no parameter or buffer '{name}', which the plan places; plan again for this one")


def _address(part: _Part) -> int:
    return int(part.tensors[0].data_ptr())
