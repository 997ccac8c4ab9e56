"""What an executor needs beside a plan: kernels, and where the bytes of the weights come from. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a dense tensor whose last dimension is the innermost."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


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
    """The model that a plan was made from: its path, the dimensions that were set, and every file of it.

    `others` are the dimensions of further passes that the plan serves: those of the prompt's, where it is made for a
    token's. `allow_pickle` says that the weights may be read from a pickle.
    """

    path: str
    dims: dict[str, int]
    files: tuple[SourceFile, ...]
    others: tuple[dict[str, int], ...] = ()
    allow_pickle: bool = False


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


@dataclass(frozen=True, slots=True)
class RowSite:
    """A feed-forward layer by its nn.Linear modules: `down` of act(`up`), or of act(`gate`) * `up`; act is ReLU,
    `squared` or not."""

    down: str
    up: str
    gate: str | None
    squared: bool


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Layers of which only the rows of active neurons are read, beside the plan: those of the last `window` calls stay,
    at most `rows` of them a layer; gaps of up to `bridge_nbytes` are read with their neighbours."""

    sites: tuple[RowSite, ...]
    window: int
    rows: int
    bridge_nbytes: int


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The experts of one layer of a module, `nbytes` bytes each, of which a token asks for `top_k`.

    `fused`: the module `module` has parameters `parameters` of shape [`experts`, ...]. Else `module` is an
    nn.ModuleList of `experts` modules, and each has parameters of these names, qualified within it.
    """

    module: str
    experts: int
    top_k: int
    parameters: tuple[str, ...]
    nbytes: int
    fused: bool


@dataclass(frozen=True, slots=True)
class ExpertCaching:
    """Experts that stay in the store, and are read when tokens choose them, beside the plan.

    Each layer of `layers` (in the order of a pass) keeps `slots` of its experts in memory; with `shared` all layers
    together do. What goes has the least worth: the number of its uses, each weighted by `decay` to the power of the
    events since, the least recent of equals; with no `decay` the least recent goes. With a `memory` of so many passes
    the worth is what followed those of them that were most like this one (`runtime/module/experts_recall.py`). Up to
    `ahead` experts of the next layer are read ahead of their use.

    Predicted, on the ground that `rests_on` tells, of a pass in which `tokens` choose together: `hit_rate`; `wait_ns`,
    by layer, in which nothing is computed because experts are being read, a part of the durations of the plan's steps;
    `read_nbytes` of experts, those read ahead included. However they are cached, with what a pass asks of a layer side
    by side, it reads `least_nbytes` at least, where `traced` says that all this rests on routing as it was recorded.
    """

    layers: tuple[ExpertLayer, ...]
    slots: int
    shared: bool
    decay: float | None
    ahead: int
    hit_rate: float
    rests_on: str
    tokens: int = 1
    wait_ns: tuple[int, ...] = ()
    read_nbytes: float = 0.0
    least_nbytes: float = 0.0
    traced: bool = False
    memory: int = 0

    @property
    def wait_s(self) -> float:
        """Seconds of a pass in which experts are waited for, as predicted."""
        return sum(self.wait_ns) / 1e9

    @property
    def nbytes(self) -> int:
        """Of all experts."""
        return sum(layer.nbytes * layer.experts for layer in self.layers)

    @property
    def policy(self) -> str:
        """Its name among the policies of traces."""
        if self.memory:
            return "recall"
        return "lru" if self.decay is None else "decayed"


@dataclass(frozen=True, slots=True)
class RowRanges:
    """An nn.Linear whose weight is placed in ranges of its rows: each is used as soon as it is there.

    `module` is its qualified name, `tensor` the whole weight, which stays in the store, `ranges` the tensors of its
    rows, in order and without gaps: `rows` in each, in the last one what is left.
    """

    module: str
    tensor: str
    rows: int
    ranges: tuple[str, ...]


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
    else the store repacks them. `sparse` are layers whose weights are read by rows; their weights have no residency.
    `experts` are layers whose experts are read as tokens choose them; these have no residency either. `rows` are large
    weights that are placed in ranges of rows.
    """

    engine: str
    entry: str | None
    direct: bool
    blobs: tuple[BlobSource, ...]
    parameters: tuple[Parameter, ...]
    calls: dict[str, str]
    lookups: dict[str, Lookup] = field(default_factory=dict[str, Lookup])
    sparse: SparseRows | None = None
    experts: ExpertCaching | None = None
    rows: tuple[RowRanges, ...] = ()

    @cached_property
    def blob(self) -> dict[str, BlobSource]:
        """Blob sources by name."""
        return {b.blob: b for b in self.blobs}


@dataclass(frozen=True, slots=True)
class NodeOutput:
    """A value of a traced graph: result number `index` of the node `node`; 0 where it has one."""

    node: str
    index: int


@dataclass(frozen=True)
class Update:
    """The operator of a plan that updates one parameter, and the tensors that it reads beside it.

    `names` are the parameter's qualified names. `group` is the position of its options in `OptimizerProgram.groups`.
    `states` maps the optimizer's names of its states ('exp_avg', ...) to tensors of the graph. A parameter may have
    several updates, each of the elements [lo, hi) that `elements` says, counted as they lie in memory; None is all.
    """

    operator: str
    names: tuple[str, ...]
    gradient: str
    group: int
    states: dict[str, str]
    elements: tuple[int, int] | None = None


@dataclass(frozen=True)
class OptimizerProgram:
    """The optimizer whose updates are part of a training step.

    `kind` is the class's name in torch.optim ('AdamW'); `groups` are the options of each parameter group, as canonical
    JSON.
    """

    kind: str
    groups: tuple[str, ...]
    updates: tuple[Update, ...]


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped before the updates of a training step: one of the two numbers is given.

    `max_norm`: all are scaled alike so that the 2-norm of all of them together is at most so much, as
    `torch.nn.utils.clip_grad_norm_` does. `norms` maps the operators that take the norm of one gradient to the first
    name of its parameter; `operator` makes the factor of them, and stands before all updates. A step that is not traced
    has none of these. `clip_value`: each element is brought into [-clip_value, clip_value].
    """

    max_norm: float | None = None
    clip_value: float | None = None
    operator: str = ""
    norms: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class HookedStep:
    """A training step that PyTorch cannot trace as one graph: the module runs as it is, and what autograd saves leaves
    memory and comes back by hooks.

    `why` says why it cannot be traced, and at which line. What it saves has `nbytes`, in the order in which it does;
    number k is the storage 'saved:k' of the graph, unless it is `held`: something else keeps it in memory. `updates`:
    the optimizer's own step follows each backward pass.
    """

    why: str
    nbytes: tuple[int, ...]
    held: tuple[int, ...]
    updates: bool


@dataclass(frozen=True)
class TrainingProgram:
    """How a training step is run by a plan: the operators are the nodes of the joint forward and backward graph.

    An operator has the name of its node. Apart from these there are the operator `turn`, which stands between forward
    and backward: it takes what the forward returns and gives the gradients of that; and the updates of `optimizer`.
    `values` says which value of which node a tensor of the graph is. A tensor whose storage has no bytes is kept: it
    lies where PyTorch puts it, from its making to its last use in the plan's steps. `kept_nbytes` is what these take at
    most; every operator counts them in its workspace. `parameters` are those that the plan places; the others are kept.
    `gradients` maps the first qualified name of a parameter to its gradient's tensor.

    `key` is the digest of the joint graph that was planned: of its operators, arguments, shapes, dtypes, and of the
    version of PyTorch. A module that gives another one is not what was planned. `entry` says how to make the module
    again ('hf:DIR', 'file.py:callable', 'pkg.module:callable'); None for one that exists in memory alone.

    With `hooked` there is no such graph: the operators are stretches of the step between two moments at which autograd
    saves or reads something, and `key` is empty. `clip`: gradients are clipped before they are used. `training`: the
    module was in training mode when it was planned; some are trained in the other one.
    """

    engine: str
    entry: str | None
    key: str
    turn: str
    kept_nbytes: int
    values: dict[str, NodeOutput]
    parameters: tuple[Parameter, ...] = ()
    gradients: dict[str, str] = field(default_factory=dict[str, str])
    optimizer: OptimizerProgram | None = None
    hooked: HookedStep | None = None
    clip: Clip | None = None
    training: bool = True
