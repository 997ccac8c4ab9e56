"""Weights of a module that exists in memory alone: written to a nameless file, each freed when it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.graph import Graph
from ...ir.paths import cache_dir
from ...ir.program import BlobSource, ModuleProgram
from ..directio import DirectFile
from ..memory import settle_allocator, trim_heap
from ..reading import BlobEntry, CheckedBlobs
from ..store import Progress, layout
from ..store_build import BlobWriter
from .store_lent import Memory, bytes_of, memories_of
from .store_parts import Part, parts_of

_REMEDY = "the disk or the memory of this machine is at fault; make the module again"


class MemoryStore(CheckedBlobs):
    """The placed parameters of one module, which hold no memory as long as this has them."""

    def __init__(self, entries: list[BlobEntry], file: DirectFile, memories: Sequence[Memory]) -> None:
        super().__init__(entries, file, remedy=_REMEDY)
        self._memories = memories

    def restore(self) -> None:
        """Give every parameter that still is without memory its bytes back; the module is as it was.

        Raises ExecutionError where the file cannot be read.
        """
        self.hand_over()()

    def hand_over(self) -> Callable[[], None]:
        """What `restore` does. From here on this holds no parameter: those who read from it run for as long as what the
        parameters have become is not forgotten."""
        memories, self._memories = self._memories, ()
        return partial(self._restore_all, memories)

    def _restore_all(self, memories: Sequence[Memory]) -> None:
        for memory in memories:
            memory.restore(self._read)

    def _read(self, blob: str, start: int, target: memoryview) -> None:
        self.read(blob, start, target)


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
    shape and type and one element. What overlaps in memory is freed together, and overlaps again when it comes back;
    tensors that are not placed have memory of their own meanwhile. Raises InputError for a parameter that is not as the
    program says, ExecutionError where the disk has no room or fails; the module is then as it was.
    """
    folder = cache_dir() if folder is None else folder
    parts = parts_of(program, graph, module)
    memories = memories_of([p for of_blob in parts.values() for p in of_blob], module)
    lies_in = {id(part): memory for memory in memories for part in memory.parts}
    offsets, nbytes = layout(program)
    settle_allocator()
    file = DirectFile.scratch(folder, nbytes)
    entries: list[BlobEntry] = []
    try:
        with BlobWriter(file, nbytes, progress, keep_open=True) as writer:
            waiting: list[tuple[int, list[Part]]] = []
            for source, begin in zip(program.blobs, offsets, strict=True):
                assert writer.position == begin, (source.blob, writer.position, begin)
                entries.append(_write_blob(source, parts[source.blob], writer))
                waiting.append((begin + source.nbytes, parts[source.blob]))
                _free_written(waiting, writer.written, lies_in)
        _free_written(waiting, nbytes, lies_in)
    except BaseException:
        try:
            MemoryStore(entries, file, memories).restore()
        finally:
            file.close()
        raise
    trim_heap()
    return MemoryStore(entries, file, memories)


def _write_blob(source: BlobSource, parts: list[Part], writer: BlobWriter) -> BlobEntry:
    begin = writer.position
    for part in parts:
        writer.write(np.zeros(begin + part.offset - writer.position, np.uint8))
        writer.write(bytes_of(part.tensors[0], part.nbytes))
    writer.write(np.zeros(begin + source.nbytes - writer.position, np.uint8))
    return BlobEntry(source.blob, begin, source.nbytes, writer.finish_blob())


def _free_written(waiting: list[tuple[int, list[Part]]], written: int, lies_in: Mapping[int, Memory]) -> None:
    """Free what has reached the file as a whole, with all that lies in the same memory."""
    while waiting and waiting[0][0] <= written:
        for part in waiting.pop(0)[1]:
            memory = lies_in[id(part)]
            memory.missing -= 1
            if not memory.missing:
                memory.free()
