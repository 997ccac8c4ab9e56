"""From a PyTorch module to the graph of the ATen operators that one pass of it executes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import getitem
from typing import Any, cast

import torch
from torch import fx, nn

from ...ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from .capture import INDEX, Captured, capture
from .costs import torch_cost
from .lifetimes import storage_key
from .lowered import ModuleCall, OpLowered, Weight
from .stand_in import Held
from .traced import FREE, Value, leaves, module_call, mutated, region, schema_of, value_of
from .views import OPAQUE, covered, dtype_name, is_dense, is_row_major, known_shape


def lower_module(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, name: str) -> OpLowered:
    """The operators of `module(*args, **kwargs)`, at the shapes of these arguments, in eager mode without gradients.

    Parameters, buffers and arguments may be on 'meta': no data is read, none is copied, and the module is left as it
    was. Raises InputError for a module that torch.export cannot trace, that returns no tensor, or that is, with its
    inputs, on more than one device.
    """
    lowering = _Lowering(capture(module, args, kwargs, name=name))
    embeddings = frozenset(n for n, m in module.named_modules(remove_duplicate=False) if isinstance(m, nn.Embedding))
    return lowering.run(name, embeddings)


class _Lowering:
    """One pass over the traced graph; what is found is gathered in dicts and becomes frozen data at the end."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, Tensor] = {}
        self.operators: dict[str, Operator] = {}
        self.calls: dict[str, ModuleCall] = {}
        self.indices: list[int] = []
        self.storage_of: dict[int, str] = {}
        self.born: dict[str | None, int] = {}
        self.held: dict[str, Held] = {}
        self.writes: dict[str, list[str]] = {}
        self.last_use: dict[str, int] = {}

    def run(self, name: str, embeddings: frozenset[str]) -> OpLowered:
        graph = self.captured.graph_module
        values: dict[fx.Node, Value] = {}
        for node in graph.graph.find_nodes(op="placeholder"):
            values[node] = self._placeholder(node)
        inputs = tuple(t for n, t in values.items() if n.name in self.captured.inputs and isinstance(t, str))
        result = tuple(v for v in leaves(self._walk(graph, values, "")) if v is not None)
        made = {self.tensors[t].storage for t in result}
        used = {self.tensors[t].storage for op in self.operators.values() for t in (*op.inputs, *op.outputs)}
        used |= made | {self.tensors[t].storage for t in inputs}
        for storage in made & {s.id for s in self.storages.values() if s.kind is StorageKind.ACTIVATION}:
            self.storages[cast("str", storage)] = replace(self.storages[cast("str", storage)], kind=StorageKind.OUTPUT)
        found = Graph(
            name=name,
            storages=tuple(s for s in self.storages.values() if s.id in used),
            tensors=tuple(t for t in self.tensors.values() if t.storage in used or t.storage is None),
            operators=tuple(self.operators.values()),
            inputs=inputs,
            outputs=tuple(dict.fromkeys(result)),
        )
        weights = {s: self._weight(s, one) for s, one in self.held.items()}
        placeholders = frozenset(self.captured.weights)
        return OpLowered(found, self.calls, weights, self._ends(found), embeddings, graph.graph, placeholders)

    def _walk(self, graph: fx.GraphModule, values: dict[fx.Node, Value], prefix: str) -> Value:
        """Lower the nodes of `graph`, whose placeholders have `values`; what its output node returns."""
        for node in graph.graph.nodes:
            if node.op == "call_function":
                values[node] = self._call(graph, node, values, prefix)
            elif node.op == "output":
                return value_of(node.args[0], values)
        return None

    def _placeholder(self, node: fx.Node) -> Value:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return None
        captured = self.captured
        if node.name in captured.weights:
            held = captured.weights[node.name]
            storage, kind = held.names[0], StorageKind.CONSTANT if held.is_buffer else StorageKind.WEIGHT
            self.held[storage] = held
        elif node.name in captured.inputs:
            storage, kind = captured.inputs[node.name].name, StorageKind.INPUT
        else:
            storage, kind = captured.constants.get(node.name, node.name), StorageKind.CONSTANT
        return self._tensor(storage if storage in self.held else _unique(storage, self.tensors), value, kind)

    def _tensor(self, name: str, value: torch.Tensor, kind: StorageKind = StorageKind.ACTIVATION) -> str:
        """A tensor named `name` for a traced value, in the storage that it is in."""
        shape, key = known_shape(value), storage_key(value)
        if shape is None or key is None or isinstance(value.untyped_storage().nbytes(), torch.SymInt):
            self.tensors[name] = Tensor(name, OPAQUE, None, None, 0)
            return name
        offset, nbytes = covered(value)
        storage = self.storage_of.get(key)
        if storage is None:
            storage = self.storage_of[key] = _unique(name, self.storages) if name not in self.held else name
            blob = name if name in self.held and kind is StorageKind.WEIGHT else None
            self.storages[storage] = Storage(storage, value.untyped_storage().nbytes(), kind, blob=blob)
            self.born[storage] = len(self.born)
        self.tensors[name] = Tensor(name, dtype_name(value.dtype), shape, storage, nbytes, offset)
        return name

    def _call(self, graph: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Value], prefix: str) -> Value:
        target = node.target
        if target is getitem:
            whole, index = values.get(cast("fx.Node", node.args[0])), node.args[1]
            return whole[index] if isinstance(whole, tuple) and isinstance(index, int) else None
        inner = region(graph, node)
        if inner is not None:
            body, given = inner
            places = body.graph.find_nodes(op="placeholder")
            known = {p: value_of(g, values) for p, g in zip(places, given, strict=True)}
            return self._walk(body, known, f"{prefix}{node.name}.")
        schema = schema_of(node)
        if schema is not None and schema.name in FREE:
            return None
        return self._operator(node, values, prefix + node.name)

    def _operator(self, node: fx.Node, values: dict[fx.Node, Value], name: str) -> Value:
        """The results of a call, and the operator for it unless it only renames bytes."""
        read = [v for v in leaves(value_of((node.args, node.kwargs), values)) if v is not None]
        written = [v for v in leaves(value_of(mutated(node), values)) if v is not None]
        known = len(self.born)
        made: list[str] = []
        result = self._results(name, node.meta.get("val"), made)
        fresh = [t for t in made if self.born.get(self.tensors[t].storage, known) >= known]  # opaque ones always are
        if not fresh and not written:
            return result
        op_id = _unique(name, self.operators)
        versions = tuple(self._version(op_id, t, made) for t in written)
        inputs = dict.fromkeys(read) | dict.fromkeys(w for t in read for w in self._written(t))
        outputs = tuple(dict.fromkeys((*fresh, *versions)))
        cost = torch_cost(node)
        position = len(self.operators)
        self.operators[op_id] = Operator(
            id=op_id,
            op_type=str(node.target),
            inputs=tuple(inputs),
            outputs=outputs,
            cost_class=cost.cost_class,
            dtype=cost.dtype,
            flops=cost.flops,
            moved_nbytes=cost.moved_nbytes,
            workspace_nbytes=cost.workspace_nbytes,
        )
        for version in versions:
            self._note_write(version)
        self.calls[op_id] = module_call(node)
        self.indices.append(node.meta.get(INDEX, self.indices[-1] if self.indices else 0))
        for tensor in (*inputs, *outputs):
            storage = self.tensors[tensor].storage
            if storage is not None:
                self.last_use[storage] = position
        return result

    def _results(self, name: str, value: object, made: list[str]) -> Value:
        """Tensors for what a call returns; their ids are added to `made`."""
        if isinstance(value, torch.Tensor):
            tensor = self._tensor(_unique(name, self.tensors), value)
            made.append(tensor)
            return tensor
        if isinstance(value, (list, tuple)):
            parts = cast("tuple[object, ...]", value)
            return tuple(self._results(f"{name}:{i}", part, made) for i, part in enumerate(parts))
        return None

    def _version(self, op_id: str, tensor: str, made: list[str]) -> str:
        """The tensor that a write to `tensor` makes: the result, if it is that, or one of its own."""
        old = self.tensors[tensor]
        for name in made:
            new = self.tensors[name]
            if old.storage is not None and (new.storage, new.offset, new.nbytes) == (
                old.storage,
                old.offset,
                old.nbytes,
            ):
                return name
        version = _unique(f"{op_id}:{tensor}", self.tensors)
        self.tensors[version] = replace(old, id=version)
        return version

    def _note_write(self, version: str) -> None:
        new = self.tensors[version]
        if new.storage is None:
            return
        kept = [v for v in self.writes.get(new.storage, ()) if not _within(self.tensors[v], new)]
        self.writes[new.storage] = [*kept, version]

    def _written(self, tensor: str) -> Iterator[str]:
        """Tensors that in-place operators have made of the bytes of `tensor`."""
        own = self.tensors[tensor]
        for version in self.writes.get(own.storage or "", ()):
            other = self.tensors[version]
            if other.offset < own.offset + own.nbytes and own.offset < other.offset + other.nbytes:
                yield version

    def _weight(self, storage: str, held: Held) -> Weight:
        value = held.value
        shape, strides = tuple(value.shape), tuple(value.stride())
        return Weight(
            names=held.names,
            storage=storage,
            dtype=dtype_name(value.dtype),
            shape=shape,
            strides=None if is_row_major(shape, strides) else strides,
            nbytes=self.storages[storage].nbytes,
            is_buffer=held.is_buffer,
            dense=is_dense(shape, strides) and not value.is_conj() and not value.is_neg(),
            written=storage in self.writes,
        )

    def _ends(self, graph: Graph) -> dict[str, int]:
        """By storage, the last operator during which it is held: when Python let it go, or its last use."""
        dropped = {i.name for i in self.captured.inputs.values() if i.released}
        kept = {self.tensors[t].storage for t in graph.outputs}
        found: dict[str, int] = {}
        for key, storage in self.storage_of.items():
            kind = self.storages[storage].kind
            if kind not in (StorageKind.ACTIVATION, StorageKind.OUTPUT) and storage not in dropped:
                continue
            last = self.last_use.get(storage, 0)
            if storage in kept:
                last = len(self.operators) - 1
            elif key in self.captured.ended:
                last = max(last, bisect_left(self.indices, self.captured.ended[key]) - 1)
            elif kind is StorageKind.INPUT:
                last = len(self.operators) - 1
            found[storage] = last
        return found


def _within(old: Tensor, new: Tensor) -> bool:
    return new.offset <= old.offset and old.offset + old.nbytes <= new.offset + new.nbytes


def _unique(name: str, taken: Mapping[str, object]) -> str:
    """`name`, or `name` with the first number that makes it new."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}#{count}"
    return found
