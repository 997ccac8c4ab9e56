"""Reads an ONNX file without its weights: large tensor data stays in the file, and the message says where it lies.

A model may hold gigabytes of raw data inside its protobuf. Parsing it whole would hold them twice. Protobuf's wire
format (https://protobuf.dev/programming-guides/encoding) is a list of (field, type, value); one walk over the few
nested messages that lead to tensors is enough to leave their data out and name it as external data of the file itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

from ...ir.errors import InputError

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_TENSOR = 5
_TENSOR_FLOATS, _TENSOR_RAW, _TENSOR_DOUBLES, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 4, 9, 10, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1

_Field = tuple[int, int, int, int, int]
"""Field number, wire type, start of the key, start of the payload, end of the payload."""
_Rewrite = Callable[[int, int], bytes]


def read_skeleton(path: Path, min_nbytes: int) -> bytes:
    """The serialised model of `path`, tensor data of `min_nbytes` or more turned into external data of that file.

    Memory is bounded by what is left in the message. Raises InputError where the file is no protobuf message.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise InputError(f"model '{path}' is empty (0 bytes); it is not an ONNX file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(data, path, min_nbytes).model()


class _Walk:
    """One pass over the mapped file; every method returns the bytes that replace the range it is given."""

    def __init__(self, data: mmap.mmap, path: Path, min_nbytes: int) -> None:
        self.data, self.path, self.min_nbytes = data, path, min_nbytes

    def model(self) -> bytes:
        return self._nested(0, len(self.data), {_MODEL_GRAPH: self._graph})

    def _graph(self, start: int, end: int) -> bytes:
        return self._nested(start, end, {_GRAPH_INITIALIZER: self._tensor, _GRAPH_NODE: self._node})

    def _node(self, start: int, end: int) -> bytes:
        return self._nested(start, end, {_NODE_ATTRIBUTE: self._attribute})

    def _attribute(self, start: int, end: int) -> bytes:
        return self._nested(start, end, {_ATTRIBUTE_TENSOR: self._tensor})

    def _nested(self, start: int, end: int, rewrite: dict[int, _Rewrite]) -> bytes:
        out: list[bytes] = []
        for number, kind, key, payload, stop in self._fields(start, end):
            if kind == _BYTES and stop - payload >= self.min_nbytes and number in rewrite:
                out.append(_delimited(number, rewrite[number](payload, stop)))
            else:
                out.append(self.data[key:stop])
        return b"".join(out)

    def _tensor(self, start: int, end: int) -> bytes:
        fields = list(self._fields(start, end))
        # These three hold little-endian elements as they are; the other typed fields are varints.
        bulk = [f for f in fields if f[0] in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES) and f[1] == _BYTES]
        if len(bulk) != 1 or bulk[0][4] - bulk[0][3] < self.min_nbytes:
            return self.data[start:end]
        _, _, _, payload, stop = bulk[0]
        out = [self.data[f[2] : f[4]] for f in fields if f is not bulk[0]]
        for name, value in (("location", self.path.name), ("offset", str(payload)), ("length", str(stop - payload))):
            entry = _delimited(1, name.encode()) + _delimited(2, value.encode())
            out.append(_delimited(_TENSOR_EXTERNAL, entry))
        out.append(_varint(_TENSOR_LOCATION << 3 | _VARINT) + _varint(_EXTERNAL))
        return b"".join(out)

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        at = start
        while at < end:
            key, payload = self._read_varint(at, end)
            kind = key & 7
            if kind == _VARINT:
                stop = self._read_varint(payload, end)[1]
            elif kind == _BYTES:
                length, payload = self._read_varint(payload, end)
                stop = payload + length
            elif kind in (_FIXED64, _FIXED32):
                stop = payload + (8 if kind == _FIXED64 else 4)
            else:
                raise InputError(f"model '{self.path}' is not an ONNX file: byte {at} starts no protobuf field")
            if stop > end:
                raise InputError(
                    f"model '{self.path}' is truncated or not an ONNX file: a field at byte {at} ends at byte {stop}, "
                    f"its message at byte {end}"
                )
            yield key >> 3, kind, at, payload, stop
            at = stop

    def _read_varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise InputError(f"model '{self.path}' is truncated or not an ONNX file: byte {at} ends no protobuf integer")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload
