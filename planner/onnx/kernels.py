"""One-operator models: a node of the optimised graph becomes a small ONNX model that stands on its own.

Names are canonical (i0, i1, ... for inputs, c for constants inside the model, o for outputs), so nodes of equal form
give equal bytes and share one model and one session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from .load import source_of, tensor_bytes
from .types import Value, dtype_name, tensor_nbytes, type_of_value, value_of_type

PARAMETER_NBYTES = 256
"""Integers (axes, sizes) up to this size are parameters of a kernel; larger ones may be data, and are weights."""

_WHOLE = frozenset(
    int(TensorProto.DataType.Value(n))
    for n in ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
)


@dataclass(frozen=True)
class Site:
    """What one node is called with: names of values for its kernel's inputs and outputs, and the kernel's model.

    The model's outputs are not yet typed.
    """

    model: ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Surroundings:
    """What a kernel model takes from the model that its node comes from."""

    ir_version: int
    opsets: Mapping[str, int]
    folder: Path


Embed = Callable[[TensorProto], bool]


def embed_parameters(tensor: TensorProto) -> bool:
    """Strings, single elements or none, and whole numbers up to PARAMETER_NBYTES: what selects behaviour."""
    if tensor.data_type == TensorProto.STRING or prod(tensor.dims) <= 1:
        return True
    return tensor.data_type in _WHOLE and tensor_nbytes(tensor.data_type, tuple(tensor.dims)) <= PARAMETER_NBYTES


def embed_integers(tensor: TensorProto) -> bool:
    """Also other small constants (the scales of a Resize), and lists of sizes or indices of any length."""
    if embed_parameters(tensor) or (
        tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and len(tensor.dims) == 1
    ):
        return True
    return tensor_nbytes(tensor.data_type, tuple(tensor.dims)) <= PARAMETER_NBYTES


def embed_all(_: TensorProto) -> bool:
    """Every constant, for kernels that refuse to have them as inputs."""
    return True


def make_site(
    node: NodeProto,
    values: Mapping[str, Value],
    constants: Mapping[str, TensorProto],
    around: Surroundings,
    embed: Embed,
) -> Site:
    """The kernel model of `node`, its outputs not yet typed. Constants that `embed` accepts lie inside the model."""
    captured = list(dict.fromkeys(n for n in _free_names(node) if n in values))
    prefix = _fresh_prefix(node)
    copy = NodeProto()
    copy.CopyFrom(node)
    _strip(copy)
    inputs: list[str] = []
    declared: list[ValueInfoProto] = []
    embedded: list[TensorProto] = []

    def canonical(name: str) -> str:
        constant = constants.get(name)
        if constant is not None and embed(constant):
            new = f"{prefix}c{len(embedded)}"
            embedded.append(_inside(constant, new, around.folder))
            return new
        new = f"{prefix}i{len(inputs)}"
        inputs.append(name)
        declared.append(ValueInfoProto(name=new, type=type_of_value(values[name])))
        return new

    del copy.input[:]
    copy.input.extend(canonical(n) if n else "" for n in node.input)
    renamed = {n: canonical(n) for n in captured}
    for graph in _nested(copy):
        _settle(graph, renamed, around.folder)
    outputs = [(n, f"{prefix}o{i}") for i, n in enumerate(n for n in node.output if n)]
    fresh = iter(new for _, new in outputs)
    del copy.output[:]
    copy.output.extend(next(fresh) if n else "" for n in node.output)
    graph = GraphProto(name="kernel")
    graph.node.append(copy)
    graph.input.extend(declared)
    graph.initializer.extend(embedded)
    graph.output.extend(ValueInfoProto(name=new) for _, new in outputs)
    model = ModelProto(ir_version=around.ir_version, graph=graph)
    for domain in sorted(_domains(node)):
        model.opset_import.add(domain=domain, version=around.opsets.get(domain, 1))
    return Site(model, tuple(inputs), tuple(n for n, _ in outputs))


def serialised(model: ModelProto) -> bytes:
    """Bytes of a kernel model; equal models give equal bytes."""
    return model.SerializeToString(deterministic=True)


def typed(model: ModelProto, outputs: tuple[Value, ...]) -> ModelProto:
    """The finished kernel model: outputs declared with their types."""
    done = ModelProto()
    done.CopyFrom(model)
    for declared, value in zip(done.graph.output, outputs, strict=True):
        declared.type.CopyFrom(type_of_value(value))
    return done


Forms = list[tuple[str, tuple[int, ...]] | None]


def node_forms(model: ModelProto) -> tuple[Forms, Forms]:
    """(dtype, shape) of each input and output of a finished kernel's node; None for what is left out or not known."""
    graph = model.graph
    known: dict[str, tuple[str, tuple[int, ...]] | None] = {"": None}
    for declared in (*graph.input, *graph.output):
        value = value_of_type(declared.type)
        known[declared.name] = (value.dtype, value.shape) if value.planned and value.shape is not None else None
    for tensor in graph.initializer:
        known[tensor.name] = (dtype_name(tensor.data_type), tuple(tensor.dims))
    node = graph.node[0]
    return [known[n] for n in node.input], [known[n] for n in node.output]


def digest(model: bytes) -> str:
    """The name of a kernel model in a program."""
    return hashlib.sha256(model).hexdigest()


def _nested(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _domains(node: NodeProto) -> set[str]:
    found = {"" if node.domain == "ai.onnx" else node.domain}
    for graph in _nested(node):
        # A nested graph may call standard operators even where its node is of another domain.
        found.add("")
        for inner in graph.node:
            found |= _domains(inner)
    return found


def _free_names(node: NodeProto) -> Iterator[str]:
    """Names that nested graphs take from outside, in order of mention."""
    for graph in _nested(node):
        own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        for inner in graph.node:
            for name in (*inner.input, *_free_names(inner)):
                if name and name not in own:
                    yield name
            own.update(inner.output)
        yield from (o.name for o in graph.output if o.name not in own)


def _names(node: NodeProto) -> Iterator[str]:
    for graph in _nested(node):
        yield from (v.name for v in (*graph.input, *graph.output, *graph.initializer))
        for inner in graph.node:
            yield from inner.output
            yield from _names(inner)


def _fresh_prefix(node: NodeProto) -> str:
    """The shortest run of underscores that begins no name inside the node, so canonical names cannot clash."""
    names = set(_names(node))
    prefix = ""
    while any(n[: len(prefix) + 1] in (f"{prefix}i", f"{prefix}c", f"{prefix}o") for n in names):
        prefix += "_"
    return prefix


def _strip(node: NodeProto) -> None:
    """Drop what has no meaning: the node's name, documentation, the order of attributes."""
    for field in ("name", "doc_string"):
        node.ClearField(field)
    del node.metadata_props[:]
    attributes = sorted(node.attribute, key=lambda a: a.name)
    copies = [onnx.AttributeProto() for _ in attributes]
    for copy, attribute in zip(copies, attributes, strict=True):
        copy.CopyFrom(attribute)
        copy.ClearField("doc_string")
    del node.attribute[:]
    node.attribute.extend(copies)


def _settle(graph: GraphProto, renamed: Mapping[str, str], folder: Path) -> None:
    """Give a nested graph its outer values' new names, and its external tensors their bytes."""
    for tensor in graph.initializer:
        if source_of(tensor, folder) is not None:
            tensor.CopyFrom(_inside(tensor, tensor.name, folder))
    own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
    # ONNX Runtime writes the constants of deeper graphs twice, as nodes and as initializers.
    nodes = [n for n in graph.node if not (n.op_type == "Constant" and n.output[0] in own)]
    del graph.node[:]
    graph.node.extend(nodes)
    for inner in graph.node:
        here = {old: new for old, new in renamed.items() if old not in own}
        names = [here.get(n, n) for n in inner.input]
        del inner.input[:]
        inner.input.extend(names)
        for attribute in inner.attribute:
            if attribute.HasField("t") and source_of(attribute.t, folder) is not None:
                attribute.t.CopyFrom(_inside(attribute.t, attribute.t.name, folder))
        for deeper in _nested(inner):
            _settle(deeper, here, folder)
        own.update(inner.output)
    for output in graph.output:
        if output.name not in own:
            output.name = renamed.get(output.name, output.name)


def _inside(tensor: TensorProto, name: str, folder: Path) -> TensorProto:
    """The tensor under another name, its bytes in the message."""
    if tensor.data_type == TensorProto.STRING:
        return TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims, string_data=tensor.string_data)
    return TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims, raw_data=tensor_bytes(tensor, folder))
