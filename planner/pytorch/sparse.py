"""Feed-forward layers of a lowered module behind ReLU, whose rows may be read from flash as neurons become active.

What to leave out of a plan for it, what it reads (`flash.py` has the model of the disk) and what memory it takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from torch import fx

from ...ir.errors import InputError
from ...ir.graph import Graph
from ...ir.machine import Link
from .flash import FlashCost, SparseLayer, WindowStep, read_runs
from .lowered import OpLowered, Weight
from .parts import ModuleLowered
from .traced import module_call, schema_of

READ_NBYTES = 4 << 20
"""The largest request, and the memory that each of its copies takes; as the runtime has it."""

_SAME = frozenset(
    {"aten::view", "aten::reshape", "aten::alias", "aten::contiguous", "aten::unsqueeze", "aten::squeeze"}
)
_SQUARES = frozenset({"aten::square", "aten::pow", "aten::mul"})


@dataclass(frozen=True, slots=True)
class FeedForward:
    """`down` of act(`up`), or of act(`gate`) * `up`: names of nn.Linear modules; act is ReLU, `squared` or not.

    Without a gate the columns of `down` are read by neuron, with one the rows of `up` as well. `neurons` of `d_model`
    elements of `item_nbytes` bytes each.
    """

    down: str
    up: str
    gate: str | None
    squared: bool
    neurons: int
    d_model: int
    item_nbytes: int

    @property
    def by_row(self) -> tuple[str, ...]:
        """The modules whose weights are read by neuron."""
        return (self.down,) if self.gate is None else (self.down, self.up)

    def layer(self, *, bundled: bool = True) -> SparseLayer:
        """The layer as the model of the disk has it: what is always read as a whole (the gate) is no part of it."""
        return SparseLayer(self.neurons, self.d_model, self.item_nbytes, len(self.by_row), bundled)


def find_feed_forwards(lowered: OpLowered) -> tuple[FeedForward, ...]:
    """The feed-forward layers behind ReLU, in the order of a pass.

    Only weights that one module reads, once a pass. A gate counts where it is computed before what it multiplies, from
    the same tensor, and nobody else reads that or the product; else only `down` is read by neuron.
    """
    nodes = [n for n in lowered.traced.nodes if _name(n) == "aten::linear"]
    calls = [module_call(n).module for n in nodes]
    weights = {name: w for w in lowered.weights.values() for name in w.names if len(w.names) == 1}
    linears: dict[fx.Node, tuple[str, Weight]] = {}
    for node, module in zip(nodes, calls, strict=True):
        weight = weights.get(f"{module}.weight".lstrip("."))
        if weight is not None and calls.count(module) == 1 and weight.strides is None and len(weight.shape) == 2:
            linears[node] = (module, weight)
    index = {n: i for i, n in enumerate(lowered.traced.nodes)}
    found = (_feed_forward(node, linears, index) for node in linears)
    return tuple(f for f in found if f is not None)


def _feed_forward(
    down: fx.Node, linears: dict[fx.Node, tuple[str, Weight]], index: dict[fx.Node, int]
) -> FeedForward | None:
    hidden = _before(_argument(down, 0))
    module, weight = linears[down]
    d_model, neurons = weight.shape
    item = weight.nbytes // max(1, d_model * neurons)
    up, squared = _activated(hidden)
    if up in linears and linears[up][1].shape[0] == neurons:
        return FeedForward(module, linears[up][0], None, squared, neurons, d_model, item)
    if _name(hidden) != "aten::mul":
        return None
    for one, other in ((0, 1), (1, 0)):
        gate, squared = _activated(_before(_argument(hidden, one)))
        up = _before(_argument(hidden, other))
        if gate not in linears or up not in linears or gate is up:
            continue
        if {linears[gate][1].shape[0], linears[up][1].shape[0]} != {neurons}:
            continue
        same = _argument(gate, 0) is _argument(up, 0) and linears[up][1].shape[1] == d_model
        alone = _only(up, hidden) and _only(hidden, down) and index[gate] < index[up]
        alike = linears[up][1].dtype == weight.dtype
        name = linears[gate][0] if same and alone and alike else None
        return FeedForward(module, linears[up][0], name, squared, neurons, d_model, item)
    return None


def _name(node: fx.Node | None) -> str:
    schema = None if node is None else schema_of(node)
    return "" if schema is None else str(schema.name)


def _argument(node: fx.Node | None, index: int) -> fx.Node | None:
    value = None if node is None or len(node.args) <= index else node.args[index]
    return value if isinstance(value, fx.Node) else None


def _before(node: fx.Node | None) -> fx.Node | None:
    """What a node shows in another shape; a dropout of inference shows its input."""
    while node is not None and (_name(node) in _SAME or (_name(node) == "aten::dropout" and node.args[2] is False)):
        node = _argument(node, 0)
    return node


def _activated(node: fx.Node | None) -> tuple[fx.Node, bool] | tuple[None, bool]:
    """What ReLU is taken of, and whether `node` is the square of that."""
    name = _name(node)
    squared = name in _SQUARES
    if node is not None and squared:
        if name == "aten::pow" and node.args[1] != 2:
            return None, False
        if name == "aten::mul" and node.args[0] is not node.args[1]:
            return None, False
        node = _before(_argument(node, 0))
    if node is None or _name(node) not in ("aten::relu", "aten::relu_"):
        return None, False
    before = _before(_argument(node, 0))
    return (None, False) if before is None else (before, squared)


def _only(node: fx.Node | None, reader: fx.Node | None) -> bool:
    """Whether nothing but `reader` reads `node`, in whatever shape."""
    while node is not None and node is not reader:
        if len(node.users) != 1:
            return False
        node = next(iter(node.users))
        if node is not reader and _before(node) is node:
            return False
    return node is not None


def without_rows(lowered: ModuleLowered, sites: Iterable[FeedForward]) -> tuple[ModuleLowered, tuple[FeedForward, ...]]:
    """A module whose plan leaves to the rows what `sites` read by neuron, and the sites that it holds for.

    These weights keep their place in the store and have no reader, so that they are never resident. A site with a
    weight that the program does not place (small ones stay ordinary parameters) is left out.
    """
    tensor = {name: p.tensor for p in lowered.program.parameters for name in p.names}
    kept = tuple(s for s in sites if all(f"{m}.weight" in tensor for m in s.by_row))
    dropped = {tensor[f"{m}.weight"] for s in kept for m in s.by_row}
    graph = lowered.graph
    operators = tuple(replace(o, inputs=tuple(t for t in o.inputs if t not in dropped)) for o in graph.operators)
    changed = Graph(graph.name, graph.storages, graph.tensors, operators, graph.inputs, graph.outputs)
    return ModuleLowered(changed, lowered.program), kept


def windowed_rows(active: Sequence[Set[int]], window: int, rows: int) -> tuple[WindowStep, ...]:
    """`flash.windowed` in memory for `rows` neurons: the window is the longest suffix of calls whose union fits.

    `resident` counts the neurons of the present call, too, which is computed whether it fits or not.
    """
    if window < 0 or rows < 0:
        raise InputError(f"a window of {window} calls and {rows} rows; give 0 or more")
    recent: deque[frozenset[int]] = deque()
    steps: list[WindowStep] = []
    for needed in active:
        held = frozenset[int]().union(*recent)
        steps.append(WindowStep(frozenset(needed) - held, len(held | needed)))
        recent.append(frozenset(needed))
        while len(recent) > window or len(frozenset[int]().union(*recent)) > rows:
            recent.popleft()
    return tuple(steps)


def sparse_cost(
    layer: SparseLayer,
    active: Sequence[Set[int]],
    link: Link,
    *,
    window: int,
    rows: int,
    place: Sequence[int] | None = None,
) -> FlashCost:
    """`flash.flash_cost` in memory for `rows` neurons. `place` gives each neuron's place among those stored.

    A run of bytes is one request for each READ_NBYTES of it, as the runtime reads it.
    """
    steps = windowed_rows(active, window, rows)
    bridge = int(link.latency_s * link.bytes_per_s)
    read = needed = requests = 0
    for step in steps:
        positions = step.loaded if place is None else [place[n] for n in step.loaded]
        runs = read_runs(positions, layer.piece_nbytes, bridge_nbytes=bridge)
        requests += layer.regions * sum(-(-(end - begin) // READ_NBYTES) for begin, end in runs)
        read += layer.regions * sum(end - begin for begin, end in runs)
        needed += layer.neuron_nbytes * len(step.loaded)
    seconds = requests * link.latency_s + read / link.bytes_per_s
    resident = max((step.resident for step in steps), default=0) * layer.neuron_nbytes
    return FlashCost(len(steps), read, needed, requests, seconds, resident)


def sparse_memory_nbytes(sites: Sequence[FeedForward], rows: int, *, bundled: bool = True, block: int = 4096) -> int:
    """Bytes that the runtime takes for these sites beside the plan's: buffers, windows of `rows` neurons, tables.

    The buffers are as large as the largest matrix of either kind, whatever the number of layers. Weights that are not
    finite take 8 bytes a neuron more.
    """
    if not sites:
        return 0
    layers = [s.layer(bundled=bundled) for s in sites]
    matrix = [x.neurons * x.d_model * x.item_nbytes for x in layers]
    buffers = max(matrix) + max((m for m, s in zip(matrix, sites, strict=True) if s.gate is not None), default=0)
    windows = sum(min(rows, x.neurons) * x.neuron_nbytes for x in layers)
    tables = sum(x.neurons * (29 + 5 * x.regions) for x in layers)  # places, slots, users, filled; checksums by region
    carried = max(-(-x.piece_nbytes // block) * block for x in layers)
    return buffers + windows + tables + carried + 3 * READ_NBYTES
