"""Loads an ONNX model without its weights, and says where each weight lies in which file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, SparseTensorProto, TensorProto

from ...ir.codec import check_text
from ...ir.errors import InputError
from ...ir.program import ModelSource, SourceFile
from .types import dtype_name, element_bits, tensor_nbytes
from .wire import read_skeleton

# Tensor data from this size on stays in the file; what is smaller, such as shapes and axes, is worth having at hand.
LAZY_NBYTES = 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Raw little-endian bytes [`offset`, `offset + nbytes`) of the file `path`."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class LoadedModel:
    """A model whose large tensors are all external data, checked to lie inside `folder`; `path` has no symlinks."""

    path: Path
    proto: ModelProto
    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The folder that external data is relative to."""
        return self.path.parent


def load_model(path: Path) -> LoadedModel:
    """Load `path`, weights left where they are. Raises InputError for what is no model, or whose data is not there."""
    try:
        resolved = path.resolve(strict=True)
        skeleton = read_skeleton(resolved, LAZY_NBYTES)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"model '{path}' cannot be read: {reason}") from error
    proto = ModelProto()
    try:
        proto.ParseFromString(skeleton)
    except DecodeError as error:
        raise InputError(f"model '{path}' is not an ONNX file: its bytes are no ONNX protobuf message") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise InputError(f"model '{path}' is not an ONNX file, or a truncated one: it has no graph or no opset")
    # Text that is no UTF-8 comes from protobuf as bytes, whatever its types say.
    for name in (proto.graph.name, *_texts(proto.graph)):
        if not isinstance(name, str):
            raise InputError(
                f"model '{path}' is not an ONNX file, or a damaged one: the name {name!r:.60} is no UTF-8 text"
            )
        check_text(name, f"model '{path}'")
    files: dict[Path, None] = {}
    for tensor in tensors_of(proto.graph):
        source = _checked(tensor, resolved.parent)
        if source is not None:
            files[source.path] = None
    return LoadedModel(resolved, proto, tuple(f for f in files if f != resolved))


def model_source(path: Path, dims: Mapping[str, int]) -> ModelSource:
    """What a later run compares: the model's path, its dimensions, and size and time of each of its files."""
    model = load_model(path)
    files = tuple(file_identity(f) for f in (model.path, *model.files))
    return ModelSource(str(path.absolute()), dict(dims), files)


def file_identity(path: Path) -> SourceFile:
    """Path, size and modification time of one file."""
    stat = path.stat()
    return SourceFile(str(path), stat.st_size, stat.st_mtime_ns)


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    """Every dense tensor of a graph: initializers and attributes, those of nested graphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for nested in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from tensors_of(nested)


def _texts(graph: GraphProto) -> Iterator[object]:
    """Every name in a graph, those of nested graphs included, and where external data is said to lie."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (d.dim_param for d in value.type.tensor_type.shape.dim)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for nested in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _texts(nested)
    for tensor in tensors_of(graph):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def source_of(tensor: TensorProto, folder: Path) -> Source | None:
    """Where the data of a checked tensor lies; None where the message itself holds it."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    entries = {e.key: e.value for e in tensor.external_data}
    return Source(folder / entries["location"], int(entries["offset"]), int(entries["length"]))


def tensor_bytes(tensor: TensorProto, folder: Path) -> bytes:
    """The raw little-endian bytes of a tensor, read from its file where it is external."""
    source = source_of(tensor, folder)
    if source is not None:
        with source.path.open("rb") as file:
            file.seek(source.offset)
            return file.read(source.nbytes)
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if element_bits(tensor.data_type) < 8:
        # The typed field of a packed type holds one byte of two or four elements in each int32.
        return bytes(b & 0xFF for b in tensor.int32_data)
    return onnx.numpy_helper.to_array(tensor).tobytes()


def dense_of(sparse: SparseTensorProto, folder: Path) -> TensorProto:
    """A sparse initializer as the dense one that it stands for, its bytes in the message."""
    values, shape = sparse.values, tuple(sparse.dims)
    # ONNX says int64; ONNX Runtime writes the narrowest type that holds the positions.
    at = np.frombuffer(tensor_bytes(sparse.indices, folder), np.dtype(dtype_name(sparse.indices.data_type)))
    if len(sparse.indices.dims) == 2:  # coordinates rather than positions
        at = np.atleast_1d(np.ravel_multi_index(tuple(at.reshape(-1, len(shape)).T), shape))
    data = np.zeros((prod(shape), element_bits(values.data_type) // 8), np.uint8)
    data[at] = np.frombuffer(tensor_bytes(values, folder), np.uint8).reshape(len(at), -1)
    return TensorProto(name=values.name, data_type=values.data_type, dims=shape, raw_data=data.tobytes())


def _checked(tensor: TensorProto, folder: Path) -> Source | None:
    """Check a tensor's data against its type and its file, and write its external entries in full."""
    name = tensor.name or "(attribute)"
    shape = tuple(tensor.dims)
    if any(d < 0 for d in shape):
        raise InputError(f"tensor '{name}' has a negative dimension in its shape {list(shape)}")
    if tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    if tensor.data_type not in TensorProto.DataType.values():
        raise InputError(f"tensor '{name}' has the unknown element type {tensor.data_type}")
    wanted = tensor_nbytes(tensor.data_type, shape)
    if tensor.data_location != TensorProto.EXTERNAL:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
            raise InputError(f"tensor '{name}' of shape {list(shape)} needs {wanted} bytes, has {len(tensor.raw_data)}")
        if not tensor.HasField("raw_data"):
            _check_typed(tensor, name, wanted)
        return None
    entries = {e.key: e.value for e in tensor.external_data}
    path = _inside(name, entries.get("location", ""), folder)
    offset, length = _number(name, entries, "offset", 0), _number(name, entries, "length", wanted)
    if length != wanted:
        raise InputError(f"tensor '{name}' of shape {list(shape)} needs {wanted} bytes, its external data has {length}")
    size = path.stat().st_size
    if offset + length > size:
        raise InputError(
            f"external data of tensor '{name}' ends at byte {offset + length} of '{path}', which has {size} bytes; "
            f"the file is truncated or belongs to another model"
        )
    location = path.relative_to(folder).as_posix()
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return Source(path, offset, length)


def _check_typed(tensor: TensorProto, name: str, wanted_nbytes: int) -> None:
    """The field for the tensor's type holds one entry an element, of packed types one a byte, of complex ones two."""
    kind = tensor.data_type
    wanted = wanted_nbytes if element_bits(kind) < 8 else prod(tensor.dims)
    wanted *= 2 if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    field = onnx.helper.tensor_dtype_to_field(kind)
    found = len(getattr(tensor, field))
    if found != wanted:
        raise InputError(
            f"tensor '{name}' of shape {list(tensor.dims)} needs {wanted} entries of {field}, has {found}; the file is "
            "damaged, or was not written as ONNX says"
        )


def _number(name: str, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20):  # no file has 10**19 bytes
        raise InputError(f"external data of tensor '{name}' has the {key} '{text[:40]}', which is no number of bytes")
    return int(text)


def _inside(name: str, location: str, folder: Path) -> Path:
    """The file of an external tensor, links resolved; it must lie in the model's folder."""
    where = f"external data '{location}' of tensor '{name}'"
    if not location or "\0" in location:
        raise InputError(f"tensor '{name}' is external data without a usable location")
    try:
        path = (folder / location).resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{where} cannot be resolved: {error}") from error
    if Path(location).is_absolute() or not path.is_relative_to(folder):
        raise InputError(f"{where} leaves the model's folder '{folder}'; put the file beside the model")
    if not there:
        raise InputError(f"{where} is missing: there is no file '{path}'")
    return path
