"""Arrays of the user as bytes of the arena and back, numpy's names for every ONNX type."""

from __future__ import annotations

from math import prod
from typing import Any

import ml_dtypes  # gives numpy the names 'bfloat16', 'float8_e4m3fn', 'int4', ...
import numpy as np
from numpy.typing import NDArray

from ..ir.errors import InputError
from ..ir.graph import Tensor

Array = NDArray[Any]

# ONNX packs elements of less than a byte, the first in the lowest bits; numpy gives each a byte.
_PACKED_BITS = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}


def numpy_type(name: str) -> np.dtype[Any]:
    """The numpy type of `name`. Raises InputError where there is none."""
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError as error:
        raise InputError(f"'{name}' is no type of tensors that numpy knows; plan again") from error


def dense_nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of `shape` elements of `dtype`, packed as ONNX does."""
    if dtype in _PACKED_BITS:
        return -(-prod(shape) * _PACKED_BITS[dtype] // 8)
    return prod(shape) * numpy_type(dtype).itemsize


def check_input(name: str, tensor: Tensor, value: object) -> Array:
    """`value` as a contiguous array of the type and shape of `tensor`. Raises InputError: never converts silently."""
    if not isinstance(value, (np.ndarray, np.generic)):
        raise InputError(f"input '{name}' must be a numpy array, got {type(value).__name__}")
    array: Array = np.asarray(value)
    wanted = numpy_type(tensor.dtype)
    if array.dtype != wanted:
        raise InputError(
            f"input '{name}' must be {wanted.name}, got {array.dtype.name}; convert it with .astype, or with .view "
            "where it holds the same bits under another name"
        )
    if array.shape != tensor.shape:
        raise InputError(
            f"input '{name}' must have shape {list(tensor.shape or ())}, got {list(array.shape)}; the plan is for this "
            "shape: plan again with --dim for another"
        )
    return np.ascontiguousarray(array).reshape(array.shape)


def to_bytes(array: Array, tensor: Tensor) -> Array:
    """The elements of `array` as the bytes that kernels read."""
    bits = _PACKED_BITS.get(tensor.dtype)
    flat = array.reshape(-1)
    if bits is None:
        return flat.view(np.uint8)
    codes = flat.view(np.uint8) if array.dtype.name.startswith("float") else flat.astype(np.int8).view(np.uint8)
    each = 8 // bits
    padded = np.zeros(-(-len(codes) // each) * each, np.uint8)
    padded[: len(codes)] = codes & ((1 << bits) - 1)
    lanes = padded.reshape(-1, each) << (np.arange(each, dtype=np.uint8) * np.uint8(bits))
    return np.bitwise_or.reduce(lanes, axis=1).astype(np.uint8)


def from_bytes(content: Array, tensor: Tensor) -> Array:
    """A new array of `tensor` from the bytes that kernels wrote."""
    kind = numpy_type(tensor.dtype)
    assert tensor.shape is not None
    bits = _PACKED_BITS.get(tensor.dtype)
    if bits is None:
        return content.copy().view(kind).reshape(tensor.shape)
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    codes = ((content[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.uint8).reshape(-1)[: prod(tensor.shape)]
    if tensor.dtype.startswith("float"):
        return codes.view(kind).reshape(tensor.shape)
    if tensor.dtype.startswith("int"):
        sign = 1 << (bits - 1)
        codes = ((codes ^ sign).astype(np.int8) - np.int8(sign)).astype(np.int8)
    return codes.astype(kind).reshape(tensor.shape)
