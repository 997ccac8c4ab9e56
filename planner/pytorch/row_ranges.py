"""Large weights of nn.Linear in ranges of their rows: an operator a range, so that no moment needs the whole of one.

A row of the weight is a column of the result, so the ranges' results stand side by side. Whether they have the bits of
the undivided product is for the executor to find out; it has the whole weight where they do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

from torch import nn

from ...ir.graph import Graph, Operator, Storage, Tensor
from ...ir.program import ModuleProgram, RowRanges
from .binding import ALIGNMENT, BLOCK
from .lowered import OpLowered, Weight
from .parts import ModuleLowered
from .tables import EMBEDDING
from .views import OPAQUE

LINEAR = "aten.linear.default"
LEAST_NBYTES = 1 << 20
"""Ranges have at least this many bytes: a disk's request, below which requests cost more than bytes."""
WHOLE_SHARE = 1 / 8
"""A weight of up to this share of the room that a plan has for weights stays whole."""
RANGE_SHARE = 1 / 50
"""Ranges have about this share of that room: what is larger than 2% is better moved in pieces (DESIGN 4.1)."""


@dataclass(frozen=True, slots=True)
class _Site:
    """The weight `storage` of the nn.Linear `module`, read by the operator `part` of a graph of parts, with results of
    `made_nbytes`."""

    storage: str
    module: str
    part: str
    made_nbytes: int


def split_rows(found: ModuleLowered, lowered: OpLowered, module: nn.Module, budget_nbytes: int) -> ModuleLowered:
    """`found`, the parts of `lowered`, with large weights of nn.Linear modules in ranges, for a plan that has
    `budget_nbytes` for weights and workspace.

    Only a weight that one operator of a pass reads, by that module's own forward, is divided; looking up rows of it is
    no reading. Each range is a storage of its own, a piece of the weight's blob. The weight itself stays in the graph,
    read by no operator: it is at home in the store, for whatever else asks for it.
    """
    room_nbytes = budget_nbytes - max((o.workspace_nbytes for o in found.graph.operators), default=0)
    sites = [s for s in _sites(found, lowered, module) if found.graph.storage[s.storage].nbytes > _whole(room_nbytes)]
    graph, program = found.graph, found.program
    for site in sites:
        rows = _rows_each(graph.tensor[_tensor_of(graph, site.storage).id], room_nbytes)
        graph, program = _divided(graph, program, site, rows)
    return ModuleLowered(graph, program)


def split_like(found: ModuleLowered, lowered: OpLowered, module: nn.Module, like: Sequence[RowRanges]) -> ModuleLowered:
    """`found` with the weights in ranges that are so in another pass of `module`; one that this pass reads otherwise
    stays whole."""
    rows = {r.module: r.rows for r in like}
    graph, program = found.graph, found.program
    for site in _sites(found, lowered, module):
        if site.module in rows:
            graph, program = _divided(graph, program, site, rows[site.module])
    return ModuleLowered(graph, program)


def _whole(room_nbytes: int) -> int:
    return max(LEAST_NBYTES, int(WHOLE_SHARE * room_nbytes))


def _tensor_of(graph: Graph, storage: str) -> Tensor:
    return next(t for t in graph.tensors if t.storage == storage)


def _sites(found: ModuleLowered, lowered: OpLowered, module: nn.Module) -> list[_Site]:
    """What can be divided."""
    looked_up = {f"{found.program.calls[o]}.weight" for o in found.program.lookups}
    reads: Counter[str] = Counter()
    for op in lowered.graph.operators:
        if op.op_type != EMBEDDING or f"{lowered.calls[op.id].module}.weight" not in looked_up:
            reads.update(lowered.graph.reads(op))
    parts: dict[str, list[Operator]] = {}
    for op in found.graph.operators:
        for storage in found.graph.reads(op):
            parts.setdefault(storage, []).append(op)
    sites: list[_Site] = []
    for op in lowered.graph.operators:
        # What is named twice is an input once: `linear(x, x)` has no second one, and no weight that is read by itself.
        divisible = op.op_type == LINEAR and len(op.inputs) > 1
        storage = lowered.graph.tensor[op.inputs[1]].storage if divisible else None
        readers = parts.get(storage or "", [])
        if storage is None or reads[storage] != 1 or len(readers) != 1:
            continue
        name = lowered.calls[op.id].module
        if not _is_linear(lowered.weights[storage], name, module):
            continue
        beside = {s for s in found.graph.reads(readers[0]) if s != storage}
        if all(f"{name}.bias" in lowered.weights[s].names for s in beside):
            made = sum(lowered.graph.tensor[t].nbytes for t in op.outputs)
            sites.append(_Site(storage, name, readers[0].id, made))
    return sites


def _is_linear(weight: Weight, name: str, module: nn.Module) -> bool:
    """Whether `weight` is, row by row, that of an nn.Linear called `name`, which runs PyTorch's own code."""
    if weight.strides is not None or f"{name}.weight" not in weight.names:
        return False
    owner = module.get_submodule(name)
    return type(owner).forward is nn.Linear.forward and "forward" not in vars(owner)


def _rows_each(tensor: Tensor, room_nbytes: int) -> int:
    """Rows of a range: so many that each begins at a block of the disk as the first one does, if that is possible."""
    assert tensor.shape is not None
    row_nbytes = tensor.nbytes // tensor.shape[0]
    step = lcm(ALIGNMENT, BLOCK // gcd(row_nbytes, BLOCK))
    wanted = max(LEAST_NBYTES, int(RANGE_SHARE * room_nbytes))
    return step * max(1, wanted // (step * row_nbytes))


def _divided(graph: Graph, program: ModuleProgram, site: _Site, rows: int) -> tuple[Graph, ModuleProgram]:
    whole, storage = _tensor_of(graph, site.storage), graph.storage[site.storage]
    assert whole.shape is not None
    total = whole.shape[0]
    cuts = list(range(0, total, rows))
    if len(cuts) > 1 and total - cuts[-1] < ALIGNMENT:
        cuts.pop()  # a few rows more in the last range, rather than a range of few
    spans = list(zip(cuts, [*cuts[1:], total], strict=True))
    if len(spans) < 2:
        return graph, program
    pieces = [_piece(whole, storage, lo, hi) for lo, hi in spans]
    at = next(i for i, o in enumerate(graph.operators) if o.id == site.part)
    made = _operators(graph.operators[at], whole, [t for t, _ in pieces], spans, site)
    tokens = [Tensor(t, OPAQUE, None, None, 0) for o in made[:-1] for t in o.outputs]
    divided = replace(
        graph,
        storages=(*graph.storages, *(s for _, s in pieces)),
        tensors=(*graph.tensors, *(t for t, _ in pieces), *tokens),
        operators=(*graph.operators[:at], *made, *graph.operators[at + 1 :]),
    )
    calls = {**program.calls, **{o.id: program.calls[site.part] for o in made}}
    entry = RowRanges(site.module, whole.id, rows, tuple(t.id for t, _ in pieces))
    return divided, replace(program, calls=calls, rows=(*program.rows, entry))


def _piece(whole: Tensor, storage: Storage, lo: int, hi: int) -> tuple[Tensor, Storage]:
    """Rows [lo, hi) of a weight; where the weight is a window of whole blocks of a file, they are one, too."""
    assert whole.shape is not None
    row_nbytes = whole.nbytes // whole.shape[0]
    begin = storage.blob_offset + whole.offset + lo * row_nbytes
    nbytes = (hi - lo) * row_nbytes
    lead = begin % BLOCK if storage.alignment % BLOCK == 0 else 0
    name = f"{whole.id}[{lo}:{hi}]"
    made = replace(storage, id=name, nbytes=lead + nbytes, blob_offset=begin - lead)
    return Tensor(name, whole.dtype, (hi - lo, *whole.shape[1:]), name, nbytes, lead), made


def _operators(
    op: Operator, whole: Tensor, ranges: Sequence[Tensor], spans: Sequence[tuple[int, int]], site: _Site
) -> tuple[Operator, ...]:
    """One operator a range; the last one is called as the undivided one was, and hands over what that did. Beside the
    result each makes its own columns of it, before they are put into their place."""
    assert whole.shape is not None
    total = whole.shape[0]
    token = [t for t in op.inputs if t.endswith(" is done")]
    rest = [t for t in op.inputs if t != whole.id and t not in token]
    made: list[Operator] = []
    for k, ((lo, hi), one) in enumerate(zip(spans, ranges, strict=True)):
        last = k == len(spans) - 1
        name = op.id if last else f"{op.id}[{lo}:{hi}]"
        share = (hi - lo) / total
        made.append(
            replace(
                op,
                id=name,
                inputs=(one.id, *rest, *token),
                outputs=op.outputs if last else (f"{name} is done",),
                flops=int(op.flops * share),
                moved_nbytes=int(op.moved_nbytes * share),
                workspace_nbytes=op.workspace_nbytes + int(site.made_nbytes * share),
                measured_ns=None if op.measured_ns is None else int(op.measured_ns * share),
            )
        )
        token = list(made[-1].outputs)
    return tuple(made)
