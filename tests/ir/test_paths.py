"""Files that are whole or not there, and what killed writers leave."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest

from tensorstow.ir.errors import ExecutionError
from tensorstow.ir.paths import atomic_file, cache_dir, cache_scratch, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def killed_while_writing(path: Path) -> None:
    """A process of its own that ends, as by `kill -9`, with half of the file written."""
    child = os.fork()
    if not child:
        with atomic_file(path) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_what_a_killed_writer_left_goes_with_the_next_writing(tmp_path: Path) -> None:
    path = tmp_path / "plan[1].json"
    write_atomic(path, b"old")
    killed_while_writing(path)
    killed_while_writing(path)
    (left,) = (n for n in names(tmp_path) if n != path.name)  # the second found what the first left
    assert left.startswith(".plan[1].json.")
    assert path.read_bytes() == b"old"
    write_atomic(path, b"new")
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"new"


def test_what_others_write_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    path, swap = tmp_path / "plan.json", tmp_path / ".plan.json.swp"
    swap.write_bytes(b"an editor's")
    with atomic_file(path) as slow:
        slow.write(b"slow")
        write_atomic(path, b"quick")
        write_atomic(tmp_path / "json", b"another's name ends alike")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == [swap.name, "json", path.name]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_atomic(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert (names(tmp_path), path.read_bytes()) == ([path.name], b"old")


def test_a_cache_that_cannot_be_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    for path in (plain, plain / "below"):
        monkeypatch.setenv("TENSORSTOW_CACHE", str(path))
        with pytest.raises(ExecutionError, match=f"TENSORSTOW_CACHE names '{path}'"):
            cache_dir()


def test_a_folder_in_the_cache_goes_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path / "cache"))
    with cache_scratch() as folder:
        assert folder.parent == tmp_path / "cache"
        (folder / "file").write_bytes(b"x")
    assert names(tmp_path / "cache") == []


def test_a_cache_that_takes_no_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setenv("TENSORSTOW_CACHE", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ExecutionError, match=r"Read-only file system; set TENSORSTOW_CACHE"), cache_scratch():
        pass
