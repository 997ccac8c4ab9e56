"""Tests of tensorstow/disk_now.py and runtime/probe_disk.py: plans for the rate that a disk has now."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tensorstow import disk_now
from tensorstow.api import Machine
from tensorstow.disk_now import DiskNow, with_disk_now
from tensorstow.ir.machine import Machine as AnyMachine
from tensorstow.ir.profiles import load_machine, write_machine
from tensorstow.ir.program import ModelSource, SourceFile
from tensorstow.runtime import probe_disk as probing
from tensorstow.runtime.calibrate import MEASURED
from tensorstow.runtime.calibrate_disk import Reading, choose_chunk
from tensorstow.runtime.probe_disk import probe_disk

MIB = 1 << 20
RATE = 5e8


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnyMachine:
    """This box, as if its disk had been measured; its profile in a cache of its own."""
    made_up = load_machine("host")
    links = tuple(replace(k, bytes_per_s=RATE, source=f"{MEASURED}somehow") for k in made_up.links)
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    write_machine(replace(made_up, links=links), tmp_path / "host.toml")
    return Machine.detect(dram="1GiB")


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    """Two files of a model."""
    paths = [tmp_path / "small", tmp_path / "large"]
    for size, path in enumerate(paths):
        path.write_bytes(bytes(size + 1))
    return ModelSource("hf:somewhere", {}, tuple(SourceFile(str(p), p.stat().st_size, 0) for p in paths))


def gives(rate: float | None, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A disk of that rate; the files that were asked for."""
    asked: list[Path] = []

    def probe(path: Path, chunk: int, *, enough: float) -> float | None:
        asked.append(path)
        return rate

    monkeypatch.setattr(probing, "probe_disk", probe)
    return asked


def test_a_disk_that_gives_another_rate_is_planned_for_as_it_is(
    measured: AnyMachine, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = gives(2 * RATE, monkeypatch)
    found, disk = with_disk_now(measured, source)
    assert [p.name for p in asked] == ["large"]
    assert disk is not None and disk == DiskNow(RATE, 2 * RATE)
    assert "1.00 GB/s now, 0.50 GB/s when" in disk.text
    link = found.link["ssd", "dram"]
    assert (link.bytes_per_s, link.chunk_nbytes) == (2 * RATE, measured.link["ssd", "dram"].chunk_nbytes)
    assert disk.text in link.source and "somehow" in link.source
    assert found.link["dram", "ssd"] == measured.link["dram", "ssd"]
    assert found.tier == measured.tier


def _reading(rates: Iterator[float], places: list[list[int]]) -> Callable[..., Reading]:
    """A disk of these rates, one after another, that notes which offsets are asked for."""

    def read(file: object, targets: object, offsets: Iterator[int], chunk: int, *, stop: object) -> Reading:
        places.append(list(offsets))
        return Reading(next(rates), 0.0)

    return read


def test_a_disk_is_slow_that_is_slow_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * MIB))
    for rates, found in (([3e8, 5e8, 2e8, 9e8], 9e8), ([3e8, 5e8, 2e8, 4e8], 5e8), ([7e8], 7e8), ([1e8, 6e8], 6e8)):
        asked, places = iter(rates), list[list[int]]()
        monkeypatch.setattr(probing, "read_rate", _reading(asked, places))
        monkeypatch.setattr(probing, "PAUSE_S", 0.0)
        assert probe_disk(path, MIB, enough=6e8) == found
        assert next(asked, None) is None
        assert all(p == places[0] for p in places)


@pytest.mark.parametrize("rate", [None, 1.2 * RATE, RATE / 1.2])
def test_what_is_nearly_so_or_cannot_be_told_stays(
    measured: AnyMachine, source: ModelSource, monkeypatch: pytest.MonkeyPatch, rate: float | None
) -> None:
    asked = gives(rate, monkeypatch)
    assert with_disk_now(measured, source) == (measured, None)
    assert asked


def test_only_this_box_as_it_was_measured_is_looked_at(
    measured: AnyMachine, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = gives(2 * RATE, monkeypatch)
    link = measured.link["ssd", "dram"]
    by_hand = tuple(replace(k, bytes_per_s=7e8) if k is link else k for k in measured.links)
    made_up = tuple(replace(k, source="round figures") for k in measured.links)
    for other in (
        load_machine("rtx4090"),
        replace(measured, links=by_hand),
        replace(measured, links=made_up),
        replace(measured, fingerprint="of another box"),
    ):
        assert with_disk_now(other, source) == (other, None)
    assert with_disk_now(measured, None) == (measured, None)
    assert with_disk_now(measured, replace(source, files=())) == (measured, None)
    assert not asked


def test_files_on_another_disk_are_not_asked(
    measured: AnyMachine, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = gives(2 * RATE, monkeypatch)
    monkeypatch.setattr(disk_now, "cache_dir", lambda: Path("/proc"))
    assert with_disk_now(measured, source) == (measured, None)
    assert not asked


def test_a_probe_reads_for_a_moment_and_small_files_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(MIB))
    assert probe_disk(path, MIB) is None
    assert probe_disk(tmp_path / "none", MIB) is None
    with path.open("ab") as file:
        for _ in range(64):
            file.write(random.Random(1).randbytes(MIB))
    rate = probe_disk(path, MIB, seconds=0.05)
    assert rate is None or 1e6 < rate < 1e12  # None on a filesystem without O_DIRECT


def test_requests_are_as_large_as_saves_cores() -> None:
    fast = {1 * MIB: 1e9, 4 * MIB: 1e9, 16 * MIB: 1e9}
    core_s = {1 * MIB: 1.8e-10, 4 * MIB: 1.0e-10, 16 * MIB: 0.6e-10}
    assert choose_chunk({c: Reading(fast[c], core_s[c]) for c in fast}) == 4 * MIB
    assert choose_chunk({c: Reading(fast[c], 0.0) for c in fast}) == 1 * MIB
    assert choose_chunk({c: Reading(rate, 0.0) for c, rate in zip(fast, (5e8, 7e8, 1e9), strict=True)}) == 16 * MIB
