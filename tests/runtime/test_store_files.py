"""Tests of runtime/store_files.py: weights read where they lie."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.program import BlobSource, FilePiece, Program, SourceFile
from tensorstow.runtime.arena import Arena
from tensorstow.runtime.reading import WeightReader
from tensorstow.runtime.store import WeightStore
from tensorstow.runtime.store_files import FileStore

NBYTES = (3 << 20) + 1234  # the last block is short


def program(*blobs: BlobSource) -> Program:
    return Program("test", {}, {}, blobs, (), ())


def whole(path: Path) -> BlobSource:
    nbytes = path.stat().st_size
    return BlobSource(path.name, nbytes, "uint8", (nbytes,), path=str(path))


def stated(*paths: Path) -> tuple[SourceFile, ...]:
    return tuple(SourceFile(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)


def read(store: WeightReader, blob: str, start: int, nbytes: int, at: int = 0, chunk: int = 1 << 20) -> bytes:
    arena = Arena(at + nbytes + 4096)
    store.read(blob, start, arena.view(at, nbytes), chunk=chunk)
    found = bytes(arena.view(at, nbytes))
    assert not any(arena.view(0, at)) and not any(arena.view(at + nbytes, 4096))  # nothing beside it is written
    arena.close()
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes, bytes]:
    folder = tmp_path_factory.mktemp("files")
    a, b = np.random.default_rng(1).bytes(NBYTES), np.random.default_rng(2).bytes(100_001)
    (folder / "a").write_bytes(a)
    (folder / "b").write_bytes(b)
    return folder / "a", folder / "b", a, b


Kept = tuple[Path, Path, bytes, bytes]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, NBYTES), st.integers(0, NBYTES), st.integers(0, 9000), st.integers(1, 64), st.booleans())
def test_any_range_goes_to_any_address(kept: Kept, start: int, nbytes: int, at: int, blocks: int, same: bool) -> None:
    path, _, content, _ = kept
    nbytes = min(nbytes, NBYTES - start)
    at = at // 4096 * 4096 + start % 4096 if same else at
    with FileStore.open(program(whole(path)), stated(path)) as store:
        assert read(store, "a", start, nbytes, at, blocks * 4096) == content[start : start + nbytes]


def test_the_last_block_of_a_file_need_not_be_whole(kept: Kept) -> None:
    path, _, content, _ = kept
    with FileStore.open(program(whole(path)), stated(path)) as store:
        begin = NBYTES // 4096 * 4096
        assert read(store, "a", begin, NBYTES - begin) == content[begin:]
        assert read(store, "a", begin - 8192, NBYTES - begin + 8192) == content[begin - 8192 :]
        assert read(store, "a", NBYTES - 1, 1) == content[-1:]


PIECES = st.lists(st.tuples(st.booleans(), st.integers(0, 90_000), st.integers(0, 9_000)), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(PIECES, st.data())
def test_pieces_of_files_are_one_blob(kept: Kept, pieces: list[tuple[bool, int, int]], data: st.DataObject) -> None:
    path_a, path_b, a, b = kept
    found = tuple(FilePiece(str(path_b if which else path_a), at, n) for which, at, n in pieces)
    expected = b"".join((b if which else a)[at : at + n] for which, at, n in pieces)
    start = data.draw(st.integers(0, len(expected)))
    nbytes = data.draw(st.integers(0, len(expected) - start))
    blob = BlobSource("w", len(expected), "uint8", (len(expected),), pieces=found)
    with FileStore.open(program(blob), stated(path_a, path_b)) as store:
        assert store.entries["w"].nbytes == len(expected)
        assert read(store, "w", start, nbytes) == expected[start : start + nbytes]


def test_a_repacked_store_holds_the_same_bytes(kept: Kept, tmp_path: Path) -> None:
    path_a, path_b, a, b = kept
    pieces = (FilePiece(str(path_b), 7, 1000), FilePiece(str(path_a), 3, 2 << 20))
    blob = BlobSource("w", 1000 + (2 << 20), "uint8", (1000 + (2 << 20),), pieces=pieces)
    identity = {"engine": "test", "files": []}
    with WeightStore.open_or_build(program(blob), identity=identity, folder=tmp_path / "k") as store:
        assert read(store, "w", 0, blob.nbytes) == b[7:1007] + a[3 : 3 + (2 << 20)]


def test_rows_are_read_from_the_tables_own_beginning(kept: Kept) -> None:
    path, _, content, _ = kept
    table = BlobSource("table", 40 * 1000, "float32", (1000, 10), path=str(path), file_offset=12345)
    with FileStore.open(program(table), stated(path)) as store:
        row = bytearray(40)
        store.read_rows("table", 999 * 40, memoryview(row))
        assert bytes(row) == content[12345 + 999 * 40 : 12345 + 1000 * 40]


@pytest.mark.parametrize("how", ["rewritten", "cut", "grown", "touched"])
def test_a_file_that_changes_while_it_is_read_is_found(tmp_path: Path, how: str) -> None:
    path = tmp_path / "shard"
    path.write_bytes(np.random.default_rng(0).bytes(1 << 20))
    with FileStore.open(program(whole(path)), stated(path)) as store:
        read(store, "shard", 0, 1 << 20)
        if how == "rewritten":
            path.write_bytes(bytes(1 << 20))
        elif how == "cut":
            os.truncate(path, 5000)
        elif how == "grown":
            with path.open("ab") as file:
                file.write(b"more")
        else:
            os.utime(path)
        with pytest.raises(ExecutionError, match=r"shard' was changed while .* had 1048576 bytes .*"):
            read(store, "shard", 8192, 100_000)
        with pytest.raises(ExecutionError, match="was changed"):
            store.read_rows("shard", 0, memoryview(bytearray(8)))


def test_a_file_replaced_by_another_is_still_read(tmp_path: Path) -> None:
    """What is open stays what it was: a new file of the same name is another file."""
    path = tmp_path / "shard"
    content = np.random.default_rng(0).bytes(10_000)
    path.write_bytes(content)
    with FileStore.open(program(whole(path)), stated(path)) as store:
        (tmp_path / "new").write_bytes(bytes(10_000))
        (tmp_path / "new").replace(path)
        assert read(store, "shard", 0, 10_000) == content


def test_files_that_are_not_as_they_were_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(10_000))
    before, blob = stated(path), whole(path)
    os.truncate(path, 9_000)
    with pytest.raises(PlanMismatchError, match=r"shard' had size in bytes 10000, now 9000; plan again"):
        FileStore.open(program(blob), before)
    with pytest.raises(InputError, match=r"bytes \[0, 10000\) of '.*shard', which has 9000; get the whole file"):
        FileStore.open(program(blob), ())
    path.unlink()
    with pytest.raises(PlanMismatchError, match="cannot be found"):
        FileStore.open(program(blob), before)
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        FileStore.open(program(blob), ())


def test_what_is_not_in_a_file_as_it_is_needed(kept: Kept) -> None:
    path, _, _, _ = kept
    for blob in (
        BlobSource("w", 4, "float32", (1,)),
        BlobSource("w", 4, "float32", (1,), inline="00000000"),
        BlobSource("w", 8, "float32", (1, 2), path=str(path), transposed=True),
    ):
        with pytest.raises(InputError, match="lies in no file as it is needed"):
            FileStore.open(program(blob), ())
    with pytest.raises(InputError, match="should have 9 bytes, its pieces have 8"):
        FileStore.open(program(BlobSource("w", 9, "uint8", (9,), pieces=(FilePiece(str(path), 0, 8),))), ())
