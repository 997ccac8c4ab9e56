"""The readers of what comes from outside, with a good file for each, from which mutants are made."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from onnx.numpy_helper import from_array

from tensorstow.execute import read_inputs
from tensorstow.executors import read_runnable
from tensorstow.ir.codec import digest
from tensorstow.ir.files import read_plan
from tensorstow.planner.experts.trace import read_trace
from tensorstow.planner.onnx.lift import lift
from tensorstow.planner.onnx.load import load_model, tensor_bytes, tensors_of
from tensorstow.planner.pytorch.safetensors_header import read_header
from tests.fuzz.mutate import mutated_bytes, mutated_json


@dataclass(frozen=True)
class Reader:
    """`good` makes the content of a file that `read` takes, and `beside` what it needs beside it; `mutant` changes the
    content."""

    suffix: str
    read: Callable[[Path], object]
    good: Callable[[], bytes]
    mutant: Callable[[np.random.Generator, bytes], bytes]
    beside: Callable[[Path], object] = lambda path: None


def _onnx() -> bytes:
    """Weights inside and beside, a sparse one, a constant, a nested graph, a filled tensor: every way to lie."""
    beside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.data"), ("offset", "0"), ("length", str(64 * 64 * 4))):
        beside.external_data.add(key=key, value=value)
    inside = from_array(np.arange(4096, dtype=np.float32).reshape(64, 64), "v")
    shape = make_tensor("shape", TensorProto.INT64, [2], [64, 64])
    typed = make_tensor("t", TensorProto.FLOAT, [64], [0.5] * 64)
    branch = make_graph(
        [make_node("Add", ["h", "c"], ["o"])],
        "b",
        [],
        [make_tensor_value_info("o", TensorProto.FLOAT, [2, 64])],
        [from_array(np.ones(64, np.float32), "c")],
    )
    nodes = [
        make_node("MatMul", ["x", "w"], ["a"]),
        make_node("MatMul", ["a", "v"], ["h"]),
        make_node("ConstantOfShape", ["shape"], ["f"], value=make_tensor("one", TensorProto.FLOAT, [1], [1.0])),
        make_node("MatMul", ["h", "f"], ["g"]),
        make_node("Constant", [], ["k"], value=make_tensor("yes", TensorProto.BOOL, [], [True])),
        make_node("If", ["k"], ["i"], then_branch=branch, else_branch=branch),
        make_node("Add", ["g", "i"], ["s"]),
        make_node("Add", ["s", "t"], ["y"]),
    ]
    graph = make_graph(
        nodes,
        "g",
        [make_tensor_value_info("x", TensorProto.FLOAT, [2, 64])],
        [make_tensor_value_info("y", TensorProto.FLOAT, [2, 64])],
        [beside, inside, shape, typed],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8).SerializeToString()


def _write_data(path: Path) -> None:
    path.with_name("weights.data").write_bytes(np.zeros((64, 64), np.float32).tobytes())


def _read_onnx(path: Path) -> object:
    """As planning does before ONNX Runtime sees the model; the data of every small tensor is looked at, too."""
    model = load_model(path)
    for tensor in tensors_of(model.proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor_bytes(tensor, model.folder)
    return lift(model)


def _arrays(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _inputs() -> bytes:
    return _arrays(x=np.ones((2, 8), np.float32), y=np.arange(5), z=np.array(["a", "bc"]))


def _packed_trace() -> bytes:
    ids = np.array([[[0, 1], [2, 3]], [[4, 1], [2, 0]]], np.uint8)
    file = io.BytesIO()
    np.savez_compressed(
        file,
        allow_pickle=False,
        experts=ids,
        offsets=np.array([0, 1, 2]),
        dataset=np.array(["a", "b"]),
        gates=np.ones(ids.shape, np.float32),
        expert_nbytes=np.ones((2, 8), np.int64),
    )
    return file.getvalue()


def _safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(32)


def _mutated_header(rng: np.random.Generator, content: bytes) -> bytes:
    """Half of the time the JSON is changed as JSON, its length told right."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    text = json.dumps(mutated_json(rng, json.loads(content[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _mutated_plan(rng: np.random.Generator, content: bytes) -> bytes:
    """Mostly the body is changed, and every digest made anew, as who forges a plan would."""
    if rng.random() < 0.25:
        return mutated_bytes(rng, content)
    document = json.loads(content)
    body = mutated_json(rng, document["body"])
    return forged(body)


def forged(body: Any) -> bytes:
    """A plan file of this body whose digests are right, where it has the places for them."""
    if isinstance(body, dict) and isinstance(body.get("plan"), dict):
        for part in ("graph", "machine"):
            if part in body:
                body["plan"][part] = digest(body[part])
    return json.dumps({"schema": "tensorstow-plan/1", "digest": digest(body), "body": body}).encode()


def _read_plan(path: Path) -> object:
    """As `show` and `run` do, up to where a run would touch memory or disk."""
    str(read_plan(path))
    return read_runnable(path)


def _plan() -> bytes:
    """A plan of a small model with its program."""
    from tensorstow.ir.codec import dumps, to_json
    from tests.faults.subject import shared_subject

    file = shared_subject().file
    assert file.program is not None
    body = to_json(file)
    body["program"]["models"] = dict.fromkeys(body["program"]["models"], "")  # long, and nobody looks at them
    return forged(json.loads(dumps(body)))


READERS: dict[str, Reader] = {
    "plan": Reader(".json", _read_plan, _plan, _mutated_plan),
    "onnx": Reader(".onnx", _read_onnx, _onnx, mutated_bytes, _write_data),
    "inputs": Reader(".npz", read_inputs, _inputs, mutated_bytes),
    "trace": Reader(".npz", lambda path: read_trace(path, 8), _packed_trace, mutated_bytes),
    "safetensors": Reader(".safetensors", read_header, _safetensors, _mutated_header),
}
"""By name."""
