"""The parts of a pass: what is computed from one reading of weights up to the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from ...ir.errors import InputError
from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from ...ir.machine import Link, Unit
from ...ir.program import BlobSource, Lookup, ModuleProgram, Parameter
from ..costs import duration_ns
from .lowered import OpLowered, Weight
from .placed import placed_weights
from .tables import LOOKUP, rows_picked, tables
from .views import OPAQUE

ENGINE = "torch"


@dataclass(frozen=True)
class ModuleLowered:
    """A graph of parts to plan, and the program that runs it."""

    graph: Graph
    program: ModuleProgram


@dataclass(slots=True)
class _Part:
    """Operators [`start`, `stop`) of a pass; `module` reads `weights`; `lookup` is the embedding it begins with."""

    start: int
    module: str
    weights: dict[str, None] = field(default_factory=dict[str, None])
    lookup: str | None = None
    stop: int = 0


def parts(
    lowered: OpLowered, unit: Unit, *, looked_up: frozenset[str] = frozenset(), link: Link | None = None
) -> ModuleLowered:
    """The graph of the parts of `lowered` on `unit`, and its program.

    A part begins at each operator that reads placed weights (see `placed_weights`) which the part so far has not read;
    what comes before the first reading belongs to the first part. The operator of a part is named after the module
    whose forward reads its weights, later ones of that module with '#2', '#3', ...; its inputs are the tensors of
    these weights, in order of reading, and a token without bytes that the part before it makes: their order is the
    module's. Its time is the sum of those of its operators, and its workspace the most bytes
    that activations take at once while it runs, those that live across it included, with the kernels' own workspace
    and all that is not placed. A weight that no operator reads is placed too: it has no residency, and its bytes stay
    in the store.

    `looked_up` are tables (see `tables`): each embedding of theirs begins a part of its own, which the store executes
    by reading rows over `link`, which must be given then.
    """
    if looked_up and link is None:
        raise InputError(f"{len(looked_up)} tables are looked up in the store; say over which link their rows are read")
    placed = placed_weights(lowered)
    lookups = {op: s for s in looked_up for op in tables(lowered)[s]}
    found = _split(lowered, frozenset(placed), lookups)
    ids = _names(found, lowered.graph.name)
    workspace = _workspaces(lowered, frozenset(placed))
    operators: list[Operator] = []
    program_lookups: dict[str, Lookup] = {}
    for k, (name, part) in enumerate(zip(ids, found, strict=True)):
        times = [_operator_ns(lowered, i, unit, lookups, link) for i in range(part.start, part.stop)]
        if part.lookup is not None:
            program_lookups[name] = _lookup(placed[lookups[part.lookup]])
        operators.append(
            Operator(
                id=name,
                op_type="Part" if part.lookup is None else LOOKUP,
                inputs=(*part.weights, *((_token(ids[k - 1]),) if k else ())),
                outputs=(_token(name),),
                cost_class="part" if part.lookup is None else "lookup",
                dtype=_main_dtype(lowered, part),
                flops=sum(o.flops for o in lowered.graph.operators[part.start : part.stop]),
                moved_nbytes=sum(o.moved_nbytes for o in lowered.graph.operators[part.start : part.stop]),
                workspace_nbytes=max(workspace[part.start : part.stop]),
                measured_ns=sum(times),
            )
        )
    return ModuleLowered(_graph(lowered, placed, operators), _program(placed, ids, found, program_lookups))


def part_spans(lowered: OpLowered, looked_up: frozenset[str] = frozenset()) -> tuple[range, ...]:
    """By part of `parts(lowered, ..., looked_up=looked_up)`, the numbers of its operators in `lowered.graph`."""
    lookups = {op: s for s in looked_up for op in tables(lowered)[s]}
    found = _split(lowered, frozenset(placed_weights(lowered)), lookups)
    return tuple(range(part.start, part.stop) for part in found)


def _split(lowered: OpLowered, placed: frozenset[str], lookups: dict[str, str]) -> list[_Part]:
    """The parts, in order; they cover all operators."""
    graph = lowered.graph
    found: list[_Part] = []
    reading = False
    for i, op in enumerate(graph.operators):
        lookup = op.id in lookups
        read = () if lookup else tuple(s for s in graph.reads(op) if s in placed)
        new = lookup or any(s not in found[-1].weights for s in read) if found else True
        if new and (reading or not found):
            if found:
                found[-1].stop = i
            found.append(_Part(i, lowered.calls[op.id].module if lookup or read else ""))
        elif new:  # what was computed before the first reading
            found[-1].module = lowered.calls[op.id].module
        reading = reading or lookup or bool(read)
        found[-1].weights |= dict.fromkeys(read)
        found[-1].lookup = op.id if lookup else found[-1].lookup
    if found:
        found[-1].stop = len(graph.operators)
    return found


def _names(found: list[_Part], whole: str) -> list[str]:
    """Names of the parts' operators; a part of no inner module is named after the graph."""
    taken: dict[str, int] = {}
    names: list[str] = []
    for part in found:
        name = part.module or whole
        count = taken.get(name, 0) + 1
        while count > 1 and f"{name}#{count}" in taken:
            count += 1
        taken[name] = count
        unique = name if count == 1 else f"{name}#{count}"
        taken.setdefault(unique, 1)
        names.append(unique)
    return names


def _operator_ns(lowered: OpLowered, index: int, unit: Unit, lookups: dict[str, str], link: Link | None) -> int:
    op = lowered.graph.operators[index]
    if op.id not in lookups or link is None:
        return duration_ns(op, unit)
    lookup = _lookup(lowered.weights[lookups[op.id]])
    return rows_picked(lowered, op.id) * link.transfer_ns(lookup.row_nbytes)


def _token(part: str) -> str:
    """What stands for all that a part computes."""
    return f"{part} is done"


def _lookup(weight: Weight) -> Lookup:
    return Lookup(weight.storage, weight.shape[0], weight.nbytes // weight.shape[0])


def _main_dtype(lowered: OpLowered, part: _Part) -> str:
    """The arithmetic that most of the part's operations are done in."""
    flops: dict[str, int] = {}
    for op in lowered.graph.operators[part.start : part.stop]:
        flops[op.dtype] = flops.get(op.dtype, 0) + op.flops
    return max(flops, key=lambda d: flops[d])


def _workspaces(lowered: OpLowered, placed: frozenset[str]) -> list[int]:
    """By operator, the bytes that lie in memory while it runs, placed weights aside."""
    kept = sum(s.nbytes for s in lowered.graph.storages if s.homed and s.id not in placed)
    kept += sum(w.nbytes for w in lowered.weights.values() if w.storage not in placed and not _used(lowered, w))
    live = live_nbytes(lowered)
    return [kept + n + op.workspace_nbytes for n, op in zip(live, lowered.graph.operators, strict=True)]


def _used(lowered: OpLowered, weight: Weight) -> bool:
    return weight.storage in lowered.graph.storage


def live_nbytes(lowered: OpLowered) -> list[int]:
    """By operator, the bytes of inputs, activations and outputs that exist while it runs."""
    total = len(lowered.graph.operators)
    change = [0] * (total + 1)
    for storage, (first, last) in _spans(lowered):
        nbytes = lowered.graph.storage[storage].nbytes
        change[first] += nbytes
        change[last + 1] -= nbytes
    return list(accumulate(change))[:total]


def _spans(lowered: OpLowered) -> Iterator[tuple[str, tuple[int, int]]]:
    """Storages that are not homed with the first and the last operator during which they exist."""
    graph = lowered.graph
    born: dict[str, int] = {}
    for i, op in enumerate(graph.operators):
        for storage in graph.writes(op):
            born.setdefault(storage, i)
    for storage in graph.storages:
        if graph.operators and not storage.homed:
            first = 0 if storage.kind is StorageKind.INPUT else born.get(storage.id, 0)
            yield storage.id, (first, max(first, lowered.last.get(storage.id, len(graph.operators) - 1)))


def _graph(lowered: OpLowered, placed: dict[str, Weight], operators: list[Operator]) -> Graph:
    storages = tuple(
        Storage(w.storage, w.nbytes, StorageKind.CONSTANT if w.is_buffer else StorageKind.WEIGHT, blob=w.storage)
        for w in placed.values()
    )
    tensors = {w.storage: Tensor(w.storage, w.dtype, w.shape, w.storage, w.nbytes) for w in placed.values()}
    for name in (*lowered.graph.inputs, *lowered.graph.outputs):
        given = lowered.graph.tensor[name]
        tensors.setdefault(name, Tensor(name, given.dtype, given.shape, None, given.nbytes))
    for op in operators:
        tensors.update((t, Tensor(t, OPAQUE, None, None, 0)) for t in op.outputs)
    return Graph(
        name=lowered.graph.name,
        storages=storages,
        tensors=tuple(tensors.values()),
        operators=tuple(operators),
        inputs=lowered.graph.inputs,
        outputs=lowered.graph.outputs,
    )


def _program(
    placed: dict[str, Weight], ids: list[str], found: list[_Part], lookups: dict[str, Lookup]
) -> ModuleProgram:
    return ModuleProgram(
        engine=ENGINE,
        entry=None,
        direct=False,
        blobs=tuple(BlobSource(w.storage, w.nbytes, w.dtype, w.shape) for w in placed.values()),
        parameters=tuple(Parameter(w.names, w.storage, w.strides) for w in placed.values()),
        calls={name: part.module for name, part in zip(ids, found, strict=True)},
        lookups=lookups,
    )
