"""Inputs that do not fit, disks that fail, files of buffers that are none: one error, no file left half-written."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bad_input.wrong import BUDGET, files_in, refused
from tests.conftest import Cli, Said

pytestmark = pytest.mark.usefixtures("no_measuring")


X = np.zeros((2, 256), np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["misses", "'x'"]),
        ({"z": X}, ["misses", "'x'"]),
        ({"x": X, "z": X}, ["does not know", "'z'"]),
        ({"x": X[:1]}, ["'x'", "[2, 256]", "[1, 256]"]),
        ({"x": X.reshape(-1)}, ["'x'", "[2, 256]", "[512]"]),
        ({"x": X.astype(np.float64)}, ["'x'", "float32", "float64"]),
        ({"x": np.full((2, 256), "a")}, ["'x'", "float32"]),
    ],
    ids=["none", "other", "extra", "rows", "rank", "float64", "strings"],
)
def test_inputs_that_do_not_fit(
    cli: Cli, planned: Path, tmp_path: Path, arrays: dict[str, Any], words: list[str]
) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, **arrays)
    out = tmp_path / "out.npz"
    refused(cli("run", planned, "--input", path, "-o", out), *words)
    assert not out.exists()


def test_inputs_that_are_no_npz(cli: Cli, planned: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    refused(cli("run", planned, "--input", path), "in.npz", "No such file")
    path.write_bytes(b"no archive")
    refused(cli("run", planned, "--input", path), "in.npz")
    path.write_bytes(b"PK\3\4 and then nothing")
    refused(cli("run", planned, "--input", path), "in.npz")
    path.write_bytes(b"")
    refused(cli("run", planned, "--input", path), "in.npz")
    np.save(tmp_path / "in.npy", X)
    refused(cli("run", planned, "--input", tmp_path / "in.npy"), "in.npy", ".npz")
    path.write_bytes(pickle.dumps({"x": X}))
    refused(cli("run", planned, "--input", path), "in.npz")
    np.savez(path, x=np.array([print, None], object))
    refused(cli("run", planned, "--input", path), "in.npz", "pickle")
    np.savez(path, x=X)
    os.truncate(path, path.stat().st_size // 2)
    refused(cli("run", planned, "--input", path), "in.npz")


@pytest.mark.parametrize("fault", ["error", "short"])
def test_a_disk_that_fails_in_the_middle_of_a_run(
    cli: Cli, planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    assert cli("run", planned, "--repeat", 1).status == 0
    read = os.preadv

    def faulty(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if threading.current_thread() is threading.main_thread():
            return read(descriptor, buffers, offset)
        if fault == "error":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return 0

    out = tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", faulty)
        said = cli("run", planned, "-o", out)
    refused(said, "weights.bin", "Input/output error" if fault == "error" else "gives no more bytes", "wanted")
    assert not out.exists()
    assert cli("run", planned, "--repeat", 1).status == 0


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="no way to make a place unwritable")
@pytest.mark.parametrize("place", ["missing/plan.json", "folder", "file/plan.json"])
def test_outputs_that_cannot_be_written(cli: Cli, planned: Path, copied: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    before = files_in(tmp_path)
    where = tmp_path / place
    (tmp_path / "buffers.csv").write_text("id,lower,upper,size\na,0,2,4\n")
    before.add("buffers.csv")
    refused(cli("plan", copied, "--tier", BUDGET, "-o", where), "cannot write", str(where))
    refused(cli("run", planned, "-o", where), "cannot write", str(where))
    refused(cli("pack", tmp_path / "buffers.csv", "-o", where), "cannot write", str(where))
    assert files_in(tmp_path) == before


def test_a_disk_that_is_full_while_repacking(planned: Path, cache: Path) -> None:
    """A process of its own: the limit on file sizes cannot be taken back."""
    code = """
import resource, sys
from tensorstow.cli import run_cli
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.exit(run_cli(["run", sys.argv[1]]))
"""
    stores = cache / "stores"
    before = files_in(stores) if stores.exists() else set[str]()
    done = subprocess.run(
        [sys.executable, "-c", code, str(planned)], capture_output=True, text=True, check=False, timeout=60
    )
    refused(Said(done.returncode, done.stdout, done.stderr), "bytes", "TENSORSTOW_CACHE")
    left = {f for f in files_in(stores) - before if not f.endswith(".lock")}
    assert left == set()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["id,lower,upper,size"]),
        ("id,lower,size\n", ["upper"]),
        ("id,lower,upper,size\na,0,2\n", ["line 2", "size"]),
        ("id,lower,upper,size\na,0,x,4\n", ["line 2", "upper", "'x'"]),
        ("id,lower,upper,size\na,0,nan,4\n", ["line 2", "upper", "'nan'"]),
        ("id,lower,upper,size\na,3,3,4\n", ["line 2", "'a'", "[3, 3)"]),
        ("id,lower,upper,size\na,0,3,-4\n", ["line 2", "'a'", "-4"]),
        ("id,lower,upper,size\na,0,3,4\na,0,3,4\n", ["'a'", "names two"]),
        ('id,lower,upper,size,note\na,0,1,2,"x\nb,0,1,2,y\n', ["line 2", "quote"]),
        pytest.param('id,lower,upper,size,note\na,0,1,2,"x\n' + "b,0,1,2,y\n" * 20_000, ["quote"], id="a long quote"),
        ("id,lower,upper,size\na,0,3,4\nb,0,3,4,5\n", ["line 3", "5 cells", "4 columns"]),
    ],
)
def test_buffers_that_are_none(cli: Cli, tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "buffers.csv"
    path.write_text(content)
    refused(cli("pack", path, "-o", tmp_path / "out.csv"), "buffers.csv", *words)
    assert not (tmp_path / "out.csv").exists()
    path.write_bytes(b"\xff\xfe\0")
    refused(cli("pack", path), "buffers.csv")
    refused(cli("pack", tmp_path / "absent.csv"), "absent.csv", "No such file")
