"""Tests of planner/pytorch/runs.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.program import FilePiece
from tensorstow.planner.pytorch.runs import NotRunsError, Runs


def value_of(runs: Runs, data: torch.Tensor) -> torch.Tensor:
    found = [data[p.file_offset : p.file_offset + p.nbytes] for p in runs.pieces]
    return torch.cat(found).reshape(runs.shape)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3))
def test_stacked_joined_and_cut_bytes_are_where_torch_puts_them(
    shape: list[int], count: int, dim: int, along: int
) -> None:
    dim, along = dim % len(shape), along % (len(shape) + 1)
    size = torch.Size(shape).numel()
    data = torch.randperm(2 * count * size).to(torch.uint8)
    plain = [data[i * 2 * size : i * 2 * size + size].reshape(shape) for i in range(count)]
    runs: Any = [Runs("uint8", shape, [FilePiece("f", i * 2 * size, size)]) for i in range(count)]
    pairs: list[tuple[torch.Tensor, Any]] = [
        (torch.stack(plain, dim=along), torch.stack(runs, dim=along)),
        (torch.cat(plain, dim=dim), torch.cat(runs, dim=dim)),
        (torch.cat([torch.stack(plain), torch.stack(plain)], dim=-1), torch.cat([torch.stack(runs)] * 2, dim=-1)),
        (torch.chunk(torch.stack(plain), 2, dim=along)[-1], torch.chunk(torch.stack(runs), 2, dim=along)[-1]),
    ]
    for expected, found in pairs:
        assert found.shape == tuple(expected.shape)
        assert torch.equal(value_of(found, data), expected)


def test_what_changes_values_is_not_followed() -> None:
    runs: Any = Runs("uint8", (2, 2), [FilePiece("f", 0, 4)])
    other: Any = Runs("uint8", (2, 3), [FilePiece("f", 4, 6)])
    changes = (lambda: torch.transpose(runs, 0, 1), lambda: runs.float(), lambda: torch.cat([runs, other]))
    for change in changes:
        with pytest.raises(NotRunsError):
            change()
    assert Runs("uint8", (8,), [FilePiece("f", 0, 4), FilePiece("f", 4, 4)]).pieces == (FilePiece("f", 0, 8),)


# Matching
