"""Operators larger than the fast tier: what any tiling of them moves.

Such an operator is either split already (its parts hold pieces of one blob), or must be before there is any plan.
In both cases its operands that are not homed may be made in the fast tier, and its results may be used up there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt, prod

from ..ir.graph import Graph, Operator, Tensor
from ..solvers.bounds import Traffic, attention_io, matrix_product_io

PRODUCTS = frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
ATTENTIONS = frozenset({"Attention"})
_RANK = 4  # of [batch, heads, rows, width]


@dataclass(frozen=True, slots=True)
class Tiled:
    """`what` moves `traffic` bytes at least; `source` says who proved it."""

    what: str
    source: str
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class _Products:
    """`count` products of [rows, inner] and [inner, columns]."""

    count: int
    rows: int
    inner: int
    columns: int


def tiled_operators(graph: Graph, capacity_nbytes: int) -> Iterator[Tiled]:
    """Matrix products and attention whose operands and results together exceed the capacity, with the bytes loaded
    (at least, in every pass) in `traffic.loaded`, and loaded or stored in `traffic.moved`."""
    if capacity_nbytes < 1:
        return
    for parts in _products(graph):
        found = _product(graph, parts, capacity_nbytes)
        if found is not None:
            yield found
    for op in graph.operators:
        if op.op_type in ATTENTIONS:
            found = _attention(graph, op, capacity_nbytes)
            if found is not None:
                yield found


def _products(graph: Graph) -> list[list[Operator]]:
    """Operators that are matrix products, those with one first operand and pieces of one weight together."""
    groups: dict[tuple[str, str], list[Operator]] = {}
    for op in graph.operators:
        if op.op_type in PRODUCTS and len(op.inputs) > 1 and op.outputs:
            storage = graph.tensor[op.inputs[1]].storage
            blob = graph.storage[storage].blob if storage is not None else None
            groups.setdefault((op.inputs[0], f"blob {blob}" if blob is not None else f"op {op.id}"), []).append(op)
    return list(groups.values())


def _product(graph: Graph, parts: Sequence[Operator], capacity_nbytes: int) -> Tiled | None:
    first = graph.tensor[parts[0].inputs[0]]
    seconds = {op.inputs[1]: graph.tensor[op.inputs[1]] for op in parts}
    results = {op.outputs[0]: graph.tensor[op.outputs[0]] for op in parts}
    tensors = (first, *seconds.values(), *results.values())
    itemsize = _itemsize(tensors)
    if itemsize is None or sum(t.nbytes for t in tensors) <= capacity_nbytes:
        return None
    form = _form(first, list(seconds.values()), list(results.values()))
    if form is None:
        return None
    traffic = matrix_product_io(
        form.rows, form.columns, form.inner, max(1, capacity_nbytes // itemsize),
        count=form.count, made=_made(graph, (first, *seconds.values())), embedded=True,
    )  # fmt: skip
    loaded = itemsize * traffic.loaded
    size = f"{form.rows} x {form.inner} x {form.columns}" + (f", {form.count} times" if form.count > 1 else "")
    name = parts[0].id if len(parts) == 1 else f"{parts[0].id} and {len(parts) - 1} other parts"
    return Tiled(f"product '{name}' ({size})", "Smith et al. 2019", Traffic(loaded, 0, loaded))


def _form(first: Tensor, seconds: list[Tensor], results: list[Tensor]) -> _Products | None:
    """Sizes from the numbers of elements, which no transposition changes; None where they fit no product."""
    lead = {prod((t.shape or ())[:-2]) for t in seconds}
    if len(lead) != 1:
        return None
    count = lead.pop()
    if count > 1 and prod((first.shape or ())[:-2]) != count:
        return None
    a, b, c = (sum(prod(t.shape or ()) for t in ts) // max(1, count) for ts in ([first], seconds, results))
    if not (count and a and b and c):
        return None
    inner = isqrt(a * b // c)
    rows, columns = a // max(1, inner), b // max(1, inner)
    if not inner or (rows * inner, inner * columns, rows * columns) != (a, b, c):
        return None
    return _Products(count, rows, inner, columns)


def _attention(graph: Graph, op: Operator, capacity_nbytes: int) -> Tiled | None:
    """Operands [batch, heads, rows, width]. A causal mask is allowed for, as the graph does not say; masks that are
    data are not."""
    operands = [graph.tensor[name] for name in op.inputs[:3]]
    tensors = [*operands, *(graph.tensor[name] for name in op.outputs[:1])]
    itemsize = _itemsize(tensors)
    shapes: list[tuple[int, ...]] = [t.shape or () for t in operands]
    if itemsize is None or [len(s) for s in shapes] != [_RANK] * 3 or len({s[-1] for s in shapes}) > 1:
        return None
    if sum(t.nbytes for t in tensors) <= capacity_nbytes or not all(prod(s) for s in shapes):
        return None
    (batch, heads, queries, width), keys = shapes[0], shapes[1][2]
    fewer = min(queries, keys)
    pairs = fewer * (fewer + 1) // 2
    fast = max(1, capacity_nbytes // itemsize)
    # Heads that share keys and values are bounded by one of each group alone.
    count = batch * min(heads, shapes[1][1])
    io = attention_io(queries, keys, width, fast, pairs=pairs, count=count, made=_made(graph, operands), embedded=True)
    what = f"attention '{op.id}' ({batch} x {heads} heads, {queries} x {keys} x {width})"
    return Tiled(what, "after FlashAttention, 2022", Traffic(itemsize * io.loaded, 0, itemsize * io.moved))


def _made(graph: Graph, operands: Sequence[Tensor]) -> int:
    """Elements of the operands that are not homed."""
    found = {t.id: t for t in operands if t.storage is None or not graph.storage[t.storage].homed}
    return sum(prod(t.shape or ()) for t in found.values())


def _itemsize(tensors: Sequence[Tensor]) -> int | None:
    """Bytes of the smallest element; None where a shape is not known, or elements have less than a byte."""
    sizes: list[int] = []
    for t in tensors:
        if t.shape is None or not prod(t.shape) or t.nbytes < prod(t.shape):
            return None
        sizes.append(t.nbytes // prod(t.shape))
    return min(sizes)
