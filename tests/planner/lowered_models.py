"""Small models to lower, and what the lowered ones must compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.helper import (
    make_graph,
    make_model,
    make_opsetid,
    make_tensor_value_info,
)
from onnx.numpy_helper import from_array

from tensorstow.planner.onnx import Lowered, lower_onnx
from tensorstow.planner.onnx.session import open_session, options
from tests.reference import run_lowered

F32, I64 = TensorProto.FLOAT, TensorProto.INT64


def whole(path: Path, inputs: Mapping[str, Any]) -> list[Any]:
    """The outputs of the whole model, optimised by ONNX Runtime without prepacking."""
    made = options(optimise=True)
    made.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return list(open_session(path.read_bytes(), made).run(None, dict(inputs)))


def check(path: Path, inputs: Mapping[str, Any], cache: Path, *, bits: bool = True) -> Lowered:
    """Lower, run operator by operator, compare with the whole model."""
    lowered = lower_onnx(path, cache=cache)
    for found, expected in zip(run_lowered(lowered, inputs), whole(path, inputs), strict=True):
        assert found.shape == expected.shape
        if bits:
            assert found.tobytes() == expected.tobytes()
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return lowered


def write(
    path: Path, nodes: list[Any], inputs: list[Any], outputs: list[str], weights: Mapping[str, Any], **more: Any
) -> Path:
    """A model of opset 17 whose outputs have no declared type."""
    graph = make_graph(
        nodes,
        "g",
        inputs,
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [from_array(v, n) for n, v in weights.items()],
    )
    made = make_model(graph, opset_imports=[make_opsetid("", 17), *more.pop("opsets", [])], ir_version=8, **more)
    path.write_bytes(made.SerializeToString())
    return path


def floats(name: str, *shape: int | str) -> Any:
    return make_tensor_value_info(name, F32, list(shape))


def random(*shape: int) -> Any:
    return np.random.default_rng(7).standard_normal(shape, np.float32)
