"""Tests of runtime/calibrate_disk.py: what is read goes to places of its own, as in a pass."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import cast

import pytest

from tensorstow.runtime import calibrate_disk
from tensorstow.runtime.calibrate_disk import Scratch, read_rate
from tensorstow.runtime.directio import DirectFile
from tensorstow.runtime.pages import Pages

MIB = 1 << 20


class _File:
    """Notes where it is read to."""

    def __init__(self) -> None:
        self.at: list[int] = []

    def read_into(self, target: memoryview, offset: int, *, chunk: int) -> None:
        assert len(target) == chunk
        self.at.append(ctypes.addressof(ctypes.c_char.from_buffer(target)))


def test_requests_go_through_the_target_from_its_beginning_to_its_end_and_again() -> None:
    target, file = Pages(4 * MIB), _File()
    read_rate(cast("DirectFile", file), [target], iter(range(10)), MIB)
    assert [at - target.address for at in file.at] == [i % 4 * MIB for i in range(10)]
    target.close()


def test_a_target_of_one_request_is_enough() -> None:
    target, file = Pages(MIB), _File()
    read_rate(cast("DirectFile", file), [target], iter(range(3)), MIB)
    assert file.at == [target.address] * 3
    target.close()


@pytest.mark.parametrize("available", [1 << 40, 400 * MIB, 1 * MIB])
def test_targets_take_no_more_than_a_share_of_the_memory_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int
) -> None:
    least = 16 * MIB

    def available_nbytes() -> int:
        return available

    monkeypatch.setattr(calibrate_disk, "available_nbytes", available_nbytes)
    with Scratch(tmp_path, 64 * MIB) as scratch:
        targets = scratch._targets  # pyright: ignore[reportPrivateUsage]
        taken = [t.nbytes for t in targets]
        assert len(scratch.buffer) == least
    assert all(nbytes >= least for nbytes in taken)
    assert sum(taken) <= max(available // 4, len(taken) * least)
    assert sum(taken) <= 256 * MIB
