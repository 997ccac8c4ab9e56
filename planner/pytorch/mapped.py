"""A module of a directory whose parameters lie in its files: for training more than memory holds.

Each parameter is a mapping of its bytes in the file, private to the process: pages are read as they are touched, are
the system's to take back as long as nobody writes them, and no write reaches the file. Where a plan places a parameter,
its bytes go from there to the store, one parameter after the other, and its mapping ends; what a plan leaves to PyTorch
is brought into memory (`bring_kept`), where it lies as PyTorch would have it. So the whole model is never in memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Set
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ...ir.errors import InputError
from .hf import fill_kept, make_skeleton, open_directory, read_tensor
from .matching import Matched, match
from .tensors import FileTensor

_MAPPED: WeakKeyDictionary[nn.Module, Matched] = WeakKeyDictionary()
"""Modules whose parameters are mapped, with the tensors of their files."""


def open_mapped(path: Path) -> nn.Module:
    """The module of a Hugging Face directory in training mode, its parameters mapped.

    Raises InputError as `open_directory` and `match` do, and for a directory without weights.
    """
    directory = open_directory(path)
    module = make_skeleton(directory)
    if directory.files is None:
        raise InputError(f"'{path}' has no weights to train; save the model there with save_pretrained first")
    return map_parameters(module, match(module, directory.files)).train()


def map_parameters(module: nn.Module, matched: Matched, names: Set[str] | None = None) -> nn.Module:
    """`module`, a skeleton, with its parameters mapped, all or those of `names`; the rest is read. Raises InputError as
    `fill_kept`."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    mapped = parameters if names is None else parameters & names
    state = module.state_dict(keep_vars=True)
    fill_kept(module, matched, [n for n in state if n not in mapped])
    fill_kept(module, matched, [n for n in state if n in mapped], read=map_tensor)
    _MAPPED[module] = matched
    return module


def bring_kept(module: nn.Module, placed: Set[str]) -> int:
    """Bring the mapped parameters of `module` that no plan places (`placed` are their qualified names) into memory;
    the bytes. Nothing for a module that `map_parameters` did not fill."""
    if module not in _MAPPED:  # which anything may be asked of
        return 0
    matched, nbytes = _MAPPED.pop(module), 0
    stay = {id(p) for name, p in module.named_parameters(remove_duplicate=False) if name in placed}
    for name, parameter in module.named_parameters():
        if name in matched.tensors and id(parameter) not in stay:
            parameter.data = parameter.detach().clone()
            nbytes += parameter.numel() * parameter.element_size()
    return nbytes


def map_tensor(tensor: FileTensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in its file; in memory where it lies in several places, or not at a multiple of its elements.

    Raises InputError where the file ends too early, or cannot be mapped.
    """
    if not tensor.nbytes or len(tensor.pieces) > 1 or tensor.file_offset % dtype.itemsize:
        return read_tensor(tensor, dtype)
    first = tensor.file_offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    skipped = tensor.file_offset - first
    try:
        with open(tensor.path, "rb") as file:
            pages = mmap.mmap(file.fileno(), skipped + tensor.nbytes, access=mmap.ACCESS_COPY, offset=first)
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{tensor.path}' cannot be mapped where {tensor.name!r} lies, bytes {tensor.file_offset} to "
            f"{tensor.file_offset + tensor.nbytes}: {error}; get the whole file"
        ) from error
    count = tensor.nbytes // dtype.itemsize
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=skipped).view(tensor.shape)
