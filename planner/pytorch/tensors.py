"""Tensors in files: what a checkpoint holds, and where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ...ir.program import FilePiece, SourceFile


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of a checkpoint: `shape` elements of `dtype` (numpy's name), row by row, in `pieces` of files.

    It is one piece, but for tensors that a module stacks of several ones of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[FilePiece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return sum(p.nbytes for p in self.pieces)

    @property
    def path(self) -> str:
        """The file that it begins in."""
        return self.pieces[0].path

    @property
    def file_offset(self) -> int:
        """The byte of that file at which it begins."""
        return self.pieces[0].file_offset


@dataclass(frozen=True)
class WeightFiles:
    """A checkpoint: the files as they were when they were opened, and their tensors by name."""

    where: str
    files: tuple[SourceFile, ...]
    tensors: tuple[FileTensor, ...]

    @cached_property
    def tensor(self) -> dict[str, FileTensor]:
        """Tensors by name."""
        return {t.name: t for t in self.tensors}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)
