"""Reads the header of a safetensors file: which tensor lies where. Never a byte of the tensors themselves.

The format (huggingface.co/docs/safetensors): eight bytes say how long the header is, the header is a JSON object of
names to dtype, shape and range, and the ranges fill the rest of the file without gaps.
"""

from __future__ import annotations

import json
import os
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, cast

from ...ir.errors import InputError
from ...ir.program import FilePiece, SourceFile
from .tensors import FileTensor

HEADER_LIMIT_NBYTES = 100_000_000
"""The longest header that the format allows."""

BITS = {
    "BOOL": ("bool", 8),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "U16": ("uint16", 16),
    "I16": ("int16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "U32": ("uint32", 32),
    "I32": ("int32", 32),
    "F32": ("float32", 32),
    "U64": ("uint64", 64),
    "I64": ("int64", 64),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}
"""The format's types: our name, and the bits of an element."""


def read_header(path: Path) -> tuple[SourceFile, tuple[FileTensor, ...]]:
    """The file as it is now, and its tensors in the order of their bytes.

    Raises InputError, naming file, tensor and the two numbers, for what is missing, truncated, or no such file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
            status = os.fstat(file.fileno())
            length = int.from_bytes(start[:8], "little")
            _check_length(path, start, length, status.st_size)
            header = start[8:] + file.read(length - 1)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from error
    if len(header) != length:
        raise InputError(f"of the header of '{path}', {length} bytes, only {len(header)} are there; get the whole file")
    entries = _parse(path, header)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    tensors.sort(key=lambda t: (t.pieces[0].file_offset, t.nbytes))
    _check_ranges(path, tensors, 8 + length, status.st_size)
    return SourceFile(str(path), status.st_size, status.st_mtime_ns), tuple(tensors)


def _check_length(path: Path, start: bytes, length: int, size: int) -> None:
    if len(start) < 9 or start[8:] != b"{":
        raise InputError(f"'{path}' ({size} bytes) is not a safetensors file: no header begins at byte 8")
    if length > HEADER_LIMIT_NBYTES:
        raise InputError(f"'{path}' claims a header of {length} bytes; the format allows {HEADER_LIMIT_NBYTES}")
    if 8 + length > size:
        raise InputError(f"the header of '{path}' ends at byte {8 + length}, the file at {size}; get the whole file")


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise InputError(f"the header of '{path}' names {name!r} twice; the file is damaged")
            found[name] = value
        return found

    try:
        entries = json.loads(header, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the header of '{path}' is not JSON ({error}); the file is damaged") from error
    if not isinstance(entries, dict):
        raise InputError(f"the header of '{path}' is not a JSON object; the file is damaged")
    entries = cast("dict[str, Any]", entries)
    entries.pop("__metadata__", None)
    return entries


def _tensor(path: Path, name: str, entry: Any, data: int) -> FileTensor:
    if not isinstance(entry, dict):
        raise InputError(f"tensor {name!r} of '{path}' is described by no JSON object; the file is damaged")
    described = cast("dict[str, Any]", entry)
    where = f"tensor {name!r} of '{path}'"
    dtype = described.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InputError(f"{where} has the unknown type {str(dtype)[:40]!r}; known are {', '.join(BITS)}")
    shape = _naturals(where, "shape", described.get("shape"))
    offsets = _naturals(where, "data_offsets", described.get("data_offsets"))
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where} has data_offsets {list(offsets)[:4]}, which is no range; the file is damaged")
    kind, bits = BITS[dtype]
    found, wanted = offsets[1] - offsets[0], prod(shape) * bits // 8
    if found != wanted:
        raise InputError(
            f"{where}: its shape {list(shape)} of {dtype} takes {wanted} bytes, its data_offsets span {found}; the "
            "file is damaged"
        )
    return FileTensor(name, kind, shape, (FilePiece(str(path), data + offsets[0], found),))


def _naturals(where: str, what: str, value: Any) -> tuple[int, ...]:
    """A short list of numbers that a file of any disk can hold."""
    items = cast("list[Any]", value) if isinstance(value, list) else None
    if items is None or len(items) > 64 or not all(type(n) is int and 0 <= n < 1 << 63 for n in items):
        raise InputError(f"{where} has the {what} {str(value)[:80]}, which is no list of numbers; the file is damaged")
    return tuple(items)


def _check_ranges(path: Path, tensors: list[FileTensor], begin: int, size: int) -> None:
    """The format's rule: the tensors fill the file from the header's end on, without overlap or gap."""
    ends = accumulate((t.pieces[0].file_offset + t.nbytes for t in tensors), max, initial=begin)
    end = begin
    for tensor, end in zip(tensors, ends, strict=False):
        at = tensor.pieces[0].file_offset
        if at != end:
            raise InputError(
                f"tensor {tensor.name!r} of '{path}' begins at byte {at}, what lies before it ends at {end}: they "
                f"{'overlap' if at < end else 'leave a gap'}; the file is damaged"
            )
    end = max((t.pieces[0].file_offset + t.nbytes for t in tensors), default=begin)
    if end > size:
        last = max(tensors, key=lambda t: t.pieces[0].file_offset + t.nbytes).name
        raise InputError(f"tensor {last!r} of '{path}' ends at byte {end}, the file at {size}; get the whole file")
    if end < size:
        raise InputError(f"'{path}' has {size} bytes, its tensors end at {end}; the file is damaged")
