"""Files of weights made by hand, for tests of planner/pytorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tensorstow.planner.pytorch.tensors import FileTensor

Entries = dict[str, dict[str, Any]]


def write(path: Path, entries: Any, data: bytes, *, pad: int = 0) -> Path:
    """A safetensors file by hand; `pad` spaces end the header."""
    header = (entries if isinstance(entries, bytes) else json.dumps(entries).encode()) + b" " * pad
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def content(tensor: FileTensor) -> bytes:
    return b"".join(Path(p.path).read_bytes()[p.file_offset : p.file_offset + p.nbytes] for p in tensor.pieces)


def memory_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def save_aligned(state: dict[str, torch.Tensor], path: Path, *, to: int = 64) -> None:
    """As safetensors writes it, each tensor's bytes at a distance of `to` from the next multiple of 64."""
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip()
    pad = (to - 8 - len(header)) % 64
    write(path, header, raw[8 + length :], pad=pad)


# Files
