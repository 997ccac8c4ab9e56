"""How lifted weights are stored: a matrix operand as [columns, rows], so that a range of columns is a range of bytes.

Measured on two AVX-512 cores: Gemm with transB=1 over the stored [N, K] takes 0.3 to 1.1 times the time of MatMul over
[K, N] for 1 to 32 rows, and the same within the noise for 128 (768x3072, 3072x768, 4096x4096, prepacking off). So one
rule serves all row counts: [N, K] always, unless a use such as a Gather table needs the matrix as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from .lift import STANDARD, LiftedWeight, names_used_inside
from .types import Value, tensor_value

_MICROSOFT = "com.microsoft"
_GEMM_OPSET = 13


@dataclass(frozen=True, slots=True)
class Product:
    """A node whose matrix operand is the lifted `weight`; `by_columns` where that lies as [columns, rows]."""

    weight: str
    by_columns: bool


@dataclass(frozen=True)
class Layout:
    """Lifted weights to store transposed; products by node index; nodes that vanish, as their users look through."""

    transposed: frozenset[str]
    products: Mapping[int, Product]
    vanished: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Origin:
    weight: str
    transposed: bool
    through: tuple[int, ...]


def choose_layout(graph: GraphProto, lifted: Mapping[str, LiftedWeight], values: Mapping[str, Value]) -> Layout:
    """Decide for the optimised `graph`. `values` are those of its inputs and of every node's outputs."""
    origins = {name: _Origin(name, False, ()) for name in lifted}
    products: dict[int, tuple[str, bool]] = {}
    as_it_is: set[str] = set()
    passing: set[int] = set()
    real: set[int] = set()

    def rigid(origin: _Origin) -> None:
        as_it_is.add(origin.weight)
        real.update(origin.through)

    for index, node in enumerate(graph.node):
        for name in names_used_inside(node):
            if name in origins:
                rigid(origins[name])
        for position, name in enumerate(node.input):
            if name not in origins:
                continue
            origin = origins[name]
            flips = _passes_on(node)
            if flips is not None:
                origins[node.output[0]] = _Origin(origin.weight, origin.transposed != flips, (*origin.through, index))
                passing.add(index)
            elif position == 1 and _flexible(node, values):
                products[index] = (origin.weight, origin.transposed != bool(_attribute(node, "transB")))
            else:
                rigid(origin)
    for output in graph.output:
        if output.name in origins:
            rigid(origins[output.name])
    transposed: set[str] = set()
    decided = set(as_it_is)
    for weight, by_columns in products.values():
        if weight not in decided and not by_columns:
            transposed.add(weight)
        decided.add(weight)
    found = {i: Product(w, by_columns != (w in transposed)) for i, (w, by_columns) in products.items()}
    return Layout(frozenset(transposed), found, frozenset(passing - real))


def as_gemm(
    node: NodeProto, product: Product, a: Value, opsets: Mapping[str, int]
) -> tuple[NodeProto, Value, dict[str, int]]:
    """The node as Gemm over the stored weight: the new node, its first operand as a matrix, and the opsets it needs."""
    made = NodeProto()
    made.CopyFrom(node)
    needed = dict(opsets)
    if node.op_type in ("MatMul", "FusedMatMul"):
        made = onnx.helper.make_node("Gemm", list(node.input[:2]), list(node.output), name=node.name)
        alpha = next((x.f for x in node.attribute if x.name == "alpha"), 1.0)
        if alpha != 1.0:
            made.attribute.append(onnx.helper.make_attribute("alpha", alpha))
        needed[""] = _GEMM_OPSET  # older ones demand a bias
        a = _as_matrix(a)
    kept = [x for x in made.attribute if x.name != "transB"]
    del made.attribute[:]
    made.attribute.extend(kept)
    if product.by_columns:
        made.attribute.append(onnx.helper.make_attribute("transB", 1))
    made.input[1] = product.weight
    return made, a, needed


def _as_matrix(value: Value) -> Value:
    *rows, columns = value.shape or (1,)
    return tensor_value(value.elem_type, (prod(rows), columns))


def _passes_on(node: NodeProto) -> bool | None:
    """False for Identity, True for a Transpose of a matrix, None for what makes bytes of its own."""
    if node.domain not in STANDARD:
        return None
    if node.op_type == "Identity":
        return False
    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
    return True if node.op_type == "Transpose" and perm == [1, 0] else None


def _flexible(node: NodeProto, values: Mapping[str, Value]) -> bool:
    """Whether the node can be a Gemm over its second operand in either layout."""
    a = values[node.input[0]]
    if not a.planned or a.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return False
    if node.domain in STANDARD and node.op_type == "MatMul":
        return True
    if node.domain == _MICROSOFT and node.op_type == "FusedMatMul":
        plain = not any(_attribute(node, n) for n in ("transA", "transBatchA", "transBatchB"))
        return plain and not any(x.name == "activation" for x in node.attribute)
    return (node.domain in STANDARD and node.op_type == "Gemm") or (
        node.domain == _MICROSOFT and node.op_type == "FusedGemm"
    )


def _attribute(node: NodeProto, name: str) -> int:
    return next((x.i for x in node.attribute if x.name == name), 0)
