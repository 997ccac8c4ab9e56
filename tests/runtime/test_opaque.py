"""Values outside the plan keep their type, their shape and their bits on the way to Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tensorstow.runtime.kernels import PROVIDERS, session_options, use_threads
from tensorstow.runtime.opaque import to_ort, to_python
from tensorstow.runtime.values import numpy_type


def cast_to(element: int, values: Any) -> Any:
    """The OrtValue that ONNX Runtime's Cast makes of floats."""
    use_threads(None)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=element)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", element, None)],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session: Any = ort.InferenceSession(model.SerializeToString(), session_options(), providers=PROVIDERS)
    return session.run_with_ort_values(None, {"x": ort.OrtValue.ortvalue_from_numpy(values)})[0]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int4", "uint4", "bool"])
@pytest.mark.parametrize("shape", [(3,), (), (2, 0), (2, 3)])
def test_dense_values_come_as_they_are(name: str, shape: tuple[int, ...]) -> None:
    element = int(helper.np_dtype_to_tensor_dtype(numpy_type(name)))
    values = np.ones(shape, np.float32)
    found = to_python(cast_to(element, values))
    assert (found.dtype, found.shape) == (numpy_type(name), shape)
    assert found.tobytes() == values.astype(numpy_type(name)).tobytes()


def test_strings_and_none_come_back() -> None:
    use_threads(None)
    texts = np.array([["a", "bc"]], dtype=object)
    assert to_python(to_ort("x", texts)).tolist() == texts.tolist()
    assert to_python(None) is None
