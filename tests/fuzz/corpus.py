"""Files made to hurt, by reader and name: each writes itself to a path, with what it needs beside it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnx.helper import make_graph, make_node, make_sparse_tensor, make_tensor, make_tensor_value_info

from tests.fuzz.readers import READERS, forged

Hostile = Callable[[Path], object]
SECRET = "secret"
"""A file outside of the model's folder, which no reader may open."""


def _plan(change: Callable[[Any], None]) -> Hostile:
    """The good plan, changed, its digests made anew."""

    def write(path: Path) -> None:
        body = json.loads(READERS["plan"].good())["body"]
        change(body)
        path.write_bytes(forged(body))

    return write


def _text(text: str) -> Hostile:
    return lambda path: path.write_bytes(text.encode(errors="surrogatepass"))


def _document(body: str) -> str:
    return f'{{"schema": "tensorstow-plan/1", "digest": "", "body": {body}}}'


def _first(kind: str, key: str, value: Any) -> Hostile:
    return _plan(lambda body: body["plan"][kind][0].update({key: value}))


def _machine(kind: str, key: str, value: Any) -> Hostile:
    return _plan(lambda body: body["machine"][kind][0].update({key: value}))


PLANS: dict[str, Hostile] = {
    "empty": _text(""),
    "a key twice": _text('{"schema": "tensorstow-plan/1", "schema": "tensorstow-plan/1"}'),
    "NaN": _text(_document('{"fixed_nbytes": NaN}')),
    "Infinity": _text(_document('{"fixed_nbytes": -Infinity}')),
    "1e999": _text(_document('{"fixed_nbytes": 1e999}')),
    "5,000 digits": _text(_document('{"fixed_nbytes": ' + "9" * 5000 + "}")),
    "100,000 levels": _text("[" * 100_000),
    "400 levels": _text(_document("[" * 400 + "]" * 400)),
    "900 levels": _text(_document("[" * 900 + "]" * 900)),
    "no text": lambda path: path.write_bytes(bytes(range(256))),
    "half a letter": _plan(lambda body: body["graph"].update(name="\ud800")),
    "escapes of a terminal": _plan(lambda body: body["machine"].update(name="\x1b[2J\x1b[31m")),
    "an integer past 2**63": _first("residencies", "offset", 1 << 63),
    "an integer of 400 digits": _first("residencies", "offset", 10**400),
    "a float of 400 digits": _machine("links", "bytes_per_s", 10**400),
    "an address past everything": _first("residencies", "offset", 1 << 62),
    "a residency of 2**62 bytes": _first("residencies", "hi", 1 << 62),
    "a residency of 2**62 steps": _first("residencies", "end", 1 << 62),
    "a transfer before it may start": _first("transfers", "before", -1),
    "a step that takes 2**62 ns": _first("steps", "duration_ns", (1 << 62)),
    "an operator of another graph": _first("steps", "op", "nobody"),
    "an arena of 2**62 bytes": _plan(lambda body: body["plan"].update(arena_nbytes={"dram": 1 << 62})),
    "a tier without bytes": _machine("tiers", "capacity_nbytes", 0),
    "a tier below zero": _machine("tiers", "capacity_nbytes", -(1 << 62)),
    "an alignment of zero": _machine("tiers", "alignment", 0),
    "a link of no speed": _machine("links", "bytes_per_s", 0.0),
    "a link to nowhere": _machine("links", "target", "nowhere"),
    "no units": _plan(lambda body: body["machine"].update(units=[])),
    "no steps": _plan(lambda body: body["plan"].update(steps=[])),
    "a storage twice": _plan(lambda body: body["graph"]["storages"].append(body["graph"]["storages"][0])),
    "a storage below zero": _plan(lambda body: body["graph"]["storages"][0].update(nbytes=-4096)),
    "a tensor of no storage": _plan(lambda body: body["graph"]["tensors"][0].update(storage="nowhere")),
    "an operator that reads what is not": _plan(lambda body: body["graph"]["operators"][0].update(inputs=["nothing"])),
    "another schema": _text('{"schema": {"a": [1]}, "digest": 0, "body": 0}'),
    "a body that is none": _plan(lambda body: body.clear()),
}


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


def _archive(*members: tuple[str, bytes, int | None], method: int = zipfile.ZIP_DEFLATED) -> Hostile:
    """A zip of these (name, content, the length that the directory states)."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content, _ in members:
                archive.writestr(name, content)
            for info, (_, _, stated) in zip(archive.infolist(), members, strict=True):
                info.file_size = info.file_size if stated is None else stated

    return write


def _array(shape: tuple[int, ...], descr: str = "|u1", data: bytes = b"", *, raw: str | None = None) -> bytes:
    """An .npy that states this shape, whatever its data."""
    if raw is None:
        file = io.BytesIO()
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file.getvalue() + data
    text = raw.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


_GOOD = _array((1, 1, 2), data=b"\0\1")
_NO_TYPE = "{'descr': '|q9', 'fortran_order': False, 'shape': ()}"
_HUGE = _array((1 << 20, 1 << 20, 2))

ARCHIVES: dict[str, Hostile] = {
    "a header of 2**41 bytes": _archive(("experts.npy", _HUGE, None)),
    "a header and a directory of 2**41 bytes": _archive(("experts.npy", _HUGE, len(_HUGE) + (2 << 40))),
    "a directory of 2**40 bytes": _archive(("experts.npy", _GOOD, 1 << 40)),
    "a shape past 2**63": _archive(("experts.npy", _array((1 << 40, 1 << 40, 2)), None)),
    "a shape of 10**30": _archive(("experts.npy", _array((10**30, 1, 1)), None)),
    "a negative shape": _archive(("experts.npy", _array((-1, -1, 2), data=b"\0\1"), None)),
    "a bomb in an array that is not read": _archive(("experts.npy", _GOOD, None), ("z.npy", _HUGE, 1 << 42)),
    "an array twice": _archive(("experts.npy", _GOOD, None), ("experts.npy", _GOOD, None)),
    "an array with and without its ending": _archive(("experts.npy", _GOOD, None), ("experts", _GOOD, None)),
    "an array above the folder": _archive(("../experts.npy", _GOOD, None)),
    "a header of deep brackets": _archive(("experts.npy", _array((), raw="(" * 117), None)),
    "a header that is a call": _archive(("experts.npy", _array((), raw="__import__('os').abort()"), None)),
    "a header that is no header": _archive(("experts.npy", _array((), raw="{'descr': '|u1'}"), None)),
    "a type that is none": _archive(("experts.npy", _array((1,), raw=_NO_TYPE), None)),
    "objects": _archive(("experts.npy", _array((1,), "|O", b"cos\nsystem\n(S'exit'\ntR."), None)),
    "an array of no bytes 2**60 times": _archive(("experts.npy", _array((1 << 60, 1, 1), "|V0"), None)),
    "no zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "a bare array of 2**41 bytes": lambda path: path.write_bytes(_HUGE),
    "a pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'exit'\ntR."),
}


def _one(shape: str, offsets: str, data: bytes = b"") -> Hostile:
    """A header that describes one tensor of bytes."""
    return _tensors(f'{{"a": {{"dtype": "U8", "shape": {shape}, "data_offsets": {offsets}}}}}', data)


def _tensors(header: str, data: bytes = b"", length: int | None = None) -> Hostile:
    text = header.encode()
    return lambda path: path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


SAFETENSORS: dict[str, Hostile] = {
    "empty": lambda path: path.write_bytes(b""),
    "a header of 2**63 bytes": _tensors("{}", length=1 << 63),
    "a header of 99 MB that is not there": _tensors("{}", length=99_000_000),
    "a shape past 2**63": _one(f"[{1 << 40}, {1 << 40}, {1 << 40}]", "[0, 4]"),
    "a shape of a float": _one("[4.0]", "[0, 4]", bytes(4)),
    "offsets of NaN": _one("[1]", "[NaN, Infinity]"),
    "offsets of 1e999": _one("[1]", "[0, 1e999]"),
    "offsets of 5,000 digits": _one("[1]", f"[0, {'9' * 5000}]"),
    "offsets before the data": _one("[4]", "[-4, 0]"),
    "a tensor twice": _tensors('{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {}}'),
    "100,000 levels": _tensors('{"a": ' + "[" * 100_000),
    "a million dimensions": _one(str([1] * 10**6), "[0, 1]", b"1"),
    "overlaps": _tensors(
        '{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [2], '
        '"data_offsets": [2, 4]}}',
        bytes(4),
    ),
    "half a letter": _tensors('{"\\ud800": {"dtype": "\\ud800", "shape": [0], "data_offsets": [0, 0]}}'),
    "no text": lambda path: path.write_bytes((4).to_bytes(8, "little") + b"{\xff\xfe\xfd"),
}

CORPUS: dict[str, dict[str, Hostile]] = {
    "plan": PLANS,
    "onnx": MODELS,
    "inputs": ARCHIVES,
    "trace": ARCHIVES,
    "safetensors": SAFETENSORS,
}
