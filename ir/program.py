"""What an executor needs beside a plan: kernels, and where the bytes of the weights come from. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Raw little-endian bytes [`file_offset`, `file_offset + nbytes`) of the file `path`."""

    path: str
    file_offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where the bytes of weight blob `blob` come from, and how the store lays them out.

    `nbytes` are the bytes in the store. `shape` and `dtype` describe the source. `path` with `file_offset` names raw
    little-endian bytes in a file; `fill` (the element's bytes, in hexadecimal) stands for a tensor of one value
    instead; `inline` (hexadecimal) for a tensor that is small; `pieces` for one that lies in several places of files,
    whose bytes in this order are its own. `transposed` stores a matrix [r, c] as [c, r].
    """

    blob: str
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    path: str | None = None
    file_offset: int = 0
    fill: str | None = None
    inline: str | None = None
    transposed: bool = False
    pieces: tuple[FilePiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Lookup:
    """An operator that the store executes: it copies rows of blob `blob`, picked by its one input, into its output.

    The table has `rows` rows of `row_nbytes` bytes and never becomes resident: of an embedding a pass needs a few rows.
    Indices below zero count from the end, as in ONNX's Gather.
    """

    blob: str
    rows: int
    row_nbytes: int


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the user's that a plan was made from, as it was then."""

    path: str
    nbytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The model that a plan was made from: its path, the dimensions that were set, and every file of it."""

    path: str
    dims: dict[str, int]
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class Program:
    """Kernels of the operators of a graph.

    `kernels` maps an operator id to the digest of its model in `models`: a serialised one-operator ONNX model whose
    graph inputs and outputs correspond, in order, to the operator's inputs and outputs, each with the dtype and the
    shape with which it is bound (a matrix product sees a 3-D activation as 2-D, for example). Constants that select
    behaviour (axes, target shapes) are initializers inside the model. Operators of equal form share a model.
    `lookups` maps the operators that have no kernel to what the store does instead. `input_names` and `output_names`
    give the user's names of the graph's inputs and outputs, in its order.
    """

    engine: str
    kernels: dict[str, str]
    models: dict[str, bytes]
    blobs: tuple[BlobSource, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    lookups: dict[str, Lookup] = field(default_factory=dict[str, Lookup])

    @cached_property
    def blob(self) -> dict[str, BlobSource]:
        """Blob sources by name."""
        return {b.blob: b for b in self.blobs}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter or buffer of a module that the plan places.

    `names` are its qualified names, several where it is tied. `tensor` is the graph's tensor that holds its elements.
    `strides`, in elements, are given where they are not those of a dense row-major tensor; the elements are dense.
    """

    names: tuple[str, ...]
    tensor: str
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ModuleProgram:
    """How a PyTorch module is run by a plan: the module itself runs, and finds its weights where the plan has put them.

    Each operator of the graph is a part of a pass: what is computed from one reading of weights up to the next one.
    `calls` maps it to the qualified name of the innermost module whose forward reads them ('' is the whole module).
    `parameters` are what the plan places; what is not listed stays where torch has put it, and is part of every
    operator's workspace. `lookups` are operators of an embedding that the store executes: the module is an
    `nn.Embedding` whose table never becomes resident. `entry` says how to make the module again ('hf:DIR',
    'file.py:callable', 'pkg.module:callable'); it is None for one that exists in memory alone. A blob without a path,
    fill or inline content is in that memory. `direct` says that blobs are whole files, which are read as they are;
    else the store repacks them.
    """

    engine: str
    entry: str | None
    direct: bool
    blobs: tuple[BlobSource, ...]
    parameters: tuple[Parameter, ...]
    calls: dict[str, str]
    lookups: dict[str, Lookup] = field(default_factory=dict[str, Lookup])

    @cached_property
    def blob(self) -> dict[str, BlobSource]:
        """Blob sources by name."""
        return {b.blob: b for b in self.blobs}
