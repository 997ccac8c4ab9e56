"""Opens checkpoints: safetensors files, sharded directories of them, and pickles where they are asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from ...ir.codec import loads
from ...ir.errors import InputError
from ...ir.program import FilePiece, SourceFile
from .safetensors_header import read_header
from .tensors import FileTensor, WeightFiles

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
INDEX_LIMIT_NBYTES = 100_000_000
"""No index of a sharded checkpoint is longer: a line for each tensor."""

Read = Callable[[Path], tuple[SourceFile, tuple[FileTensor, ...]]]


def open_weights(path: Path, *, allow_pickle: bool = False) -> WeightFiles:
    """The checkpoint at `path`: a file, an index of shards, or a directory that holds either under its usual name.

    Only headers are read. Raises InputError for what is missing, truncated or damaged, and for pickles unless
    `allow_pickle`: unpickling can execute what a file's author wrote (PyTorch's restricted unpickler reads them here).
    """
    path = path.absolute()
    if path.is_dir():
        path = _in_directory(path, allow_pickle)
    if path.name.endswith(".index.json"):
        return _sharded(path, allow_pickle)
    source, tensors = _reader(path, allow_pickle)(path)
    return WeightFiles(str(path), (source,), tensors)


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint of any form under its usual name, or safetensors under another one: of these
    `open_weights` takes a single file, and refuses several, which nothing says how to put together."""
    return any((folder / name).exists() for name in _usual_names()) or any(folder.glob("*.safetensors"))


def _usual_names() -> tuple[str, ...]:
    return tuple(f"{name}{suffix}" for name in (SAFETENSORS, PICKLE) for suffix in ("", ".index.json"))


def _in_directory(folder: Path, allow_pickle: bool) -> Path:
    found = [folder / name for name in _usual_names() if (folder / name).exists()]
    if not found:
        single = sorted(folder.glob("*.safetensors"))
        if len(single) != 1:
            here = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise InputError(
                f"'{folder}' holds no weights: neither {SAFETENSORS} nor {SAFETENSORS}.index.json; it holds {here}"
            )
        return single[0]
    if found[0].name.startswith(PICKLE) and not allow_pickle:
        raise _refused(found[0])
    return found[0]


def _reader(path: Path, allow_pickle: bool) -> Read:
    if path.suffix == ".safetensors":
        return read_header
    if path.suffix not in PICKLES:
        raise InputError(f"'{path}' is no checkpoint: give a .safetensors file, an index of them, or their directory")
    if not allow_pickle:
        raise _refused(path)
    return read_pickle


def _refused(path: Path) -> InputError:
    return InputError(
        f"'{path}' is a pickle, which can execute code of whoever wrote it; convert it to safetensors, or allow it "
        "with allow_pickle=True (--allow-pickle on the command line) if you trust where it comes from"
    )


def _sharded(index: Path, allow_pickle: bool) -> WeightFiles:
    weight_map = _weight_map(index)
    files: list[SourceFile] = []
    tensors: dict[str, FileTensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if not path.exists():
            named = next(n for n, s in weight_map.items() if s == shard)
            raise InputError(f"'{index}' says that {named!r} is in '{shard}', which is not there; get all shards")
        source, found = _reader(path, allow_pickle)(path)
        files.append(source)
        for tensor in found:
            if tensor.name in tensors:
                raise InputError(
                    f"tensor {tensor.name!r} is in '{tensors[tensor.name].path}' and in '{path}'; one of them belongs "
                    "to another model"
                )
            tensors[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or Path(tensors[name].path) != index.parent / shard:
            raise InputError(
                f"'{index}' says that {name!r} is in '{shard}', which does not hold it; index and shards are of "
                "different models"
            )
    return WeightFiles(str(index), tuple(files), tuple(tensors.values()))


def _weight_map(index: Path) -> dict[str, str]:
    try:
        size = index.stat().st_size
        if size > INDEX_LIMIT_NBYTES:
            raise InputError(f"'{index}' has {size} bytes; an index has at most {INDEX_LIMIT_NBYTES}")
        content = loads(index.read_bytes(), str(index))
    except OSError as error:
        raise InputError(f"'{index}' cannot be read: {error.strerror}") from error
    found = cast("dict[str, Any]", content).get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise InputError(f"'{index}' has no weight_map from tensors to shards; it is no index of a checkpoint")
    weight_map = cast("dict[str, Any]", found)
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard not in ("", ".", "..") and not set(shard) & set("/\\\0")
        if not plain:
            raise InputError(f"'{index}' places {name!r} in {str(shard)[:80]!r}, which is no file beside it")
    return weight_map


def read_pickle(path: Path) -> tuple[SourceFile, tuple[FileTensor, ...]]:
    """A file of `torch.save`, by PyTorch's restricted unpickler and without a byte of the tensors.

    Raises InputError for one of the old format, one with other things than tensors where its state_dict should be, and
    tensors that are not dense.
    """
    import torch

    try:
        status = path.stat()
        _check_archive(path)
        content = torch.load(path, map_location="meta", weights_only=True)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file leads it to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' is no state_dict that can be unpickled safely: {reason}") from error
    found = [
        _pickled(path, name, tensor, status.st_size)
        for name, tensor in _state_dict(path, content)
        if isinstance(tensor, torch.Tensor)
    ]
    return SourceFile(str(path), status.st_size, status.st_mtime_ns), tuple(found)


def _check_archive(path: Path) -> None:
    """PyTorch's format since 1.6: a zip archive whose members lie in it as they are."""
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"'{path}' is a pickle of the format before PyTorch 1.6, or truncated; load it and save it again"
        )
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise InputError(f"'{path}' was compressed ('{member.filename}'); load it and save it again")


def _state_dict(path: Path, content: Any) -> Iterable[tuple[str, Any]]:
    """The entries of a state_dict, or of the one inside a checkpoint of training."""
    found = content.get("state_dict", content) if isinstance(content, dict) else None  # pyright: ignore[reportUnknownMemberType]
    if not isinstance(found, dict):
        raise InputError(f"'{path}' holds {type(content).__name__}, not a state_dict of tensors by name")
    return cast("dict[str, Any]", found).items()


def _pickled(path: Path, name: str, tensor: Any, size: int) -> FileTensor:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise InputError(f"tensor {name!r} of '{path}' is {kind}, its elements do not lie one by one; save it dense")
    if tensor.is_conj() or tensor.is_neg():
        kind = "conjugate" if tensor.is_conj() else "negative"
        raise InputError(
            f"tensor {name!r} of '{path}' is the {kind} of what is in the file; save it as "
            ".resolve_conj().resolve_neg()"
        )
    base = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if base is None or not tensor.is_contiguous():
        raise InputError(
            f"tensor {name!r} of '{path}' has strides {list(tensor.stride())} for shape {list(tensor.shape)}; save it "
            "as .contiguous()"
        )
    at = int(base) + tensor.storage_offset() * tensor.element_size()
    nbytes = tensor.numel() * tensor.element_size()
    if at + nbytes > size:
        raise InputError(
            f"tensor {name!r} of '{path}' ends at byte {at + nbytes}, the file at {size}; get the whole file"
        )
    return FileTensor(str(name), dtype, tuple(tensor.shape), (FilePiece(str(path), at, nbytes),))
