"""ONNX Runtime optimises the whole graph once; the result is kept, with its rearranged weights, in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import astuple
from functools import cache
from pathlib import Path

from ...ir.errors import ExecutionError, InputError
from .load import LAZY_NBYTES, LoadedModel, file_identity, load_model, source_of, tensors_of
from .session import open_session, options, reason, version

# Raised whenever what this package hands to ONNX Runtime changes its meaning.
_LOWERING_VERSION = 1
_MODEL, _WEIGHTS, _SIZES = "model.onnx", "weights.bin", "sizes.json"


def optimised(model: LoadedModel, cache_folder: Path) -> LoadedModel:
    """`model` as ONNX Runtime optimises it for this CPU, without prepacking; from the cache where it was made before.

    The cache entry is a folder named by a digest of the model's message, the identity of the files whose weights are
    still in it, ONNX Runtime's version and the CPU. It is written beside and renamed, so it is whole or absent.
    Raises InputError for a model that ONNX Runtime refuses, ExecutionError where the cache cannot be written.
    """
    parent = cache_folder / "onnx"
    entry = parent / _key(model)
    kept = _reusable(entry)
    if kept is not None:
        return kept
    try:
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{entry.name[:16]}.", dir=parent))
    except OSError as error:
        raise ExecutionError(f"cache folder '{parent}' cannot be written: {error.strerror}") from error
    try:
        _dump(model, made)
        _publish(made, entry)
    except OSError as error:
        raise ExecutionError(_full(parent, str(error.strerror))) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return load_model(entry / _MODEL)


def _dump(model: LoadedModel, folder: Path) -> None:
    made = options(optimise=True)
    made.optimized_model_filepath = str(folder / _MODEL)
    for key, value in (
        ("session.model_external_initializers_file_folder_path", str(model.folder)),
        ("session.optimized_model_external_initializers_file_name", _WEIGHTS),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(LAZY_NBYTES)),
    ):
        made.add_session_config_entry(key, value)
    message = model.proto.SerializeToString(deterministic=True)
    try:
        open_session(message, made)
    # ONNX Runtime's exceptions share no base but Exception. Which of the two went wrong, reading the model or writing
    # the result, a session that writes nothing tells.
    except Exception as error:
        made = options(optimise=True)
        made.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.folder))
        try:
            open_session(message, made)
        except Exception as again:
            raise InputError(f"model '{model.path}': ONNX Runtime {version()} refuses it: {reason(again)}") from again
        raise ExecutionError(_full(folder.parent, reason(error))) from error
    try:
        load_model(folder / _MODEL)
    except InputError as error:
        raise ExecutionError(_full(folder.parent, str(error))) from error


def _full(folder: Path, why: str) -> str:
    free = shutil.disk_usage(folder).free
    return (
        f"the optimised model cannot be written to '{folder}' ({free} bytes free there): {why}; "
        f"free some space or set TENSORSTOW_CACHE to another folder"
    )


def _publish(made: Path, entry: Path) -> None:
    files = [f for f in (made / _MODEL, made / _WEIGHTS) if f.exists()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    (made / _SIZES).write_text(json.dumps({f.name: f.stat().st_size for f in files}))
    try:
        made.rename(entry)
    except OSError:
        if _reusable(entry) is None:
            raise


def _reusable(entry: Path) -> LoadedModel | None:
    """The entry's model, or None (and the entry removed) where it is absent or not as it was written."""
    if not entry.is_dir():
        return None
    try:
        sizes = json.loads((entry / _SIZES).read_text())
        if all((entry / name).stat().st_size == size for name, size in sizes.items()):
            return load_model(entry / _MODEL)
    except (OSError, ValueError, InputError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return None


def _key(model: LoadedModel) -> str:
    found = hashlib.sha256()
    found.update(repr((_LOWERING_VERSION, version(), _cpu())).encode())
    found.update(model.proto.SerializeToString(deterministic=True))
    sources = (source_of(t, model.folder) for t in tensors_of(model.proto.graph))
    for path in dict.fromkeys(s.path for s in sources if s is not None):
        found.update(repr(astuple(file_identity(path))).encode())
    return found.hexdigest()


@cache
def _cpu() -> str:
    """What decides which layouts ONNX Runtime chooses: the processor's name and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
