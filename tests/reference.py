"""Runs a lowered model operator by operator on numpy memory, weights read from where the program says they lie."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto

from tensorstow.ir.graph import Operator
from tensorstow.ir.program import BlobSource
from tensorstow.planner.onnx import Lowered
from tensorstow.planner.onnx.session import open_session, options
from tensorstow.planner.onnx.types import tensor_nbytes, value_of_type


def run_lowered(lowered: Lowered, inputs: Mapping[str, Any]) -> list[Any]:
    """Outputs of one pass. Every storage is one byte array; kernels see views of it, or values outside the plan."""
    graph, program = lowered.graph, lowered.program
    memory = {s.id: np.zeros(s.nbytes, np.uint8) for s in graph.storages}
    for storage in graph.storages:
        if storage.blob is not None:
            blob = blob_bytes(program.blob[storage.blob])
            memory[storage.id][:] = blob[storage.blob_offset : storage.blob_offset + storage.nbytes]
    outside: dict[str, Any] = {}
    for name, tensor_id in zip(program.input_names, graph.inputs, strict=True):
        tensor = graph.tensor[tensor_id]
        if tensor.storage is None:
            outside[tensor_id] = inputs[name]
        else:
            memory[tensor.storage][:] = _bytes(inputs[name])
    for op in graph.operators:
        session, model = _session(program.models[program.kernels[op.id]])
        bound = all(_is_array(v) for v in (*model.graph.input, *model.graph.output))
        run = _run_bound if bound else _run_outside
        run(lowered, op, session, model, memory, outside)
    return [outside[t] if graph.tensor[t].storage is None else _view(lowered, t, memory) for t in graph.outputs]


def blob_bytes(blob: BlobSource) -> Any:
    """The bytes of a blob as the store lays them out."""
    count = prod(blob.shape)
    if blob.fill is not None:
        data = np.frombuffer(bytes.fromhex(blob.fill) * count, np.uint8)
    elif blob.inline is not None:
        data = np.frombuffer(bytes.fromhex(blob.inline), np.uint8)
    else:
        assert blob.path is not None
        data = np.fromfile(Path(blob.path), np.uint8, blob.nbytes, offset=blob.file_offset)
    if blob.transposed:
        rows, columns = blob.shape
        data = np.ascontiguousarray(data.reshape(rows, columns, -1).swapaxes(0, 1)).reshape(-1)
    assert data.nbytes == blob.nbytes
    return data


@cache
def _session(model: bytes) -> tuple[Any, ModelProto]:
    return open_session(model, options()), ModelProto.FromString(model)


def _bind(bind: Any, declared: Any, memory: Any, offset: int) -> None:
    value = value_of_type(declared.type)
    assert value.shape is not None
    assert offset + tensor_nbytes(value.elem_type, value.shape) <= memory.nbytes
    bind(declared.name, "cpu", 0, value.elem_type, list(value.shape), memory.ctypes.data + offset)


def _run_bound(lowered: Lowered, op: Operator, session: Any, model: ModelProto, memory: Any, outside: Any) -> None:
    """Run one operator with every planned tensor bound by address."""
    tensors = lowered.graph.tensor
    binding = session.io_binding()
    for name, declared in zip(op.inputs, model.graph.input, strict=True):
        if tensors[name].storage is None:
            binding.bind_ortvalue_input(declared.name, _ort_value(outside[name]))
        else:
            _bind(binding.bind_input, declared, memory[tensors[name].storage], tensors[name].offset)
    for name, declared in zip(op.outputs, model.graph.output, strict=True):
        if tensors[name].storage is None:
            binding.bind_output(declared.name, "cpu")
        else:
            _bind(binding.bind_output, declared, memory[tensors[name].storage], tensors[name].offset)
    session.run_with_iobinding(binding)
    for name, value in zip(op.outputs, binding.get_outputs(), strict=True):
        if tensors[name].storage is None:
            outside[name] = value


def _run_outside(lowered: Lowered, op: Operator, session: Any, model: ModelProto, memory: Any, outside: Any) -> None:
    """Run one operator on Python values: ONNX Runtime cannot bind strings and sequences that come from Python."""
    feeds: dict[str, Any] = {}
    for name, declared in zip(op.inputs, model.graph.input, strict=True):
        value = outside[name] if lowered.graph.tensor[name].storage is None else _view(lowered, name, memory)
        feeds[declared.name] = value.numpy() if isinstance(value, ort.OrtValue) else value
    for name, value in zip(op.outputs, session.run(None, feeds), strict=True):
        storage = lowered.graph.tensor[name].storage
        if storage is None:
            outside[name] = value
        else:
            _view(lowered, name, memory)[...] = value


def _is_array(declared: ValueInfoProto) -> bool:
    return value_of_type(declared.type).elem_type not in (TensorProto.UNDEFINED, TensorProto.STRING)


def _ort_value(value: Any) -> Any:
    return value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)


def _bytes(value: Any) -> Any:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _view(lowered: Lowered, tensor_id: str, memory: Any) -> Any:
    tensor = lowered.graph.tensor[tensor_id]
    assert tensor.shape is not None
    data = memory[tensor.storage][tensor.offset : tensor.offset + tensor.nbytes]
    return data.view(np.dtype(tensor.dtype)).reshape(tensor.shape)
