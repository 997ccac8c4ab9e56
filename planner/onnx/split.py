"""Cuts an operator with a large weight into parts, each with its own range of the weight's bytes.

A product is cut over its output columns, a convolution over its output channels. The stored weight has them as its
outermost dimension, so a part's weight is one range of the blob. Where an output has a single row (or a batch of one)
the parts write straight into slices of it; else each writes a tensor of its own, and one Concat joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx
from onnx import ModelProto

from ...ir.errors import InputError
from ...ir.graph import Operator, Storage, StorageKind, Tensor
from ..costs import onnx_cost
from .kernels import digest, node_forms, serialised
from .lower import Lowered
from .split_axis import PRODUCTS, Cut, SplitAxis, axis_of, cut_of, part_ranges

_OUTPUT_AXIS = 1  # of columns and of channels alike


def split(lowered: Lowered, parts: Mapping[str, int]) -> Lowered:
    """`lowered` with each operator named in `parts` cut into that many parts of nearly equal size.

    Raises InputError for an operator that cannot be cut so far.
    """
    return _Split(lowered).run(parts)


class _Split:
    """Rewrites a graph operator by operator; parts of equal form share a kernel model and its cost."""

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        graph = lowered.graph
        self.storages, self.tensors = dict(graph.storage), dict(graph.tensor)
        self.operators: dict[str, Operator] = {}
        self.kernels = dict(lowered.program.kernels)
        self.models = dict(lowered.program.models)
        self.parsed: dict[str, ModelProto] = {}
        self.part_models: dict[tuple[str, int], tuple[str, Operator]] = {}

    def run(self, parts: Mapping[str, int]) -> Lowered:
        graph = self.lowered.graph
        for name in parts:
            if name not in graph.operator:
                raise InputError(f"operator '{name}' is to be split, but the graph has no such operator")
        for op in graph.operators:
            if parts.get(op.id, 1) == 1:
                self.operators[op.id] = op
            else:
                self._split(op, parts[op.id])
        operators = tuple(self.operators.values())
        used = {t for o in operators for t in (*o.inputs, *o.outputs)} | set(graph.inputs) | set(graph.outputs)
        touched = {self.tensors[t].storage for t in used}
        made = replace(
            graph,
            operators=operators,
            storages=tuple(s for s in self.storages.values() if s.id in touched or s.id not in graph.storage),
            tensors=tuple(t for t in self.tensors.values() if t.storage is None or t.storage in touched),
        )
        kernels = {o.id: self.kernels[o.id] for o in operators if o.id in self.kernels}
        models = {d: self.models[d] for d in dict.fromkeys(kernels.values())}
        return replace(self.lowered, graph=made, program=replace(self.lowered.program, kernels=kernels, models=models))

    def _split(self, op: Operator, parts: int) -> None:
        whole = self.kernels[op.id]
        if whole not in self.parsed:
            self.parsed[whole] = ModelProto.FromString(self.models[whole])
        model = self.parsed[whole]
        axis, cut = axis_of(self.lowered.graph, op, model), cut_of(model)
        if axis is None or cut is None:
            raise InputError(f"operator '{op.id}' ({op.op_type}) cannot be split")
        if not 1 <= parts <= axis.units // axis.granule:
            raise InputError(
                f"operator '{op.id}' cannot be split into {parts} parts: it has {axis.units} units, and a part has at "
                f"least {axis.granule}"
            )
        pieces = [self._part(op, whole, cut, axis, lo, hi) for lo, hi in part_ranges(axis, parts)]
        if not cut.contiguous:
            self._join(op, model, pieces)

    def _part(self, op: Operator, whole: str, cut: Cut, axis: SplitAxis, lo: int, hi: int) -> Tensor:
        """Add the operator that computes units [lo, hi) and return the tensor that it writes."""
        inputs = list(op.inputs)
        inputs[1] = self._weight_part(op.inputs[1], axis, lo, hi)
        for position, at in enumerate(cut.inputs[2:], 2):
            if at is not None:
                inputs[position] = self._slice(self.tensors[op.inputs[position]], at, axis.units, lo, hi).id
        result = self.tensors[op.outputs[0]]
        piece = self._slice(result, _unit_axis(op, result), axis.units, lo, hi, own=not cut.contiguous)
        key = (whole, hi - lo)
        if key not in self.part_models:
            self.part_models[key] = self._part_kernel(self.parsed[whole], cut, hi - lo, op)
        name, form = self.part_models[key]
        self._add(replace(form, id=f"{op.id}[{lo}:{hi}]", inputs=tuple(inputs), outputs=(piece.id,)), name)
        return piece

    def _part_kernel(self, model: ModelProto, cut: Cut, units: int, op: Operator) -> tuple[str, Operator]:
        made = ModelProto()
        made.CopyFrom(model)
        for value, at in zip(made.graph.input, cut.inputs, strict=True):
            if at is not None:
                value.type.tensor_type.shape.dim[at].dim_value = units
        made.graph.output[0].type.tensor_type.shape.dim[_OUTPUT_AXIS].dim_value = units
        return self._kernel(made, op)

    def _kernel(self, model: ModelProto, op: Operator) -> tuple[str, Operator]:
        """Keep the model; its digest, and `op` with the model's cost."""
        content = serialised(model)
        name = digest(content)
        self.models[name] = content
        cost = onnx_cost(model.graph.node[0], *node_forms(model))
        form = replace(
            op,
            op_type=model.graph.node[0].op_type,
            cost_class=cost.cost_class,
            dtype=cost.dtype,
            flops=cost.flops,
            moved_nbytes=cost.moved_nbytes,
            workspace_nbytes=cost.workspace_nbytes,
            measured_ns=None,
        )
        return name, form

    def _add(self, op: Operator, kernel: str) -> None:
        count, name = 1, op.id
        while name in self.operators or (name in self.lowered.graph.operator):
            count += 1
            name = f"{op.id}#{count}"
        self.operators[name] = replace(op, id=name)
        self.kernels[name] = kernel

    def _weight_part(self, tensor_id: str, axis: SplitAxis, lo: int, hi: int) -> str:
        """The tensor of a range of the stored weight, in a storage of its own; users of one weight share it."""
        tensor, storage = self.tensors[tensor_id], self.storages[axis.weight_storage]
        name = f"{storage.id}[{lo}:{hi}]"
        nbytes, start = (hi - lo) * axis.unit_nbytes, storage.blob_offset + lo * axis.unit_nbytes
        part = Storage(name, nbytes, storage.kind, storage.alignment, storage.blob, start)
        if self.storages.setdefault(name, part) != part:
            raise InputError(f"the model has a value '{name}', which is the name of a part of weight '{storage.id}'")
        shape = (hi - lo, *(tensor.shape or ())[1:])
        self.tensors[name] = Tensor(name, tensor.dtype, shape, name, nbytes)
        return name

    def _slice(self, tensor: Tensor, at: int, units: int, lo: int, hi: int, *, own: bool = False) -> Tensor:
        """Units [lo, hi) of a tensor: a view of its storage, or (`own`) a tensor with a storage of its own."""
        shape = tuple(hi - lo if i == at else d for i, d in enumerate(tensor.shape or ()))
        nbytes = tensor.nbytes // units
        name = f"{tensor.id}[{lo}:{hi}]"
        offset = 0 if own else tensor.offset + lo * nbytes
        part = Tensor(name, tensor.dtype, shape, name if own else tensor.storage, (hi - lo) * nbytes, offset)
        if self.tensors.setdefault(name, part) != part:
            raise InputError(f"the model has a value '{name}', which is the name of a part of '{tensor.id}'")
        if own:
            self.storages[name] = Storage(name, part.nbytes, StorageKind.ACTIVATION)
        return part

    def _join(self, op: Operator, model: ModelProto, pieces: list[Tensor]) -> None:
        """Add the Concat that makes the whole output of its parts, in the shapes in which the kernel sees them."""
        declared = model.graph.output[0]
        made = ModelProto(ir_version=model.ir_version, graph=onnx.GraphProto(name="kernel"))
        names = [f"i{i}" for i in range(len(pieces))]
        made.graph.node.append(onnx.helper.make_node("Concat", names, ["o0"], axis=_OUTPUT_AXIS))
        at = _unit_axis(op, self.tensors[op.outputs[0]])
        for name, piece in zip(names, pieces, strict=True):
            value = made.graph.input.add()
            value.CopyFrom(declared)
            value.name = name
            value.type.tensor_type.shape.dim[_OUTPUT_AXIS].dim_value = (piece.shape or ())[at]
        made.graph.output.add().CopyFrom(declared)
        made.graph.output[0].name = "o0"
        made.opset_import.add(domain="", version=13)
        name, form = self._kernel(made, op)
        self._add(replace(form, id=f"{op.id}:join", inputs=tuple(p.id for p in pieces), outputs=op.outputs), name)


def _unit_axis(op: Operator, output: Tensor) -> int:
    """The axis of columns or channels in the output as the graph sees it: a product may have more than two."""
    return len(output.shape or ()) - 1 if op.op_type in PRODUCTS else _OUTPUT_AXIS
