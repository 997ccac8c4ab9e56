"""Tests of runtime/store.py, store_build.py, store_pieces.py and directio.py."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.program import BlobSource, Program
from tensorstow.runtime import directio, memory, store_pieces
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.directio import DirectFile
from tensorstow.runtime.store import WeightStore

from .build import IDENTITY, Array

ROWS, COLUMNS = 301, 407


def _program(*blobs: BlobSource) -> Program:
    return Program("test", {}, {}, blobs, (), ())


def _file(folder: Path, matrix: Array) -> Path:
    path = folder / "weights"
    path.write_bytes(b"abc" + matrix.tobytes())
    return path


def _matrix() -> Array:
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)


def _identity(path: Path) -> dict[str, Any]:
    status = path.stat()
    file = {"path": str(path), "nbytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {"engine": "test", "files": [file]}


def _blob(path: Path, matrix: Array, name: str = "w", *, transposed: bool = False) -> BlobSource:
    return BlobSource(
        name, matrix.nbytes, "float32", matrix.shape, path=str(path), file_offset=3, transposed=transposed
    )


def _read(store: WeightStore, blob: str, start: int = 0, nbytes: int | None = None, at: int = 0) -> bytes:
    nbytes = store.entries[blob].nbytes if nbytes is None else nbytes
    arena = Arena(nbytes + at)
    store.read(blob, start, arena.view(at, nbytes))
    found = bytes(arena.view(at, nbytes))
    arena.close()
    return found


def test_every_kind_of_source_is_stored(tmp_path: Path) -> None:
    matrix = _matrix()
    path = _file(tmp_path, matrix)
    program = _program(
        BlobSource("inline", 5, "uint8", (5,), inline="0102030405"),
        _blob(path, matrix),
        BlobSource("empty", 0, "float32", (0,), inline=""),
        _blob(path, matrix, "t", transposed=True),
        BlobSource("fill", 4 << 20, "float32", (1 << 20,), fill="0000803f"),
        BlobSource("small", 12, "int16", (2, 3), inline=np.arange(6, dtype=np.int16).tobytes().hex(), transposed=True),
    )
    heard: list[tuple[int, int]] = []
    folder = tmp_path / "stores" / "k"
    store = WeightStore.open_or_build(
        program, identity=_identity(path), folder=folder, progress=lambda done, total: heard.append((done, total))
    )
    assert _read(store, "inline") == bytes([1, 2, 3, 4, 5])
    assert _read(store, "w") == matrix.tobytes()
    assert _read(store, "empty") == b""
    assert _read(store, "t") == matrix.T.tobytes()
    assert _read(store, "fill") == np.ones(1 << 20, np.float32).tobytes()
    assert _read(store, "small") == np.arange(6, dtype=np.int16).reshape(2, 3).T.tobytes()
    assert heard[-1][0] == heard[-1][1] == (folder / "weights.bin").stat().st_size
    assert all(e.offset % 4096 == 0 for e in store.entries.values())
    assert sorted(p.name for p in folder.parent.iterdir()) == [".k.lock", "k"]
    store.close()


def test_a_large_matrix_is_transposed_by_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_pieces, "BAND_NBYTES", 50_000)
    matrix = _matrix()
    path = _file(tmp_path, matrix)
    program = _program(_blob(path, matrix, transposed=True))
    store = WeightStore.open_or_build(program, identity=_identity(path), folder=tmp_path / "k")
    assert _read(store, "w") == matrix.T.tobytes()
    store.close()


def test_building_needs_little_memory(tmp_path: Path) -> None:
    nbytes = 160 << 20
    program = _program(BlobSource("w", nbytes, "float32", (nbytes // 4,), fill="00000040"))
    if not memory.reset_peak():
        pytest.skip("this system does not allow it")
    before = memory.current_rss_nbytes()
    WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k").close()
    assert memory.peak_rss_nbytes() - before < 32 << 20


RANGES = ((5, 100, 3), (4096, 8192, 0), (1, 200_001, 1), (4097, 300_000, 0), (1 << 12, 1 << 18, 64), (0, 0, 0))


@pytest.fixture(scope="module")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightStore, bytes]:
    folder = tmp_path_factory.mktemp("kept")
    content = np.random.default_rng(1).bytes(3 << 20)
    (folder / "w").write_bytes(content)
    blob = BlobSource("w", len(content), "uint8", (len(content),), path=str(folder / "w"))
    return WeightStore.open_or_build(_program(blob), identity=IDENTITY, folder=folder / "k"), content


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2 << 20), st.integers(0, 1 << 20), st.integers(0, 9000), st.integers(1, 64))
def test_any_range_goes_to_any_address(
    _kept: tuple[WeightStore, bytes], start: int, nbytes: int, at: int, blocks: int
) -> None:
    store, content = _kept
    arena = Arena(nbytes + at + 4096)
    store.read("w", start, arena.view(at, nbytes), chunk=blocks * 4096)
    assert bytes(arena.view(at, nbytes)) == content[start : start + nbytes]
    assert not any(arena.view(0, at)) and not any(arena.view(at + nbytes, 4096))  # nothing beside it is written
    arena.close()


def test_changed_and_missing_sources_are_refused(tmp_path: Path) -> None:
    matrix = _matrix()
    path = _file(tmp_path, matrix)
    program, identity, folder = _program(_blob(path, matrix)), _identity(path), tmp_path / "k"
    WeightStore.open_or_build(program, identity=identity, folder=folder).close()
    os.utime(path, ns=(1, 12345))
    with pytest.raises(PlanMismatchError, match=r"changed after planning.*now 12345; plan again"):
        WeightStore.open_or_build(program, identity=identity, folder=folder)
    path.unlink()
    with pytest.raises(PlanMismatchError, match="cannot be found"):
        WeightStore.open_or_build(program, identity=identity, folder=folder)


def test_a_source_that_is_too_short_is_refused(tmp_path: Path) -> None:
    matrix = _matrix()
    path = _file(tmp_path, matrix)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="get the whole file"):
        WeightStore.open_or_build(_program(_blob(path, matrix)), identity=_identity(path), folder=tmp_path / "k")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".k.lock", "weights"]


@pytest.mark.parametrize("damage", ["index", "length", "schema", "origin"])
def test_a_store_that_does_not_fit_is_made_again(tmp_path: Path, damage: str) -> None:
    matrix = _matrix()
    path = _file(tmp_path, matrix)
    program, identity, folder = _program(_blob(path, matrix)), _identity(path), tmp_path / "k"
    WeightStore.open_or_build(program, identity=identity, folder=folder).close()
    index = folder / "index.json"
    if damage == "index":
        index.write_bytes(index.read_bytes()[:-7])
    elif damage == "length":
        os.truncate(folder / "weights.bin", 8192)
    elif damage == "schema":
        index.write_bytes(index.read_bytes().replace(b'"schema":1', b'"schema":0'))
    else:
        identity["engine"] = "another"
    store = WeightStore.open_or_build(program, identity=identity, folder=folder)
    assert _read(store, "w") == matrix.tobytes()
    assert sorted(p.name for p in folder.iterdir()) == ["index.json", "weights.bin"]
    store.close()


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((1000, 1000), dtype=np.float32)
    path = _file(tmp_path, matrix)
    program, identity, folder = _program(_blob(path, matrix)), _identity(path), tmp_path / "k"
    WeightStore.open_or_build(program, identity=identity, folder=folder).close()
    with open(folder / "weights.bin", "r+b") as file:
        file.seek((2 << 20) + 77)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    store = WeightStore.open_or_build(program, identity=identity, folder=folder)
    _read(store, "w", 0, 2 << 20)
    with pytest.raises(ExecutionError, match=r"blob 'w' is damaged in bytes \[2097152, 3145728\).*CRC-32 should be"):
        _read(store, "w", (2 << 20) + 4096, 100)  # a part whose own bytes are right
    with pytest.raises(ExecutionError, match="remove that folder"):
        _read(store, "w")
    store.close()


def _little(_: Path) -> int:
    return 1000


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _program(BlobSource("w", 64 << 20, "uint8", (64 << 20,), fill="07"))
    folder = tmp_path / "k"
    with monkeypatch.context() as patch:
        patch.setattr(directio, "free_nbytes", _little)
        with pytest.raises(ExecutionError, match=r"needs 67108864 bytes of disk, 1000 bytes are free"):
            WeightStore.open_or_build(program, identity=IDENTITY, folder=folder)
    assert [p.name for p in tmp_path.iterdir()] == [".k.lock"]
    calls = 0
    write = os.pwritev

    def full(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(ExecutionError, match="No space left"):
            WeightStore.open_or_build(program, identity=IDENTITY, folder=folder)
    assert [p.name for p in tmp_path.iterdir()] == [".k.lock"]


def test_what_a_dead_builder_left_is_removed(tmp_path: Path) -> None:
    remains = tmp_path / ".k.x1.partial"
    remains.mkdir()
    (remains / "weights.bin").write_bytes(b"half")
    program = _program(BlobSource("w", 8, "uint8", (8,), fill="07"))
    WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k").close()
    assert not remains.exists()


def test_what_a_new_store_replaced_goes_though_its_builder_died_then(tmp_path: Path) -> None:
    program = _program(BlobSource("w", 8, "uint8", (8,), fill="07"))
    WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k").close()
    replaced = tmp_path / "k" / "old"
    replaced.mkdir()
    (replaced / "weights.bin").write_bytes(b"of another version")
    WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k").close()
    assert not replaced.exists()


def _build_in_child(folder: Path, results: Any) -> None:
    built: list[int] = []
    program = _program(BlobSource("w", 32 << 20, "uint8", (32 << 20,), fill="07"))

    def note(done: int, _: int) -> None:
        built.append(done)

    WeightStore.open_or_build(program, identity=IDENTITY, folder=folder, progress=note).close()
    results.put(bool(built))


def test_of_concurrent_builders_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_build_in_child, args=(tmp_path / "k", results)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert sorted(results.get(timeout=10) for _ in children) == [False, False, True]


@pytest.mark.parametrize("nbytes", [1, 4096, 10_000, 300_000])
@pytest.mark.parametrize("at", [0, 64])
@pytest.mark.parametrize("direct", [True, False])
def test_scratch_files_give_back_what_they_got(tmp_path: Path, nbytes: int, at: int, *, direct: bool) -> None:
    file = DirectFile.scratch(tmp_path, 1 << 20)
    if not direct:
        file.close()
        path = tmp_path / "buffered"
        file = DirectFile(os.open(path, os.O_RDWR | os.O_CREAT), str(path), direct=False)
    content = np.random.default_rng(0).bytes(nbytes)
    arena = Arena(nbytes + at)
    arena.view(at, nbytes)[:] = content
    file.write_from(arena.view(at, nbytes), 8192, chunk=8192)
    arena.view(at, nbytes)[:] = bytes(nbytes)
    file.read_into(arena.view(at, nbytes), 8192, chunk=8192)
    assert bytes(arena.view(at, nbytes)) == content
    arena.close()
    file.close()
    assert direct == (list(tmp_path.iterdir()) == [])


def test_short_reads_are_continued_and_endless_ones_reported(
    _kept: tuple[WeightStore, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, content = _kept
    read = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return read(descriptor, [buffers[0][: max(4096, len(buffers[0]) // 3 // 4096 * 4096)]], offset) - 100

    monkeypatch.setattr(os, "preadv", short)
    with pytest.raises(ExecutionError, match=r"at offset 0 gives no more bytes: wanted 4096, got 3996"):
        _read(store, "w", 0, 4096)

    def half(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return read(descriptor, [buffers[0][: max(4096, len(buffers[0]) // 8192 * 4096)]], offset)

    monkeypatch.setattr(os, "preadv", half)
    assert _read(store, "w", 5, 1 << 20) == content[5 : 5 + (1 << 20)]


def _refused(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_cache_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole stores in it are used, without a lock; others cannot be made."""
    program = _program(BlobSource("w", 8, "uint8", (8,), fill="07"))
    WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k").close()
    (tmp_path / ".k.lock").unlink()
    monkeypatch.setattr(fcntl, "flock", _refused)
    with WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k") as store:
        assert _read(store, "w") == bytes([7]) * 8
    with pytest.raises(ExecutionError, match=r"Permission denied; set TENSORSTOW_CACHE"):
        WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "l")


def test_a_cache_without_a_folder_for_stores(tmp_path: Path) -> None:
    (tmp_path / "stores").write_bytes(b"")
    program = _program(BlobSource("w", 8, "uint8", (8,), fill="07"))
    with pytest.raises(ExecutionError, match="set TENSORSTOW_CACHE"):
        WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "stores" / "k")


def test_a_disk_that_takes_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _program(BlobSource("w", 8, "uint8", (8,), fill="07"))
    monkeypatch.setattr(tempfile, "mkdtemp", _refused)
    with pytest.raises(ExecutionError, match="set TENSORSTOW_CACHE"):
        WeightStore.open_or_build(program, identity=IDENTITY, folder=tmp_path / "k")
