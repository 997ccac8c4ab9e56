"""The operators of a pass of a module: what lowering makes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ...ir.graph import Graph


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """The innermost call around an operator: qualified name of the module ('' for the whole), and how many calls of
    that module came before it in the pass."""

    module: str
    ordinal: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter or buffer as a storage of the graph; `names` are its qualified names, several where it is tied.

    `strides`, in elements, are None for a dense row-major tensor. `dense` says that its elements fill its bytes, in
    whatever order, and are what these say (no lazy conjugate). `written` says that an operator of the pass changes it.
    """

    names: tuple[str, ...]
    storage: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    nbytes: int
    is_buffer: bool
    dense: bool
    written: bool


@dataclass(frozen=True)
class OpLowered:
    """The operators of a pass, each with the module call that it is in (`calls`).

    Storages are parameters (kind weight), buffers and other tensors of the module (constant), inputs, activations and
    outputs; a parameter is one storage under all of its names. A view is a tensor of its base's storage that covers
    the smallest range with all its elements, and no operator; an operator that writes in place makes a new tensor over
    the same bytes, which later readers of these bytes have as an input too. What has a shape that depends on data is
    outside ('opaque'). `weights` has every parameter and buffer, by storage; the graph has those that some operator
    touches. `last` is, by storage, the last operator (by index) during which Python still holds it: for what a pass
    makes, and for inputs that the module may drop. `embeddings` are the names of the modules that are an
    `nn.Embedding`.

    `traced` is what torch.export recorded, `traced_weights` the names of its placeholders for parameters and buffers.
    An operator has the name of its node; those inside a region under other settings (autocast) have a name with a dot.
    """

    graph: Graph
    calls: dict[str, ModuleCall]
    weights: dict[str, Weight]
    last: dict[str, int]
    embeddings: frozenset[str]
    traced: fx.Graph
    traced_weights: frozenset[str]
