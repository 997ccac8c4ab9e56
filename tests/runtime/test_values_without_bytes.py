"""Strings and maps go through an executor as through a session of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx.helper import make_map_type_proto, make_node, make_opsetid, make_tensor_type_proto, make_value_info

from tensorstow.ir.errors import InputError

from ..planner.lowered_models import floats, random, write
from .lowered import executed, lowered_at, whole

ML: dict[str, Any] = {"opsets": [make_opsetid("ai.onnx.ml", 3)]}
TEXTS = np.array([["a", "bc"], ["", "ä"]], object)


def test_constants_of_text_may_be_outputs(tmp_path: Path) -> None:
    nodes = [
        make_node("Relu", ["x"], ["y"]),
        make_node("Identity", ["texts"], ["same"]),
        make_node("Reshape", ["texts", "four"], ["row"]),
    ]
    weights = {"texts": TEXTS, "four": np.array([4])}
    path = write(tmp_path / "m.onnx", nodes, [floats("x", 3)], ["texts", "y", "same", "row"], weights)
    lowered = lowered_at(path)
    assert lowered.program.blobs == ()
    inputs = {"x": random(3)}
    for found, expected in zip(executed(lowered, tmp_path, inputs, 2), whole(path, inputs, 2), strict=True):
        assert found["texts"].tolist() == found["same"].tolist() == TEXTS.tolist()
        assert found["row"].tolist() == TEXTS.reshape(-1).tolist()
        assert found["y"].tobytes() == expected["y"].tobytes()


def _classifier(path: Path, **labels: Any) -> Path:
    nodes = [make_node("Softmax", ["x"], ["p"]), make_node("ZipMap", ["p"], ["z"], domain="ai.onnx.ml", **labels)]
    return write(path, nodes, [floats("x", 2, 3)], ["z", "p"], {}, **ML)


@pytest.mark.parametrize("labels", [{"classlabels_strings": ["u", "v", "w"]}, {"classlabels_int64s": [3, 1, 7]}])
def test_the_maps_of_a_classifier_are_results(tmp_path: Path, labels: dict[str, Any]) -> None:
    path = _classifier(tmp_path / "m.onnx", **labels)
    inputs = {"x": random(2, 3)}
    for found, expected in zip(executed(lowered_at(path), tmp_path, inputs, 2), whole(path, inputs, 2), strict=True):
        assert found["z"] == expected["z"]
        assert found["p"].tobytes() == expected["p"].tobytes()
        assert [sorted(row) for row in found["z"]] == [sorted(next(iter(labels.values())))] * 2


def _vectorizer(path: Path) -> Path:
    nodes = [
        make_node("DictVectorizer", ["counts"], ["v"], domain="ai.onnx.ml", string_vocabulary=["u", "v", "w"]),
        make_node("Neg", ["v"], ["y"]),
    ]
    counts = make_map_type_proto(TensorProto.STRING, make_tensor_type_proto(TensorProto.FLOAT, []))
    return write(path, nodes, [make_value_info("counts", counts)], ["y"], {}, **ML)


def test_a_map_is_an_input(tmp_path: Path) -> None:
    path = _vectorizer(tmp_path / "m.onnx")
    inputs = {"counts": {"w": 3.0, "u": 1.0}}
    found, expected = executed(lowered_at(path), tmp_path, inputs)[0], whole(path, inputs)[0]
    assert found["y"].tolist() == expected["y"].tolist() == [[-1.0, -0.0, -3.0]]
    with pytest.raises(InputError, match="input 'counts' must be a dictionary or a list of them, got ndarray"):
        executed(lowered_at(path), tmp_path, {"counts": random(3)})
