"""From an ONNX file to our graph and to the kernels that compute it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnx.inliner import inline_local_functions

from ...ir.errors import InputError
from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from ...ir.operators import is_random
from ...ir.paths import cache_dir
from ...ir.program import BlobSource, Program
from .bodies import cost_with_bodies
from .dims import set_dims
from .infer import Inference
from .kernels import Site, Surroundings, digest, embed_parameters, make_site, serialised, typed
from .layout import Layout, Product, as_gemm, choose_layout
from .lift import LiftedWeight, check_unique_values, lift, names_used_inside, nodes_inside
from .load import LoadedModel, dense_of, load_model, source_of, tensor_bytes
from .optimise import optimised
from .types import OPAQUE, Value, tensor_nbytes, tensor_value, value_of_type
from .views import is_view

ENGINE = "onnxruntime"


@dataclass(frozen=True)
class Lowered:
    """A graph to plan, and the program that runs it."""

    graph: Graph
    program: Program


def lower_onnx(path: Path, *, dims: Mapping[str, int] = MappingProxyType({}), cache: Path | None = None) -> Lowered:
    """Lower the model at `path`, its symbolic dimensions set by `dims` (name, or INPUT.AXIS for one without).

    ONNX Runtime's optimised graph is kept under `cache` (by default ir.paths.cache_dir()), and weights that it has
    rearranged are read from there later. Weights are not read here beyond what its optimiser reads. Raises InputError
    for a model that cannot be used, ExecutionError where the cache cannot be written.
    """
    model = load_model(path)
    if model.proto.functions:
        model = replace(model, proto=_inlined(model.proto))
    set_dims(model.proto, dims)
    check_unique_values(model.proto)
    inputs = tuple(i.name for i in model.proto.graph.input)
    lifted = lift(model)
    dump = optimised(model, cache if cache is not None else cache_dir())
    return _Lowering(dump, lifted, inputs).run(model.proto.graph.name or path.stem)


def _inlined(proto: ModelProto) -> ModelProto:
    try:
        return inline_local_functions(proto)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the model's functions cannot be inlined: {error}") from error


@dataclass(frozen=True)
class _Call:
    """A node with its kernel's form and what its outputs are."""

    node: NodeProto
    site: Site
    outputs: tuple[Value, ...]


class _Lowering:
    """One pass over the optimised graph; what is found is gathered in lists and becomes frozen data at the end."""

    def __init__(self, dump: LoadedModel, lifted: Mapping[str, LiftedWeight], inputs: tuple[str, ...]) -> None:
        graph = dump.proto.graph
        self.dump, self.lifted, self.input_names = dump, lifted, inputs
        opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in dump.proto.opset_import}
        self.around = Surroundings(max(dump.proto.ir_version, 8), opsets, dump.folder)
        self.constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self.constants.update({t.values.name: dense_of(t, dump.folder) for t in graph.sparse_initializer})
        self.values: dict[str, Value] = {i.name: value_of_type(i.type) for i in graph.input}
        self.values.update({n: tensor_value(t.data_type, tuple(t.dims)) for n, t in self.constants.items()})
        self.inference = Inference()
        self.used = Counter(n for node in graph.node for n in (*node.input, *names_used_inside(node)))
        self.used.update(o.name for o in graph.output)
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, Tensor] = {}
        self.operators: dict[str, Operator] = {}
        self.blobs: list[BlobSource] = []
        self.kernels: dict[str, str] = {}
        self.models: dict[str, bytes] = {}
        self.transposed: frozenset[str] = frozenset()

    def run(self, name: str) -> Lowered:
        graph = self.dump.proto.graph
        calls = [self._call(node) for node in graph.node]
        layout = choose_layout(graph, self.lifted, self.values)
        self.transposed = layout.transposed
        for input_name in self.input_names:
            self._add_tensor(input_name, self.values[input_name], input_name, StorageKind.INPUT)
        outputs = {o.name for o in graph.output}
        for index, call in enumerate(calls):
            if index not in layout.vanished:
                self._emit(index, call, layout, outputs)
        result = tuple(self._output(o.name) for o in graph.output)
        for storage in {s for s in (self.tensors[t].storage for t in result) if s is not None}:
            self.storages[storage] = replace(self.storages[storage], kind=StorageKind.OUTPUT)
        made = Graph(
            name=name,
            storages=tuple(self.storages.values()),
            tensors=tuple(self.tensors.values()),
            operators=tuple(self.operators.values()),
            inputs=self.input_names,
            outputs=result,
        )
        names = tuple(o.name for o in graph.output)
        return Lowered(made, Program(ENGINE, self.kernels, self.models, tuple(self.blobs), self.input_names, names))

    def _call(self, node: NodeProto) -> _Call:
        site, outputs = self.inference.site(node, self.values, self.constants, self.around)
        self.values.update(zip(site.outputs, outputs, strict=True))
        return _Call(node, site, outputs)

    def _emit(self, index: int, call: _Call, layout: Layout, outputs: set[str]) -> None:
        node = call.node
        if is_view(node, self.values, self.constants, self.used):
            base = self._tensor(node.input[0])
            kind = self.storages[base.storage].kind if base.storage is not None else None
            # What the user is given must be bytes of its own, not the input's or a weight's.
            if node.output[0] not in outputs or kind not in (StorageKind.INPUT, StorageKind.WEIGHT):
                self._add_view(node.output[0], base)
                return
        product = layout.products.get(index)
        shapes = call.outputs
        if product is not None:
            call = self._product(node, product)
        self._add_operator(self._operator_id(node, index), call, shapes)

    def _product(self, node: NodeProto, product: Product) -> _Call:
        """The node as a Gemm over the stored weight, three and more dimensions seen as two."""
        made, a, opsets = as_gemm(node, product, self.values[node.input[0]], self.around.opsets)
        seen = {**self.values, node.input[0]: a, product.weight: self._stored(product.weight)}
        site, outputs = self.inference.site(made, seen, self.constants, replace(self.around, opsets=opsets))
        return _Call(made, site, outputs)

    def _output(self, name: str) -> str:
        """The tensor that is the graph's output `name`; inputs and constants are copied to one of their own."""
        text = name in self.constants and not self.values[name].planned  # no bytes of a store: its kernel holds it
        if not text:
            tensor = self._tensor(name)
            kind = self.storages[tensor.storage].kind if tensor.storage is not None else None
            if name not in self.input_names and kind not in (StorageKind.INPUT, StorageKind.WEIGHT):
                return name
        copy = _unique(f"{name}:copy", self.values)
        node = onnx.helper.make_node("Identity", [name], [copy], name=f"copy {name}")
        constants = self.constants if text else {}
        site = make_site(node, self.values, constants, self.around, embed_parameters)
        self.values[copy] = self.values[name]
        call = _Call(node, site, (self.values[name],))
        self._add_operator(self._operator_id(node, len(self.operators)), call, call.outputs)
        return copy

    def _add_operator(self, op_id: str, call: _Call, shapes: tuple[Value, ...]) -> None:
        """Add one operator; `shapes` are its outputs as the graph sees them, `call.outputs` as the kernel does."""
        site = call.site
        for name in site.inputs:
            self._tensor(name)
        for name, value in zip(site.outputs, shapes, strict=True):
            self._add_tensor(name, value, name, StorageKind.ACTIVATION)
        model = typed(site.model, call.outputs)
        content = serialised(model)
        self.kernels[op_id] = digest(content)
        self.models[self.kernels[op_id]] = content
        node = model.graph.node[0]
        cost = cost_with_bodies(model, self.inference, self.around)
        self.operators[op_id] = Operator(
            id=op_id,
            op_type=_op_type(node),
            inputs=site.inputs,
            outputs=site.outputs,
            cost_class=cost.cost_class,
            dtype=cost.dtype,
            flops=cost.flops,
            moved_nbytes=cost.moved_nbytes,
            workspace_nbytes=cost.workspace_nbytes,
        )

    def _operator_id(self, node: NodeProto, index: int) -> str:
        return _unique(node.name or f"{node.op_type}_{index}", self.operators)

    def _tensor(self, name: str) -> Tensor:
        """The tensor of a value; weights come into being where they are first used."""
        if name not in self.tensors:
            self._add_weight(name)
        return self.tensors[name]

    def _add_tensor(self, name: str, value: Value, storage: str, kind: StorageKind, blob: str | None = None) -> None:
        if value.planned:
            self.storages[storage] = Storage(storage, value.nbytes, kind, blob=blob)
        dtype = value.dtype if value.planned else OPAQUE if not value.elem_type else value.dtype
        shape = value.shape if value.planned else None
        self.tensors[name] = Tensor(name, dtype, shape, storage if value.planned else None, value.nbytes)

    def _add_view(self, name: str, base: Tensor) -> None:
        value = self.values[name]
        self.tensors[name] = Tensor(name, value.dtype, value.shape, base.storage, value.nbytes, base.offset)

    def _stored(self, name: str) -> Value:
        """A lifted weight as it lies in the store."""
        weight = self.lifted[name]
        shape = weight.shape[::-1] if name in self.transposed else weight.shape
        return tensor_value(weight.elem_type, shape)

    def _add_weight(self, name: str) -> None:
        weight = self.lifted.get(name)
        value = self._stored(name) if weight is not None else self.values[name]
        self._add_tensor(name, value, name, StorageKind.WEIGHT, blob=name)
        if weight is not None:
            source, fill, inline, shape = weight.source, weight.fill, None, weight.shape
        else:
            tensor = self.constants[name]
            source, fill, shape = source_of(tensor, self.dump.folder), None, tuple(tensor.dims)
            inline = tensor_bytes(tensor, self.dump.folder) if source is None else None
        self.blobs.append(
            BlobSource(
                blob=name,
                nbytes=tensor_nbytes(value.elem_type, shape),
                dtype=value.dtype,
                shape=shape,
                path=str(source.path) if source is not None else None,
                file_offset=source.offset if source is not None else 0,
                fill=fill.hex() if fill is not None else None,
                inline=inline.hex() if inline is not None else None,
                transposed=name in self.transposed,
            )
        )


def _op_type(node: NodeProto) -> str:
    """The node's, marked where something in its bodies draws random numbers, which the type alone does not say."""
    inside = any(is_random(Operator("", inner.op_type, (), ())) for inner in nodes_inside(node))
    return f"random:{node.op_type}" if inside else node.op_type


def _unique(name: str, taken: Mapping[str, object]) -> str:
    """`name`, or `name` with the first number that makes it new."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}#{count}"
    return found
