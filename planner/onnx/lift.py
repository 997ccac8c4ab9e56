"""Takes large weights out of a model before it is optimised: they become graph inputs that nothing has to read.

Lifted are constants of LIFT_NBYTES or more that are used only as the matrix operand (B, two-dimensional) of MatMul and
Gemm, possibly transposed, or as the table of a Gather along axis 0. ONNX Runtime's optimiser has nothing to gain from
their values. All other constants stay: it folds them, and reorders those of convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ...ir.errors import InputError
from .load import LoadedModel, Source, source_of, tensor_bytes
from .types import element_bits, tensor_nbytes

LIFT_NBYTES = 64 << 10

STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class LiftedWeight:
    """A weight that was taken out: its type, and its bytes in a file (`source`) or the one element that fills it."""

    name: str
    elem_type: int
    shape: tuple[int, ...]
    source: Source | None
    fill: bytes | None


def lift(model: LoadedModel) -> dict[str, LiftedWeight]:
    """Make graph inputs of the large matrix operands and tables of `model.proto`, in place; returns them by name.

    Constant nodes become initializers on the way. Initializers must not be graph inputs any more.
    """
    graph = model.proto.graph
    _constants_to_initializers(graph)
    roots = _candidates(model)
    for name in _unsuitable(graph, roots):
        del roots[name]
    nodes = [n for n in graph.node if not (n.op_type == "ConstantOfShape" and n.output[0] in roots)]
    tensors = [t for t in graph.initializer if t.name not in roots]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    for root in roots.values():
        graph.input.append(onnx.helper.make_tensor_value_info(root.name, root.elem_type, root.shape))
    return roots


def check_unique_values(model: ModelProto) -> None:
    """Raise InputError where two nodes, inputs or initializers of the main graph define the same value."""
    graph = model.graph
    initializers = [t.name for t in graph.initializer]
    defined: set[str] = set()
    for name in (*(i.name for i in graph.input), *initializers, *(o for n in graph.node for o in n.output if o)):
        if name in defined:
            raise InputError(f"value '{name}' is defined twice in the model; names of values must be unique")
        defined.add(name)


def nodes_inside(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes of the nested graphs of a node, and of theirs."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield inner
                yield from nodes_inside(inner)


def names_used_inside(node: NodeProto) -> Iterator[str]:
    """Names that the nested graphs of a node mention, their own values included."""
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from names_used_inside(inner)
            yield from (o.name for o in graph.output)


def _constants_to_initializers(graph: GraphProto) -> None:
    outputs = {o.name for o in graph.output}
    kept: list[NodeProto] = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if (
            node.op_type == "Constant"
            and node.domain in STANDARD
            and value is not None
            and node.output[0] not in outputs
        ):
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _candidates(model: LoadedModel) -> dict[str, LiftedWeight]:
    graph = model.proto.graph
    found: dict[str, LiftedWeight] = {}
    for tensor in graph.initializer:
        shape = tuple(tensor.dims)
        source = source_of(tensor, model.folder)
        if source is not None and source.nbytes >= LIFT_NBYTES:
            found[tensor.name] = LiftedWeight(tensor.name, tensor.data_type, shape, source, None)
    shapes = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT64 and len(t.dims) == 1}
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.domain not in STANDARD or node.input[0] not in shapes:
            continue
        shape = tuple(int(d) for d in onnx.numpy_helper.to_array(_inline(shapes[node.input[0]], model)))
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        elem_type = value.data_type if value is not None else int(TensorProto.FLOAT)
        if min(shape, default=0) <= 0 or element_bits(elem_type) < 8:
            continue
        fill = tensor_bytes(value, model.folder) if value is not None else bytes(4)
        if tensor_nbytes(elem_type, shape) >= LIFT_NBYTES and len(fill) == element_bits(elem_type) // 8:
            found[node.output[0]] = LiftedWeight(node.output[0], elem_type, shape, None, fill)
    return found


def _inline(tensor: TensorProto, model: LoadedModel) -> TensorProto:
    if source_of(tensor, model.folder) is None:
        return tensor
    return TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        raw_data=tensor_bytes(tensor, model.folder),
    )


def _unsuitable(graph: GraphProto, roots: dict[str, LiftedWeight]) -> set[str]:
    """Candidates that have another use than those that may be lifted, or none."""
    # Where a value comes from, seen through Identity and the transposition of a matrix: its root, and if transposed.
    origin = {name: (name, False) for name in roots}
    bad = {o.name for o in graph.output} & set(roots)
    used: set[str] = set()
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        for name in names_used_inside(node):
            if name in origin:
                bad.add(origin[name][0])
        for index, name in enumerate(node.input):
            if name not in origin:
                continue
            root, transposed = origin[name]
            flips = _passes_on(node, len(roots[root].shape))
            if flips is not None and node.output[0] not in outputs:
                origin[node.output[0]] = (root, transposed != flips)
            elif _may_lift(node, index, roots[root], transposed):
                used.add(root)
            else:
                bad.add(root)
    return bad | (set(roots) - used)


def _passes_on(node: NodeProto, rank: int) -> bool | None:
    """Whether the node passes its operand on as it is (False) or as a transposed matrix (True); None if neither."""
    if node.domain not in STANDARD:
        return None
    if node.op_type == "Identity":
        return False
    if node.op_type == "Transpose" and rank == 2:
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
        return perm == [1, 0]
    return None


def _may_lift(node: NodeProto, index: int, weight: LiftedWeight, transposed: bool) -> bool:
    if node.domain not in STANDARD:
        return False
    if node.op_type in ("MatMul", "Gemm"):
        # Other element types have no Gemm that takes a transposed matrix.
        typed = weight.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        return index == 1 and len(weight.shape) == 2 and typed and prod(weight.shape) > 0
    if node.op_type == "Gather":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return index == 0 and not transposed and axis in (0, -len(weight.shape))
    return False
