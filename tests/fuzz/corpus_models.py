"""ONNX files made to hurt, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from onnx.helper import make_graph, make_node, make_sparse_tensor, make_tensor, make_tensor_value_info

from tests.fuzz.readers import READERS

Hostile = Callable[[Path], object]
SECRET = "secret"
"""A file outside of the model's folder, which no reader may open."""


def _model(change: Callable[[ModelProto], None], *, data: bool = True) -> Hostile:
    def write(path: Path) -> None:
        model = ModelProto.FromString(READERS["onnx"].good())
        change(model)
        path.write_bytes(model.SerializeToString())
        if data:
            path.with_name("weights.data").write_bytes(bytes(64 * 64 * 4))

    return write


def _external(**entries: str) -> Hostile:
    """The weight beside the file with these entries; a secret lies in the folder above."""

    def change(model: ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == "w")
        known = {e.key: e.value for e in weight.external_data} | entries
        del weight.external_data[:]
        for key, value in known.items():
            weight.external_data.add(key=key, value=value)

    return _model(change)


def _linked(target: str) -> Hostile:
    def write(path: Path) -> None:
        _external(location="link.data")(path)
        path.with_name("link.data").unlink(missing_ok=True)
        path.with_name("link.data").symlink_to(target)

    return write


def _garbled(text: str, letter: bytes = b"\xff") -> Hostile:
    """The good model, with a byte, by default one that is no UTF-8, in place of the first letter of a text."""

    def write(path: Path) -> None:
        good = READERS["onnx"].good()
        path.write_bytes(good.replace(text.encode(), letter + text[1:].encode()))
        READERS["onnx"].beside(path)

    return write


def _dims(name: str, *dims: int) -> Hostile:
    def change(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return _model(change)


def _filled(*dims: int) -> Hostile:
    def change(model: ModelProto) -> None:
        shape = next(t for t in model.graph.initializer if t.name == "shape")
        shape.CopyFrom(make_tensor("shape", TensorProto.INT64, [len(dims)], dims))

    return _model(change)


def _sparse(*dims: int) -> Hostile:
    def change(model: ModelProto) -> None:
        values = make_tensor("s0", TensorProto.FLOAT, [1], [1.0])
        indices = make_tensor("s0_i", TensorProto.INT64, [1], [dims[0] - 1])
        model.graph.sparse_initializer.append(make_sparse_tensor(values, indices, list(dims)))

    return _model(change)


def _deep(levels: int) -> Hostile:
    """Branches of If inside one another, written field by field: the library makes none so deep."""

    def write(path: Path) -> None:
        end = make_graph([make_node("Identity", ["x"], ["o"])], "g", [], [])
        content = end.SerializeToString()
        for _ in range(levels):
            attribute = _field(1, b"then_branch") + _field(6, content) + b"\xa0\x01\x05"
            content = _field(1, _field(1, b"k") + _field(2, b"o") + _field(4, b"If") + _field(5, attribute))
        path.write_bytes(b"\x08\x08" + _field(7, content) + _field(8, b"\x10\x11"))

    return write


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    length, text = len(content), bytearray()
    while length > 0x7F:
        text.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2]) + bytes(text) + bytes([length]) + content


def _folded(op: str, *values: int) -> Hostile:
    """A model that is one operator on constants, which an optimiser would fold: a few bytes that stand for many."""

    def write(path: Path) -> None:
        names = [f"c{i}" for i in range(len(values))] if op == "Range" else ["shape"]
        tensors = (
            [make_tensor(n, TensorProto.INT64, [], [v]) for n, v in zip(names, values, strict=True)]
            if op == "Range"
            else [make_tensor("shape", TensorProto.INT64, [len(values)], values)]
        )
        nodes = [make_node(op, names, ["f"]), make_node("ReduceMax", ["f"], ["m"], keepdims=0)]
        nodes.append(make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT))
        out = make_tensor_value_info("y", TensorProto.FLOAT, [])
        model = onnx.helper.make_model(make_graph(nodes, "g", [], [out], tensors), ir_version=8)
        model.opset_import[0].version = 17
        path.write_bytes(model.SerializeToString())

    return write


MODELS: dict[str, Hostile] = {
    "data above the folder": _external(location=f"../{SECRET}"),
    "data above the folder, by a detour": _external(location=f"folder/../../{SECRET}"),
    "data at an absolute path": _external(location="/etc/passwd"),
    "data at a path that is no text": _garbled("weights.data"),
    "names that are no text": _garbled("MatMul"),
    "names that command a terminal": _garbled("MatMul", b"\x1b"),
    "data behind a link": _linked(f"../{SECRET}"),
    "data behind an absolute link": _linked("/etc/passwd"),
    "data behind a link to itself": _linked("link.data"),
    "data that is a device": _linked("/dev/zero"),
    "data with a path of 5,000 letters": _external(location="x" * 5000),
    "data with a path of many folders": _external(location="a/" * 3000 + "b"),
    "data with a zero in its path": _external(location="weights\0.data"),
    "data at an offset of 5,000 digits": _external(offset="9" * 5000),
    "data at an offset past 2**63": _external(offset=str(1 << 64)),
    "data before the file": _external(offset="-4"),
    "data of a length that is no number": _external(length="²"),
    "a weight of 2**62 elements beside the file": _dims("w", 1 << 31, 1 << 31),
    "a weight of 2**62 elements inside": _dims("v", 1 << 31, 1 << 31),
    "a weight of 2**62 elements in a typed field": _dims("t", 1 << 62),
    "a weight of 2**40 elements in a typed field": _dims("t", 1 << 40),
    "a negative dimension": _dims("v", -64, -64),
    "a tensor filled with 2**60 elements": _filled(1 << 30, 1 << 30),
    "a tensor filled with 2**34 elements": _filled(1 << 17, 1 << 17),
    "a tensor filled with -1 elements": _filled(-1, 64),
    "a filled tensor of 2**40 elements that could be folded": _folded("ConstantOfShape", 1 << 20, 1 << 20),
    "a range of 2**40 elements that could be folded": _folded("Range", 0, 1 << 40, 1),
    "a sparse tensor of 2**62 elements": _sparse(1 << 31, 1 << 31),
    "a sparse tensor whose indices are outside": _sparse(-4, 4),
    "20 graphs in one another": _deep(20),
    "60 graphs in one another": _deep(60),
    "400 graphs in one another": _deep(400),
    "an element type that is none": _model(lambda m: setattr(m.graph.initializer[1], "data_type", 99)),
    "a version that is none": _model(lambda m: setattr(m, "ir_version", 1 << 62)),
    "an operator set of the future": _model(lambda m: setattr(m.opset_import[0], "version", 1 << 40)),
    "a node that reads itself": _model(lambda m: m.graph.node[0].input.__setitem__(0, "a")),
    "a value made twice": _model(lambda m: m.graph.node[1].output.__setitem__(0, "a")),
    "an output that nobody makes": _model(lambda m: setattr(m.graph.output[0], "name", "nothing")),
    "no data beside it": _model(lambda m: None, data=False),
}
