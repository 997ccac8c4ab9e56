"""Models that cannot be used give one clear error; what can be used is not read more than is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from onnx.numpy_helper import from_array, to_array

from tensorstow.ir.errors import InputError
from tensorstow.planner.onnx import lower_onnx, model_source
from tensorstow.planner.onnx.load import load_model, source_of, tensor_bytes
from tests.models import write_cnn, write_mlp

F32 = TensorProto.FLOAT


def external_model(path: Path, location: str, *, offset: int | None = None, length: int | None = None) -> Path:
    """y = x @ w, w float32 [128, 256] (131072 bytes) as external data with these entries."""
    w = TensorProto(name="w", data_type=F32, dims=[128, 256], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            w.external_data.add(key=key, value=str(value))
    graph = make_graph(
        [make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [make_tensor_value_info("x", F32, [2, 128])],
        [make_tensor_value_info("y", F32, [2, 256])],
        [w],
    )
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"not a model at all, but text",
        b"\x08\x08",
        bytes(i * i % 251 for i in range(4096)),
        b"\x3a\xff\xff\xff\xff\x0f",
    ],
    ids=["empty", "zeros", "text", "no graph", "noise", "length beyond the end"],
)
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="ONNX"):
        lower_onnx(path, cache=tmp_path / "cache")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            lower_onnx(path, cache=tmp_path / "cache")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_truncated_models(tmp_path: Path, share: float) -> None:
    whole = (tmp_path / "whole.onnx").read_bytes() if (tmp_path / "whole.onnx").exists() else None
    if whole is None:
        whole = write_cnn(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError):
        load_model(tmp_path / "cut.onnx")


def test_unknown_operator_and_broken_graph(tmp_path: Path) -> None:
    x, y = make_tensor_value_info("x", F32, [2]), make_tensor_value_info("y", F32, [2])
    for nodes, words in (
        ([make_node("NoSuchOperator", ["x"], ["y"])], "NoSuchOperator"),
        ([make_node("Relu", ["absent"], ["y"])], "absent"),
        ([make_node("Relu", ["x"], ["y"]), make_node("Neg", ["x"], ["y"])], "'y' is defined twice"),
    ):
        path = tmp_path / "m.onnx"
        model = make_model(make_graph(nodes, "g", [x], [y]), opset_imports=[make_opsetid("", 17)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match=words):
            lower_onnx(path, cache=tmp_path / "cache")
        assert not list((tmp_path / "cache" / "onnx").glob("*/model.onnx") if (tmp_path / "cache").exists() else [])


@pytest.mark.parametrize("location", ["/etc/passwd", "../../etc/passwd", "a/../../b", "", "link", "folder"])
def test_external_data_must_stay_in_the_folder(tmp_path: Path, location: str) -> None:
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(bytes(131072))
    (home / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="external data"):
        lower_onnx(external_model(home / "m.onnx", location), cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("size", "offset", "length", "words"),
    [
        (None, None, None, "missing"),
        (131071, None, None, "131071 bytes"),
        (131072, 4, None, "ends at byte 131076"),
        (131072, None, 1024, "needs 131072 bytes"),
        (1 << 20, 1 << 60, 131072, "ends at byte"),
        (1 << 20, -4, 131072, "no number of bytes"),
    ],
)
def test_external_data_of_the_wrong_size(
    tmp_path: Path, size: int | None, offset: int | None, length: int | None, words: str
) -> None:
    if size is not None:
        (tmp_path / "w.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match=words):
        lower_onnx(external_model(tmp_path / "m.onnx", "w.bin", offset=offset, length=length), cache=tmp_path)


def test_dims_errors_list_what_is_missing(tmp_path: Path) -> None:
    x = make_tensor_value_info("x", F32, ["batch", None, 4])
    z = make_tensor_value_info("z", F32, ["other", -1])
    nodes = [make_node("Relu", ["x"], ["y"]), make_node("Relu", ["z"], ["w"])]
    outputs = [make_tensor_value_info(n, F32, None) for n in "yw"]
    path = tmp_path / "m.onnx"
    onnx.save(make_model(make_graph(nodes, "g", [x, z], outputs), ir_version=8), path)
    with pytest.raises(InputError, match=r"--dim batch=N --dim x\.1=N --dim other=N --dim z\.1=N"):
        lower_onnx(path, cache=tmp_path)
    for dims, words in (
        ({"batch": 1, "nope": 2}, "no symbolic dimension 'nope'"),
        ({"batch": -1}, "whole number"),
        ({"batch": float("nan")}, "whole number"),
        ({"batch": 1 << 63}, f"up to {(1 << 63) - 1}"),
    ):
        with pytest.raises(InputError, match=words):
            lower_onnx(path, dims=dims, cache=tmp_path)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("kind", "entries", "wanted"),
    [
        (TensorProto.INT64, {"int64_data": [3]}, "needs 2 entries of int64_data, has 1"),
        (TensorProto.INT64, {"int64_data": [3, 4, 5]}, "has 3"),
        (TensorProto.INT64, {}, "has 0"),
        (TensorProto.FLOAT, {"int32_data": [3, 4]}, "needs 2 entries of float_data, has 0"),
        (TensorProto.FLOAT16, {"int32_data": [3]}, "needs 2 entries of int32_data, has 1"),
        (TensorProto.INT4, {"int32_data": [3, 4]}, "needs 1 entries of int32_data, has 2"),
        (TensorProto.COMPLEX64, {"float_data": [1.0, 2.0]}, "needs 4 entries of float_data, has 2"),
    ],
)
def test_typed_data_of_the_wrong_length(kind: int, entries: dict[str, list[Any]], wanted: str, tmp_path: Path) -> None:
    shape = TensorProto(name="shape", data_type=kind, dims=[2])
    for field, values in entries.items():
        getattr(shape, field).extend(values)
    node = make_node("ConstantOfShape", ["shape"], ["y"])
    graph = make_graph([node], "g", [], [make_tensor_value_info("y", F32, None)], [shape])
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8).SerializeToString())
    with pytest.raises(InputError, match=f"tensor 'shape' of shape .*{wanted}"):
        load_model(path)


def test_typed_data_of_the_right_length(tmp_path: Path) -> None:
    """Every element type, as the ONNX library writes it without raw data; scalars and nothing at all, too."""
    kinds = [k for k in TensorProto.DataType.values() if k not in (TensorProto.UNDEFINED, TensorProto.STRING)]
    tensors = [
        make_tensor(f"t{k}_{len(dims)}_{count}", k, dims, [1] * count)
        for k in kinds
        for dims, count in (([], 1), ([0], 0), ([3], 3), ([2, 2], 4))
    ]
    assert not any(t.HasField("raw_data") for t in tensors)
    graph = make_graph([make_node("Relu", ["x"], ["y"])], "g", [make_tensor_value_info("x", F32, [1])],
        [make_tensor_value_info("y", F32, [1])], tensors)  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert len(load_model(path).proto.graph.initializer) == len(tensors)


def test_embedded_weights_are_found_in_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = from_array(rng.standard_normal((300, 7), np.float32), "raw")
    typed = make_tensor("typed", F32, [300], rng.standard_normal(300, np.float32).tolist())
    double = make_tensor("double", TensorProto.DOUBLE, [300], rng.standard_normal(300).tolist())
    integers = make_tensor("integers", TensorProto.INT64, [300], list(range(300)))
    small = from_array(np.arange(3), "small")
    tensors = [raw, typed, double, integers, small]
    path = tmp_path / "m.onnx"
    onnx.save(make_model(make_graph([make_node("Identity", ["raw"], ["y"])], "g", [], [], tensors)), path)
    loaded = load_model(path)
    assert len(loaded.proto.SerializeToString()) < 3000
    found = {t.name: t for t in loaded.proto.graph.initializer}
    assert {n for n, t in found.items() if source_of(t, tmp_path) is not None} == {"raw", "typed", "double"}
    for tensor in tensors:
        assert tensor_bytes(found[tensor.name], tmp_path) == to_array(tensor).tobytes()
    assert loaded.files == ()


def test_model_source_names_every_file(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "mlp.onnx", width=256, layers=1)
    source = model_source(path, {"n": 1})
    assert [(Path(f.path).name, f.nbytes) for f in source.files] == [
        ("mlp.onnx", path.stat().st_size),
        ("mlp.onnx.data", (tmp_path / "mlp.onnx.data").stat().st_size),
    ]
    assert source.dims == {"n": 1}


def test_a_broken_cache_entry_is_made_again(tmp_path: Path) -> None:
    path = write_cnn(tmp_path / "cnn.onnx")
    cache = tmp_path / "cache"
    first = lower_onnx(path, cache=cache)
    weights = next(cache.rglob("weights.bin"))
    size = weights.stat().st_size
    for damage in (lambda: os.truncate(weights, size - 1), lambda: (weights.parent / "sizes.json").unlink()):
        damage()
        assert lower_onnx(path, cache=cache) == first
        assert weights.stat().st_size == size
    assert [p.name for p in (cache / "onnx").iterdir() if p.name.startswith(".")] == []


def in_process(code: str, *arguments: object) -> str:
    """Standard output of a Python process of its own: what limits it must not limit us."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    path = write_cnn(tmp_path / "cnn.onnx")
    code = """
import resource, sys
from pathlib import Path
from tensorstow.ir.errors import ExecutionError
from tensorstow.planner.onnx import lower_onnx
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    lower_onnx(Path(sys.argv[1]), cache=Path(sys.argv[2]))
except ExecutionError as error:
    print(error)
"""
    said = in_process(code, path, tmp_path / "cache")
    assert "cannot be written" in said
    assert "TENSORSTOW_CACHE" in said
    assert [f for f in (tmp_path / "cache" / "onnx").rglob("*") if f.is_file()] == []


def test_a_model_of_six_gigabytes_is_not_read(tmp_path: Path) -> None:
    width = 16384
    path = tmp_path / "big.onnx"
    weights = []
    for i in range(6):
        w = TensorProto(name=f"w{i}", data_type=F32, dims=[width, width], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "big.data"), ("offset", i << 30), ("length", 1 << 30)):
            w.external_data.add(key=key, value=str(value))
        weights.append(w)
    nodes = [make_node("MatMul", ["x" if i == 0 else f"y{i - 1}", f"w{i}"], [f"y{i}"]) for i in range(6)]
    x, y = (make_tensor_value_info(n, F32, [1, width]) for n in ("x", "y5"))
    graph = make_graph(nodes, "big", [x], [y], weights)
    path.write_bytes(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8).SerializeToString())
    with (tmp_path / "big.data").open("wb") as file:
        file.truncate(6 << 30)
    code = """
import sys
from pathlib import Path
from tensorstow.planner.onnx import lower_onnx, split, splittable
from tensorstow.runtime.memory import peak_rss_nbytes
lowered = lower_onnx(Path(sys.argv[1]), cache=Path(sys.argv[2]))
cut = split(lowered, {op: 64 for op in splittable(lowered)})
print(lowered.graph.nbytes, len(cut.graph.operators), peak_rss_nbytes())  # ru_maxrss counts the parent's at the fork
"""
    nbytes, operators, peak_nbytes = map(int, in_process(code, path, tmp_path / "cache").split())
    assert nbytes > 6 << 30
    assert operators == 6 * 64
    assert peak_nbytes < 512 << 20
