"""Tests of runtime/values.py: arrays as ONNX's bytes and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Tensor
from tensorstow.runtime.values import check_input, dense_nbytes, from_bytes, numpy_type, to_bytes

TYPES = ("float32", "float16", "bool", "int64", "uint8", "complex64", "bfloat16", "float8_e4m3fn", "float8_e5m2")
PACKED = ("int4", "uint4", "float4_e2m1fn", "int2", "uint2")


def _tensor(dtype: str, count: int) -> Tensor:
    return Tensor("t", dtype, (count,), "s", dense_nbytes(dtype, (count,)))


@given(st.sampled_from(TYPES + PACKED), st.integers(0, 33), st.integers(0, 2**32 - 1))
def test_bytes_and_arrays_are_the_same_to_the_bit(dtype: str, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tensor = _tensor(dtype, count)
    array = random.integers(0, 2, count).astype(numpy_type(dtype))
    content = to_bytes(array, tensor)
    assert content.dtype == np.uint8
    assert len(content) == tensor.nbytes
    back = from_bytes(content, tensor)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", ["int4", "uint4", "float4_e2m1fn"])
def test_packing_is_that_of_onnx(dtype: str) -> None:
    array = np.array([-8, -1, 0, 1, 7] if dtype == "int4" else [0, 1, 2, 3, 6]).astype(getattr(ml_dtypes, dtype))
    packed = numpy_helper.from_array(array).raw_data
    tensor = _tensor(dtype, len(array))
    assert to_bytes(array, tensor).tobytes() == packed
    assert from_bytes(np.frombuffer(packed, np.uint8), tensor).tolist() == array.tolist()
    assert onnx.TensorProto.DataType.Value("INT4") == 22


def test_inputs_are_never_converted_silently() -> None:
    tensor = _tensor("float32", 3)
    with pytest.raises(InputError, match="must be float32, got float64"):
        check_input("x", tensor, np.zeros(3))
    with pytest.raises(InputError, match=r"must have shape \[3\], got \[4\]"):
        check_input("x", tensor, np.zeros(4, np.float32))
    with pytest.raises(InputError, match="must be a numpy array, got list"):
        check_input("x", tensor, [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="no type"):
        numpy_type("float7")
