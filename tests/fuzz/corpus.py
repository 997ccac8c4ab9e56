"""Files made to hurt, by reader and name: each writes itself to a path, with what it needs beside it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.readers import READERS, forged

from .corpus_models import MODELS, Hostile


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
