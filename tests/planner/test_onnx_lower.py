"""Lowered models compute what the whole model computes; views, constants, copies and names come out as promised."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import (
    make_graph,
    make_node,
    make_tensor_value_info,
)
from onnx.numpy_helper import from_array

from tensorstow.ir.graph import StorageKind
from tensorstow.planner.onnx import lower_onnx
from tests.models import light_models, write_cnn, write_gpt, write_mlp
from tests.reference import run_lowered

from .lowered_models import I64, check, floats, random, write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("batch", [1, 2])
def test_cnn_computes_the_bits_of_the_whole_model(tmp_path: Path, cache: Path, batch: int) -> None:
    path = write_cnn(tmp_path / "cnn.onnx", batch=batch)
    check(path, {"image": random(batch, 3, 32, 32)}, cache)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_gpt_computes_the_bits_of_the_whole_model(tmp_path: Path, cache: Path, tied: bool, external: bool) -> None:
    path = write_gpt(
        tmp_path / "gpt.onnx", layers=2, width=256, heads=4, vocabulary=1000, sequence=8, tied=tied, external=external
    )
    lowered = check(path, {"tokens": np.arange(8, dtype=np.int64)[None]}, cache)
    assert {b.blob for b in lowered.program.blobs if b.transposed} >= {"h0.attn.q.weight", "h1.mlp.down.weight"}
    # A table that is also the last matrix lies as the table wants it, which is how a product wants it too.
    assert not lowered.program.blob["wte"].transposed
    assert next(o for o in lowered.graph.operators if "wte" in o.inputs).op_type == "Gather"
    assert sum("wte" in o.inputs for o in lowered.graph.operators) == (2 if tied else 1)


def test_one_row_of_a_product_agrees_within_rounding(tmp_path: Path, cache: Path) -> None:
    path = write_mlp(tmp_path / "mlp.onnx", width=256, layers=3)
    lowered = check(path, {"x": random(1, 256)}, cache, bits=False)
    assert [o.op_type for o in lowered.graph.operators] == ["FusedGemm", "FusedGemm", "Gemm"]


@pytest.mark.parametrize("name", sorted(light_models()))
def test_light_networks_lower_the_same_twice(tmp_path: Path, name: str) -> None:
    path = light_models()[name]
    first = lower_onnx(path, cache=tmp_path)
    assert lower_onnx(path, cache=tmp_path) == first
    assert all(t.storage is not None for t in first.graph.tensors)
    assert [b.blob for b in first.program.blobs] == [
        s.blob for s in first.graph.storages if s.kind is StorageKind.WEIGHT
    ]
    for op in first.graph.operators:
        model = onnx.ModelProto.FromString(first.program.models[first.program.kernels[op.id]])
        assert len(model.graph.input) == len(op.inputs)
        assert len(model.graph.output) == len(op.outputs)


def test_light_squeezenet_computes_the_bits_of_the_whole_model(tmp_path: Path) -> None:
    check(light_models()["squeezenet"], {"data_0": random(1, 3, 224, 224)}, tmp_path)


def test_large_filled_weights_are_never_made(tmp_path: Path) -> None:
    lowered = lower_onnx(light_models()["vgg19"], cache=tmp_path)
    blob = lowered.program.blob["fc6_w_0"]
    assert blob.fill is not None
    assert blob.path is None
    assert blob.nbytes == 4096 * 25088 * 4
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < blob.nbytes


def test_a_lowering_made_anew_is_the_same(tmp_path: Path, cache: Path) -> None:
    path = write_cnn(tmp_path / "cnn.onnx")
    first = lower_onnx(path, cache=cache)
    shutil.rmtree(cache)
    assert lower_onnx(path, cache=cache) == first


def test_views_cost_nothing(tmp_path: Path, cache: Path) -> None:
    nodes = [
        make_node("Relu", ["x"], ["a"]),
        make_node("Reshape", ["a", "shape"], ["b"]),
        make_node("Transpose", ["b"], ["c"], perm=[1, 0, 2]),
        make_node("Unsqueeze", ["c", "axis"], ["d"]),
        make_node("Flatten", ["d"], ["e"]),
        make_node("Softmax", ["e"], ["y"]),
    ]
    weights = {"shape": np.array([1, 4, 6]), "axis": np.array([0])}
    lowered = check(write(tmp_path / "m.onnx", nodes, [floats("x", 4, 6)], ["y"], weights), {"x": random(4, 6)}, cache)
    assert [o.op_type for o in lowered.graph.operators] == ["Relu", "Softmax"]
    assert {lowered.graph.tensor[t].storage for t in "ae"} == {"a"}


def test_outputs_have_bytes_of_their_own(tmp_path: Path, cache: Path) -> None:
    nodes = [
        make_node("Reshape", ["x", "shape"], ["of_input"]),
        make_node("Relu", ["x"], ["y"]),
        make_node("Reshape", ["y", "shape"], ["of_output"]),
        make_node("Identity", ["x"], ["same"]),
        make_node("Identity", ["w"], ["weight"]),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        [floats("x", 4, 6)],
        ["of_input", "y", "of_output", "same", "weight"],
        {"shape": np.array([6, 4]), "w": random(300)},
    )
    lowered = check(path, {"x": random(4, 6)}, cache)
    assert lowered.program.output_names == ("of_input", "y", "of_output", "same", "weight")
    of_input, y, of_output, same, weight = (lowered.graph.tensor[t].storage for t in lowered.graph.outputs)
    assert y == of_output
    assert len({of_input, y, same, weight, "x"}) == 5
    assert all(lowered.graph.storage[s or ""].kind is StorageKind.OUTPUT for s in (of_input, y, same, weight))


def test_unused_and_absent_operands(tmp_path: Path, cache: Path) -> None:
    nodes = [
        make_node("TopK", ["x", "k"], ["values", "unused"]),
        make_node("Clip", ["values", "", "most"], ["y"]),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        [floats("x", 3, 9), floats("ignored", 2)],
        ["y"],
        {"k": np.array([4]), "most": np.float32(0.5)},
    )
    lowered = check(path, {"x": random(3, 9), "ignored": random(2)}, cache)
    assert lowered.graph.inputs == ("x", "ignored")
    assert lowered.graph.tensor["unused"].storage == "unused"
    assert [len(o.inputs) for o in lowered.graph.operators] == [1, 1]


def test_nested_graphs_are_one_operator_with_captured_inputs(tmp_path: Path, cache: Path) -> None:
    then = make_graph([make_node("MatMul", ["x", "w"], ["i0"])], "then", [], [floats("i0", 4, 64)])
    other = make_graph(
        [make_node("Add", ["x", "big"], ["o"])], "other", [], [floats("o", 4, 64)], [from_array(random(64), "big")]
    )
    nodes = [
        make_node("Relu", ["a"], ["x"]),
        make_node("If", ["condition"], ["r"], then_branch=then, else_branch=other),
        make_node("Neg", ["r"], ["y"]),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        [make_tensor_value_info("condition", TensorProto.BOOL, []), floats("a", 4, 64)],
        ["y"],
        {"w": random(64, 64)},
    )
    for condition in (True, False):
        lowered = check(path, {"condition": np.array(condition), "a": random(4, 64)}, cache)
        assert {o.op_type: o.inputs for o in lowered.graph.operators}["If"] == ("condition", "x", "w")


def test_what_no_plan_can_know_lives_outside(tmp_path: Path, cache: Path) -> None:
    nodes = [
        make_node("NonZero", ["x"], ["where"]),
        make_node("Shape", ["where"], ["found"]),
        make_node("Reshape", ["found", "two"], ["y"]),
        make_node("Relu", ["x"], ["z"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, [floats("x", 5)], ["y", "where", "z"], {"two": np.array([2])})
    lowered = lower_onnx(path, cache=cache)
    x = np.array([0, 1, 0, 2, 3], np.float32)
    y, where, z = run_lowered(lowered, {"x": x})
    assert np.array_equal(y, [1, 3])
    assert np.array_equal(where.numpy(), [[1, 3, 4]])
    assert np.array_equal(z, x)
    assert lowered.graph.tensor["where"].shape is None
    assert lowered.graph.tensor["where"].storage is None


def test_empty_tensors(tmp_path: Path, cache: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        [make_node("Concat", ["x", "w"], ["a"], axis=0), make_node("Relu", ["a"], ["y"])],
        [floats("x", "n", 64)],
        ["y"],
        {"w": np.zeros((0, 64), np.float32)},
    )
    lowered = lower_onnx(path, dims={"n": 0}, cache=cache)
    assert run_lowered(lowered, {"x": random(0, 64)})[0].shape == (0, 64)


def test_products_see_more_than_two_dimensions_as_two(tmp_path: Path, cache: Path) -> None:
    path = write(
        tmp_path / "m.onnx",
        [make_node("MatMul", ["x", "w"], ["y"], name="cube"), make_node("MatMul", ["v", "w"], ["z"])],
        [floats("x", 2, 3, 128), floats("v", 128)],
        ["y", "z"],
        {"w": random(128, 256)},
    )
    lowered = check(path, {"x": random(2, 3, 128), "v": random(128)}, cache, bits=False)
    first = onnx.ModelProto.FromString(lowered.program.models[lowered.program.kernels["cube"]])
    assert [d.dim_value for d in first.graph.input[0].type.tensor_type.shape.dim] == [6, 128]
    assert lowered.graph.tensor["y"].shape == (2, 3, 256)


def test_a_weight_that_is_used_both_ways_round(tmp_path: Path, cache: Path) -> None:
    nodes = [
        make_node("MatMul", ["x", "w"], ["a"]),
        make_node("Gemm", ["a", "w"], ["b"], transB=1),
        make_node("Gather", ["w", "rows"], ["c"]),
        make_node("MatMul", ["b", "u"], ["d"]),
        make_node("Transpose", ["u"], ["t"], perm=[1, 0]),
        make_node("MatMul", ["d", "t"], ["e"]),
    ]
    path = write(
        tmp_path / "m.onnx",
        nodes,
        [floats("x", 3, 128), make_tensor_value_info("rows", I64, [2])],
        ["b", "c", "e"],
        {"w": random(128, 256), "u": random(128, 192)},
    )
    lowered = check(path, {"x": random(3, 128), "rows": np.array([5, 3])}, cache, bits=False)
    assert not lowered.program.blob["w"].transposed
    assert lowered.program.blob["u"].transposed
    assert "Transpose" not in {o.op_type for o in lowered.graph.operators}


def test_names_are_unique_and_readable(tmp_path: Path, cache: Path) -> None:
    nodes = [
        make_node("Relu", ["x"], ["a"], name="same"),
        make_node("Softmax", ["a"], ["b"], name="Sin_3"),
        make_node("Sin", ["b"], ["same"]),
        make_node("Identity", ["x"], ["x:copy"], name="copy x"),
    ]
    path = write(tmp_path / "m.onnx", nodes, [floats("x", 4)], ["same", "x:copy"], {})
    lowered = check(path, {"x": random(4)}, cache)
    ids = [o.id for o in lowered.graph.operators]
    assert ids == ["copy x", "same", "Sin_3", "Sin_3#2"]
    assert len(set(ids)) == len(ids) == len(lowered.program.kernels)


def test_operators_of_equal_form_share_a_kernel(tmp_path: Path, cache: Path) -> None:
    path = write_mlp(tmp_path / "mlp.onnx", width=128, layers=6)
    program = lower_onnx(path, cache=cache).program
    assert len(program.kernels) == 6
    assert len(program.models) == 2
