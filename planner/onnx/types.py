"""ONNX's types in our words: dtype names as numpy has them, bytes as ONNX Runtime lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, cast

import onnx
from onnx import TensorProto, TypeProto

OPAQUE = "opaque"

_BITS = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    # Two-bit types are newer than the oldest onnx that we accept.
    getattr(TensorProto, "INT2", -1): 2,
    getattr(TensorProto, "UINT2", -2): 2,
}


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value: `elem_type` (a TensorProto.DataType, 0 for what is no dense tensor) and its shape.

    `type_text` is ONNX Runtime's name of the type, such as 'tensor(float)'. `shape` is None where no plan can know it.
    """

    elem_type: int
    shape: tuple[int, ...] | None
    type_text: str

    @property
    def planned(self) -> bool:
        """Whether the value has an address: a dense tensor of fixed shape and no strings."""
        return self.shape is not None and self.elem_type not in (TensorProto.UNDEFINED, TensorProto.STRING)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor, 0 for what has no address."""
        return tensor_nbytes(self.elem_type, self.shape) if self.planned and self.shape is not None else 0

    @property
    def dtype(self) -> str:
        """numpy's name of the element type, 'opaque' for what has none."""
        return dtype_name(self.elem_type)


@cache
def dtype_name(elem_type: int) -> str:
    """numpy's (or ml_dtypes') name of a TensorProto.DataType, 'opaque' for strings and what is no tensor."""
    if elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return OPAQUE
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)


@cache
def element_bits(elem_type: int) -> int:
    """Bits of one element in a dense tensor."""
    return _BITS.get(elem_type) or 8 * int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def tensor_nbytes(elem_type: int, shape: tuple[int, ...]) -> int:
    """Bytes of a dense tensor; four-bit elements are packed."""
    return -(-prod(shape) * element_bits(elem_type) // 8)


def tensor_value(elem_type: int, shape: tuple[int, ...] | None) -> Value:
    """A dense tensor of this element type and shape."""
    name = TensorProto.DataType.Name(cast(Any, elem_type)).lower()
    return Value(elem_type, shape, f"tensor({name})")


def value_of_type(proto: TypeProto) -> Value:
    """The value that a TypeProto describes; unset or negative dimensions make the shape unknown."""
    if proto.WhichOneof("value") != "tensor_type":
        return Value(TensorProto.UNDEFINED, None, _text(proto))
    tensor = proto.tensor_type
    dims = tensor.shape.dim
    fixed = tensor.HasField("shape") and all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims)
    return tensor_value(tensor.elem_type, tuple(d.dim_value for d in dims) if fixed else None)


def type_of_value(value: Value) -> TypeProto:
    """The TypeProto with which a kernel model declares the value."""
    if value.elem_type:
        return onnx.helper.make_tensor_type_proto(value.elem_type, value.shape)
    return _parse(value.type_text)


def value_of_runtime(text: str, dims: Sequence[int | str | None]) -> Value:
    """The value that ONNX Runtime describes by type name and dimensions; an unknown rank looks like a scalar's."""
    proto = _parse(text)
    if proto.WhichOneof("value") != "tensor_type":
        return Value(TensorProto.UNDEFINED, None, text)
    fixed = tuple(d for d in dims if isinstance(d, int) and d >= 0)
    return tensor_value(proto.tensor_type.elem_type, fixed if len(fixed) == len(dims) else None)


def _text(proto: TypeProto) -> str:
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return tensor_value(proto.tensor_type.elem_type, None).type_text
    if kind == "sparse_tensor_type":
        return f"sparse_{tensor_value(proto.sparse_tensor_type.elem_type, None).type_text}"
    if kind == "sequence_type":
        return f"seq({_text(proto.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({_text(proto.optional_type.elem_type)})"
    if kind == "map_type":
        key = TensorProto.DataType.Name(cast(Any, proto.map_type.key_type)).lower()
        return f"map({key},{_text(proto.map_type.value_type)})"
    return ""


def _parse(text: str) -> TypeProto:
    head, _, rest = text.partition("(")
    inner = rest[:-1]
    if head == "tensor":
        return onnx.helper.make_tensor_type_proto(_elem_type(inner), None)
    if head == "sparse_tensor":
        return onnx.helper.make_sparse_tensor_type_proto(_elem_type(inner), None)
    if head == "seq":
        return onnx.helper.make_sequence_type_proto(_parse(inner))
    if head == "optional":
        return onnx.helper.make_optional_type_proto(_parse(inner))
    if head == "map":
        key, _, value = inner.partition(",")
        return onnx.helper.make_map_type_proto(cast(Any, _elem_type(key)), _parse(value))
    return TypeProto()


def _elem_type(name: str) -> int:
    return int(TensorProto.DataType.Value(name.upper()))
