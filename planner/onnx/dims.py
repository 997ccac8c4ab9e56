"""Fixes the symbolic dimensions of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, ModelProto, TensorProto, TensorShapeProto

from ...ir.errors import InputError

LARGEST = 2**63 - 1
"""A dimension is a whole number of 64 bits with a sign."""


def set_dims(model: ModelProto, dims: Mapping[str, int]) -> None:
    """Give every symbolic dimension of the inputs of `model`, in place, the size that `dims` names.

    A dimension without a name is set as `INPUT.AXIS`. Initializers that are also listed as inputs (IR version 3) are
    dropped from the inputs: they are constants. Raises InputError that lists every dimension still unset, and for
    names that the model does not have.
    """
    graph = model.graph
    constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    model.ir_version = max(model.ir_version, 4)  # the first in which a constant need not be an input
    del graph.input[:]
    graph.input.extend(inputs)
    for name, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"dimension '{name}' is set to {size!r}; it must be a whole number, 0 or more")
        if size > LARGEST:
            raise InputError(f"dimension '{name}' is set to {size}; ONNX holds dimensions up to {LARGEST}")
    unset, known = _fix_inputs(graph, dims)
    unknown = [n for n in dims if n not in known]
    if unknown:
        have = ", ".join(f"'{n}'" for n in known) or "none"
        raise InputError(f"the model has no symbolic dimension '{unknown[0]}'; those it has: {have}")
    if unset:
        flags = " ".join(f"--dim {n}=N" for n in unset)
        raise InputError(f"the model has symbolic dimensions that are not set: {', '.join(unset)}; give {flags}")
    for value in (*graph.output, *graph.value_info):
        for dim in _dims(value.type.tensor_type.shape):
            if dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]


def _fix_inputs(graph: GraphProto, dims: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Fix what `dims` names; returns the names of the dimensions left unset and of all symbolic ones."""
    unset: dict[str, None] = {}
    known: dict[str, None] = {}
    for value in graph.input:
        kind = value.type.WhichOneof("value")
        if kind is None:
            raise InputError(f"input '{value.name}' has no type; the model must declare it")
        tensor = value.type.tensor_type
        if kind != "tensor_type" or tensor.elem_type == TensorProto.STRING:
            continue
        if not tensor.HasField("shape"):
            raise InputError(f"input '{value.name}' has no shape; the model must declare its number of dimensions")
        for axis, dim in enumerate(_dims(tensor.shape)):
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                continue
            name = dim.dim_param or f"{value.name}.{axis}"
            known[name] = None
            if name in dims:
                dim.dim_value = dims[name]
            else:
                unset[name] = None
    return list(unset), list(known)


def _dims(shape: TensorShapeProto) -> list[TensorShapeProto.Dimension]:
    return list(shape.dim)
