"""Ties the blobs of a lowered module to the tensors of a checkpoint: read where they lie, or repacked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ...ir.errors import InputError
from ...ir.graph import Graph, Storage, Tensor
from ...ir.paths import cache_dir
from ...ir.program import BlobSource, ModuleProgram, Parameter
from .matching import Matched
from .tensors import FileTensor

Reading = Literal["direct", "repacked"]

BLOCK = 4096
"""Direct input and output moves whole blocks of a file to addresses of the same distance from a block's boundary."""
ALIGNMENT = 64
"""Bits of a matrix product depend on its operands' addresses where these are not multiples of a vector."""


def bind(graph: Graph, program: ModuleProgram, matched: Matched, reading: Reading) -> tuple[Graph, ModuleProgram]:
    """Graph and program with the places of their parameters' bytes in the files of `matched`.

    'direct': the store is the files themselves. Of a parameter whose bytes begin at a multiple of 64, the storage
    becomes the window of whole blocks around them, so that reading needs no copy; the others are read through one.
    'repacked': each blob is copied into a store of ours once. A buffer that the files do not hold stays in the module.
    Raises InputError where the module places a parameter that is not in the files as a whole.
    """
    absent = {p.tensor for p in program.parameters if not any(n in matched.tensors for n in p.names)}
    graph, program = _kept(graph, program, absent)
    looked_up = {k.blob for k in program.lookups.values()}
    storages, tensors = dict(graph.storage), dict(graph.tensor)
    blobs: dict[str, BlobSource] = {}
    parameters: list[Parameter] = []
    for parameter in program.parameters:
        name = next(n for n in parameter.names if n in matched.tensors)
        tensor, storage = tensors[parameter.tensor], _own_storage(graph, parameter)
        found = matched.tensors[name]
        _check(name, tensor, storage, found)
        alone = _source(storage.blob or name, found)
        if reading == "direct" and len(found.pieces) == 1:
            storages[storage.id], tensors[tensor.id], blob = _in_place(storage, tensor, found, matched)
            blobs[blob.blob] = blob
        else:
            storages[storage.id] = replace(storage, blob=alone.blob, blob_offset=0)
            blobs[alone.blob] = alone
        if alone.blob in looked_up:
            blobs[alone.blob] = alone  # rows are counted from the table's first byte
        parameters.append(replace(parameter, strides=None))  # the file's elements lie row by row
    bound = replace(graph, storages=tuple(storages.values()), tensors=tuple(tensors.values()))
    return bound, replace(
        program, direct=reading == "direct", blobs=tuple(blobs.values()), parameters=tuple(parameters)
    )


def choose_reading(program: ModuleProgram, matched: Matched, *, free_nbytes: int | None = None) -> Reading:
    """Direct where every placed parameter can be read without a copy; else repacked, if the disk has room for that.

    `free_nbytes` is that room, by default on the disk of the cache.
    """
    placed = [t for p in program.parameters for t in _first(p, matched)]
    if all(len(t.pieces) == 1 and t.file_offset % ALIGNMENT == 0 for t in placed):
        return "direct"
    room = shutil.disk_usage(cache_dir()).free if free_nbytes is None else free_nbytes
    return "repacked" if repacked_nbytes(program, matched) <= room else "direct"


def repacked_nbytes(program: ModuleProgram, matched: Matched) -> int:
    """Bytes on disk of a repacked store."""
    return sum(-(-t.nbytes // BLOCK) * BLOCK for p in program.parameters for t in _first(p, matched))


def _first(parameter: Parameter, matched: Matched) -> list[FileTensor]:
    return [matched.tensors[n] for n in parameter.names if n in matched.tensors][:1]


def _own_storage(graph: Graph, parameter: Parameter) -> Storage:
    """The storage of a parameter, which it has for itself."""
    tensor = graph.tensor[parameter.tensor]
    assert tensor.storage is not None, tensor
    storage = graph.storage[tensor.storage]
    if tensor.offset or tensor.nbytes != storage.nbytes:
        raise InputError(
            f"parameter '{parameter.names[0]}' is {tensor.nbytes} bytes at offset {tensor.offset} of memory of "
            f"{storage.nbytes} bytes that others share; give it memory of its own (.clone())"
        )
    return storage


def _check(name: str, tensor: Tensor, storage: Storage, found: FileTensor) -> None:
    if (found.shape, found.dtype, found.nbytes) != (tensor.shape, tensor.dtype, storage.nbytes):
        raise InputError(
            f"parameter '{name}' is {list(tensor.shape or ())} of {tensor.dtype} in the lowered module, "
            f"{list(found.shape)} of {found.dtype} in '{found.path}'; plan the module again that the files belong to"
        )


def _in_place(
    storage: Storage, tensor: Tensor, found: FileTensor, matched: Matched
) -> tuple[Storage, Tensor, BlobSource]:
    """The storage as a range of the whole file: of blocks, if the elements' alignment allows it."""
    shard = next(f for f in matched.files.files if f.path == found.path)
    blob = BlobSource(Path(shard.path).name, shard.nbytes, "uint8", (shard.nbytes,), path=shard.path)
    if found.file_offset % ALIGNMENT:
        return replace(storage, blob=blob.blob, blob_offset=found.file_offset), tensor, blob
    lead = found.file_offset % BLOCK
    window = replace(
        storage,
        nbytes=lead + found.nbytes,
        alignment=BLOCK,
        blob=blob.blob,
        blob_offset=found.file_offset - lead,
    )
    return window, replace(tensor, offset=lead), blob


def _source(blob: str, found: FileTensor) -> BlobSource:
    """A blob with the bytes of one tensor."""
    if len(found.pieces) == 1:
        return BlobSource(blob, found.nbytes, found.dtype, found.shape, path=found.path, file_offset=found.file_offset)
    return BlobSource(blob, found.nbytes, found.dtype, found.shape, pieces=found.pieces)


def _kept(graph: Graph, program: ModuleProgram, tensors: set[str]) -> tuple[Graph, ModuleProgram]:
    """Without placing `tensors`, buffers that exist in the module alone: part of each operator's workspace instead."""
    if not tensors:
        return graph, program
    storages = {graph.tensor[t].storage for t in tensors}
    nbytes = sum(graph.storage[s].nbytes for s in storages if s is not None)
    operators = tuple(
        replace(
            op,
            inputs=tuple(t for t in op.inputs if graph.tensor[t].storage not in storages),
            workspace_nbytes=op.workspace_nbytes + nbytes,
        )
        for op in graph.operators
    )
    left = tuple(s for s in graph.storages if s.id not in storages)
    blobs = {s.blob for s in left}
    kept = replace(
        graph,
        storages=left,
        tensors=tuple(t for t in graph.tensors if t.storage is None or t.storage not in storages),
        operators=operators,
    )
    return kept, replace(
        program,
        blobs=tuple(b for b in program.blobs if b.blob in blobs),
        parameters=tuple(p for p in program.parameters if p.tensor not in tensors),
    )


def kept_names(module: Any, program: ModuleProgram) -> tuple[str, ...]:
    """Qualified names of the parameters and persistent buffers of an nn.Module that the plan leaves in it."""
    placed = {n for p in program.parameters for n in p.names}
    return tuple(n for n in module.state_dict(keep_vars=True) if n not in placed)
