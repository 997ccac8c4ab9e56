"""Every kind of fault: it fires, and leaves no wrong bits, no lost data and no unclear error."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tensorstow.ir.errors import ExecutionError
from tests.faults.outcome import Outcome, fault
from tests.faults.subject import same_bits
from tests.faults.table import COSTLY, FAULTS, SkippedFaultError, disks, try_fault

TRIES = 12
"""In so many tries a fault that depends on chance has come."""


@pytest.mark.parametrize("kind", list(FAULTS))
def test_a_fault_does_no_harm(kind: str, tmp_path: Path) -> None:
    wanted = 1 if kind in COSTLY else 2
    for seed in range(TRIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            outcome = try_fault(kind, folder, seed)
        except SkippedFaultError as skipped:
            pytest.skip(str(skipped))
        wanted -= outcome.fired
        if outcome.fired:
            assert outcome.clean, f"seed {seed}: {outcome}"
        if not wanted:
            return
    pytest.fail(f"the fault came {wanted} times too few in {TRIES} tries")


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        fault("short reads")(disks.short_reads)


def test_what_an_outcome_says() -> None:
    assert Outcome(fired=True).clean
    assert not Outcome(fired=False).clean
    assert not Outcome(fired=True, wrong_bits=True).clean
    assert not Outcome(fired=True, lost_data=True).clean
    assert not Outcome(fired=True, unclear="no word").clean


def test_reads_are_touched_as_chosen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(64)))
    descriptor = os.open(path, os.O_RDONLY)
    with disks.reads(lambda n: n == 1, disks.failing(5), lanes_only=False) as touched:
        assert os.preadv(descriptor, [memoryview(bytearray(8))], 0) == 8
        with pytest.raises(OSError, match="Input/output"):
            os.preadv(descriptor, [memoryview(bytearray(8))], 0)
    os.close(descriptor)
    assert touched == [1]


def test_bits_that_differ_are_seen() -> None:
    one = {"y": np.zeros(3, np.float32)}
    assert same_bits(one, {"y": np.zeros(3, np.float32)})
    assert not same_bits(one, {"y": -np.zeros(3, np.float32)})
    assert not same_bits(one, {"z": one["y"]})


def test_an_error_that_nobody_expected_is_unclear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path, rng: np.random.Generator) -> Outcome:
        raise KeyError("w0")

    def clear(folder: Path, rng: np.random.Generator) -> Outcome:
        raise ExecutionError("the disk 'a' has 3 bytes, 4 are needed: free some")

    monkeypatch.setitem(FAULTS, "short reads", broken)
    assert "KeyError" in try_fault("short reads", tmp_path, 0).unclear
    monkeypatch.setitem(FAULTS, "short reads", clear)
    assert try_fault("short reads", tmp_path, 0).unclear == "not caught"
