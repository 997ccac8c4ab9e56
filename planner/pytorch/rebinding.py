"""Ties the blobs of a plan to files that have its parameters elsewhere: in other shards, in another order, behind a
longer header, or in another folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir.errors import PlanMismatchError
from ...ir.graph import Graph
from ...ir.program import BlobSource, FilePiece, ModuleProgram, Parameter
from .matching import Matched
from .tensors import FileTensor


@dataclass(frozen=True, slots=True)
class _Span:
    """Bytes of a blob from `start` on are those of `found`."""

    start: int
    found: FileTensor

    @property
    def end(self) -> int:
        """Where they end in the blob."""
        return self.start + self.found.nbytes


def rebind(graph: Graph, program: ModuleProgram, matched: Matched) -> ModuleProgram:
    """`program` with the bytes of its parameters where `matched` has them; `graph`, the plan's own, stands as it is.

    Whatever the plan reads from a place of a blob is there afterwards: a blob stays a range of one file where its
    parameters lie in that file as they lie in the blob, else it becomes pieces of files. What lies between parameters
    is read with them up to a block, and never used. Raises PlanMismatchError for a parameter that the files lack, or
    have in another shape or type.
    """
    spans: dict[str, list[_Span]] = {source.blob: [] for source in program.blobs}
    tensors: dict[str, FileTensor] = {}
    for parameter in program.parameters:
        blob, span = _placed(graph, parameter, matched)
        if blob not in spans:
            raise PlanMismatchError(f"parameter '{parameter.names[0]}' has no blob in the plan; plan again")
        spans[blob].append(span)
        tensors.update(dict.fromkeys(parameter.names, span.found))
    for op, rows in program.lookups.items():
        table = tensors.get(f"{program.calls.get(op, '')}.weight".lstrip("."))
        if table is not None and not spans.get(rows.blob, True):
            spans[rows.blob].append(_Span(0, table))  # a table by itself, beside the file that it lies in
    sizes = {file.path: file.nbytes for file in matched.files.files}
    blobs = tuple(_blob(source, spans[source.blob], sizes) for source in program.blobs)
    parameters = tuple(replace(p, strides=None) for p in program.parameters)  # the file's elements lie row by row
    return replace(program, blobs=blobs, parameters=parameters)


def without_files(graph: Graph, program: ModuleProgram) -> ModuleProgram:
    """`program` for a module that has its weights in memory: rows of a table are looked up where the table lies among
    the other parameters, and not in a blob of the table alone, which only files have beside that."""
    held = {storage.blob for storage in graph.storages}
    alone = {rows.blob for rows in program.lookups.values()} - held
    if not alone:
        return program
    blob_of = {name: graph.storage[s].blob for p in program.parameters for name, s in _storages(graph, p)}
    lookups = {
        op: replace(rows, blob=blob_of.get(f"{program.calls.get(op, '')}.weight".lstrip(".")) or rows.blob)
        if rows.blob in alone
        else rows
        for op, rows in program.lookups.items()
    }
    needed = held | {rows.blob for rows in lookups.values()}
    return replace(program, lookups=lookups, blobs=tuple(b for b in program.blobs if b.blob in needed))


def _storages(graph: Graph, parameter: Parameter) -> list[tuple[str, str]]:
    """The storage of a parameter by each of its names."""
    tensor = graph.tensor.get(parameter.tensor)
    storage = None if tensor is None else tensor.storage
    return [] if storage is None else [(name, storage) for name in parameter.names]


def _placed(graph: Graph, parameter: Parameter, matched: Matched) -> tuple[str, _Span]:
    """The blob of a parameter, and where in it these files' bytes belong."""
    name = next((n for n in parameter.names if n in matched.tensors), None)
    tensor = graph.tensor.get(parameter.tensor)
    storage = None if tensor is None else graph.storage.get(tensor.storage or "")
    if tensor is None or storage is None or storage.blob is None:
        raise PlanMismatchError(f"parameter '{parameter.names[0]}' is no weight of the plan's graph; plan again")
    if name is None:
        raise PlanMismatchError(
            f"the plan places '{parameter.names[0]}', and '{matched.files.where}' does not hold it; plan again for "
            "these files"
        )
    found = matched.tensors[name]
    if (found.shape, found.dtype, found.nbytes) != (tensor.shape, tensor.dtype, tensor.nbytes):
        raise PlanMismatchError(
            f"parameter '{name}' is {list(tensor.shape or ())} of {tensor.dtype} in the plan, {list(found.shape)} of "
            f"{found.dtype} in '{found.path}'; plan again for these files"
        )
    return storage.blob, _Span(storage.blob_offset + tensor.offset, found)


def _blob(source: BlobSource, spans: Sequence[_Span], sizes: Mapping[str, int]) -> BlobSource:
    if not spans:
        raise PlanMismatchError(f"no parameter of the plan is in blob '{source.blob}'; plan again")
    path, begin = spans[0].found.path, spans[0].found.file_offset - spans[0].start
    alike = all(
        len(s.found.pieces) == 1 and s.found.path == path and s.found.file_offset - s.start == begin for s in spans
    )
    if alike and begin >= 0 and begin + source.nbytes <= sizes[path]:
        return replace(source, path=path, file_offset=begin, pieces=())
    return replace(source, path=None, file_offset=0, pieces=_pieces(source, spans, sizes))


def _pieces(source: BlobSource, spans: Sequence[_Span], sizes: Mapping[str, int]) -> tuple[FilePiece, ...]:
    pieces: list[FilePiece] = []
    end = 0
    for span in sorted(dict.fromkeys(spans), key=lambda s: s.start):
        if span.start < end or span.end > source.nbytes:
            raise PlanMismatchError(
                f"'{span.found.name}' should be bytes [{span.start}, {span.end}) of blob '{source.blob}', which has "
                f"{source.nbytes} and others up to {end}; plan again for these files"
            )
        pieces += [*_between(span.start - end, sizes), *span.found.pieces]
        end = span.end
    return (*pieces, *_between(source.nbytes - end, sizes))


def _between(nbytes: int, sizes: Mapping[str, int]) -> list[FilePiece]:
    """So many bytes, whichever: of the largest file, that they are few pieces."""
    path = max(sizes, key=lambda p: sizes[p])
    found: list[FilePiece] = []
    while nbytes:
        found.append(FilePiece(path, 0, min(nbytes, sizes[path])))
        nbytes -= found[-1].nbytes
    return found
