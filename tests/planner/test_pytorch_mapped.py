"""Tensors in their files: the bytes, nothing written back, and what cannot be mapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tensorstow.ir.errors import InputError
from tensorstow.ir.program import FilePiece
from tensorstow.planner.pytorch.mapped import map_tensor
from tensorstow.planner.pytorch.tensors import FileTensor


def in_file(path: Path, content: torch.Tensor, *offsets: int) -> FileTensor:
    """`content` in a file: in equal pieces at these offsets."""
    data = content.numpy().tobytes()
    size = len(data) // len(offsets)
    filled = bytearray(max(offsets) + size)
    for number, offset in enumerate(offsets):
        filled[offset : offset + size] = data[number * size : (number + 1) * size]
    path.write_bytes(filled)
    pieces = tuple(FilePiece(str(path), offset, size) for offset in offsets)
    return FileTensor("t", "float32", tuple(content.shape), pieces)


@pytest.mark.parametrize("offsets", [(0,), (72,), (4096 + 8,), (73,), (8192, 64)])
def test_it_is_what_the_file_holds(tmp_path: Path, offsets: tuple[int, ...]) -> None:
    content = torch.arange(600, dtype=torch.float32).reshape(20, 30)
    mapped = map_tensor(in_file(tmp_path / "f", content, *offsets), torch.float32)
    assert torch.equal(mapped, content)


def test_what_is_written_does_not_reach_the_file(tmp_path: Path) -> None:
    content = torch.ones(64)
    before = in_file(tmp_path / "f", content, 64)
    map_tensor(before, torch.float32).zero_()
    assert torch.equal(map_tensor(before, torch.float32), content)


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    tensor = in_file(tmp_path / "f", torch.ones(4096), 64)
    (tmp_path / "f").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="get the whole file"):
        map_tensor(tensor, torch.float32)
