"""Values that no plan can place: strings, sequences, optionals, maps, tensors whose shape depends on data.

They live in ONNX Runtime's own memory from the step that makes them to their last use. Its Python interface makes no
OrtValue of strings or sequences, so small models make them. It cannot hold an empty optional at all (asking for one
kills the process): None stands for it, and operators that may see one run on Python values. So do those that make or
take maps, of which it has no OrtValue at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from ..ir.errors import InputError
from ..ir.graph import Tensor
from .kernels import MAPS, PROVIDERS, element_name, session_options
from .values import Array, dense_nbytes, from_bytes

_OPSET, _IR_VERSION = 17, 8
_STRING = int(onnx.TensorProto.STRING)

# ONNX Runtime's names of element types, as in 'seq(tensor(float))'.
_ELEMENTS = {
    "float": onnx.TensorProto.FLOAT,
    "double": onnx.TensorProto.DOUBLE,
    "string": onnx.TensorProto.STRING,
    **{
        name: onnx.TensorProto.DataType.Value(name.upper())
        for name in ("uint8", "int8", "uint16", "int16", "int32", "int64", "uint32", "uint64")
    },
    **{name: onnx.TensorProto.DataType.Value(name.upper()) for name in ("bool", "float16", "bfloat16")},
    **{name: onnx.TensorProto.DataType.Value(name.upper()) for name in ("complex64", "complex128")},
}


def to_ort(name: str, value: object, element: int = 0) -> Any:
    """An OrtValue of an array, of strings, of a list of either; None stays None, and maps stay as they are.

    `element` is the type of a list that is empty, `MAPS` where maps are wanted. Raises InputError.
    """
    if value is None:
        return None
    if element == MAPS:
        among = cast("list[Any]", value) if isinstance(value, list) else [value]
        if not all(isinstance(v, dict) for v in among):
            raise InputError(f"input '{name}' must be a dictionary or a list of them, got {type(value).__name__}")
        return value
    if isinstance(value, (list, tuple)):
        return _to_sequence(name, [np.asarray(v) for v in cast("Sequence[Any]", value)], element)
    if not isinstance(value, (np.ndarray, np.generic, str)):
        raise InputError(f"input '{name}' must be an array, a list of arrays or None, got {type(value).__name__}")
    array: Array = np.asarray(value)
    if array.dtype.kind in "OUS":
        constant = _strings("c", array)
        info = helper.make_tensor_value_info("y", _STRING, array.shape)
        return _evaluate(helper.make_node("Identity", ["c"], ["y"]), info, [constant]).get_outputs()[0]
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    found: Any = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(contiguous, _element(name, array))
    found.held_array = contiguous  # the OrtValue does not own the bytes
    return found


def to_python(value: Any) -> Any:
    """The array, the list of arrays, the maps or the None that an opaque tensor holds."""
    if not isinstance(value, ort.OrtValue):
        return value
    if value.is_tensor():
        return _dense(value)
    # A binding copies the sequences that it holds as outputs: let an Identity put this one there.
    element = _ELEMENTS[str(value.data_type()).removeprefix("seq(tensor(").removesuffix("))")]
    typed = helper.make_tensor_sequence_value_info
    node = helper.make_node("Identity", ["x"], ["y"])
    return _evaluate(node, typed("y", element, None), [], [(typed("x", element, None), value)]).copy_outputs_to_cpu()[0]


def _dense(value: Any) -> Array:
    element, shape = int(value.element_type()), tuple(value.shape())
    if element == _STRING:
        return np.array(value.numpy())
    # ONNX Runtime makes no arrays of bfloat16, and takes floats of eight bits for integers; so the bytes themselves.
    dtype = element_name(element)
    tensor = Tensor("", dtype, shape, None, dense_nbytes(dtype, shape))
    content = ctypes.string_at(value.data_ptr(), tensor.nbytes) if tensor.nbytes else b""
    return from_bytes(np.frombuffer(content, np.uint8), tensor)


def _element(name: str, array: Array) -> int:
    try:
        return int(helper.np_dtype_to_tensor_dtype(array.dtype))
    except (KeyError, ValueError) as error:
        raise InputError(f"input '{name}' has type {array.dtype}, which ONNX does not know") from error


def _strings(name: str, array: Array) -> onnx.TensorProto:
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in cast("list[Any]", array.reshape(-1).tolist())]
    return helper.make_tensor(name, _STRING, array.shape, cast("Any", texts))


def _to_sequence(name: str, arrays: list[Array], element: int) -> Any:
    names = [f"x{i}" for i in range(len(arrays))]
    if not arrays:
        element = element or int(onnx.TensorProto.FLOAT)
        node = helper.make_node("SequenceEmpty", [], ["y"], dtype=element)
        return _evaluate(node, helper.make_tensor_sequence_value_info("y", element, None), []).get_outputs()[0]
    node = helper.make_node("SequenceConstruct", names, ["y"])
    if arrays[0].dtype.kind in "OUS":
        constants = [_strings(n, a) for n, a in zip(names, arrays, strict=True)]
        info = helper.make_tensor_sequence_value_info("y", _STRING, None)
        return _evaluate(node, info, constants).get_outputs()[0]
    element = _element(name, arrays[0])
    feeds = [
        (helper.make_tensor_value_info(n, element, a.shape), to_ort(name, a))
        for n, a in zip(names, arrays, strict=True)
    ]
    return _evaluate(node, helper.make_tensor_sequence_value_info("y", element, None), [], feeds).get_outputs()[0]


def _evaluate(
    node: onnx.NodeProto,
    output: onnx.ValueInfoProto,
    constants: Sequence[onnx.TensorProto],
    feeds: Sequence[tuple[onnx.ValueInfoProto, Any]] = (),
) -> Any:
    """The binding of one run of a one-node model, which holds the output."""
    graph = helper.make_graph([node], "value", [info for info, _ in feeds], [output], list(constants))
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), session_options(), providers=PROVIDERS)
    binding = session.io_binding()
    for info, value in feeds:
        binding.bind_ortvalue_input(info.name, value)
    binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    return binding
