"""Faults of processes: kills at every kind of moment, two that share a store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tensorstow.executors import open_executor
from tensorstow.ir.errors import ExecutionError
from tensorstow.ir.files import read_plan, write_plan
from tensorstow.ir.program import BlobSource, Program
from tensorstow.runtime.store import INDEX, WEIGHTS, WeightStore
from tests.faults.cases import unclear_of
from tests.faults.files import flip
from tests.faults.outcome import Outcome, fault
from tests.faults.subject import (
    ROOT,
    cache_in,
    same_bits,
    shared_cache,
    shared_folder,
    shared_subject,
)

IDENTITY: dict[str, Any] = {"engine": "test", "files": []}
BLOB_NBYTES = 5 << 20
CALLS = ("open", "pwritev", "fsync", "rename", "replace", "mkdir", "posix_fallocate", "write", "chmod", "unlink")
"""What the steps of building a store and writing a plan are made of; a process may be killed before any of them."""


@contextmanager
def killed_before(number: int) -> Generator[None]:
    """The process kills itself, as `kill -9` does, before its `number`-th call of the system (of those in CALLS)."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return call(*arguments, **options)

        return instead

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    yield


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; how it ended: 0, an exit status, or minus the signal that killed it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return -os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else os.WEXITSTATUS(ended)


def blobs(folder: Path, rng: np.random.Generator) -> tuple[Program, dict[str, bytes]]:
    """A program of two blobs: one as it lies in a file, one transposed; and what a store must hold of them."""
    shape = (BLOB_NBYTES // 4 // 1024, 1024)
    plain, turned = (rng.integers(0, 255, (shape[0], shape[1] * 4), np.uint8).view(np.uint32) for _ in range(2))
    wanted: dict[str, bytes] = {}
    sources: list[BlobSource] = []
    for name, array, transposed in (("a", plain, False), ("b", turned, True)):
        path = folder / f"{name}.bin"
        path.write_bytes(array.tobytes())
        wanted[name] = np.ascontiguousarray(array.T if transposed else array).tobytes()
        sources.append(BlobSource(name, array.nbytes, "float32", shape, path=str(path), transposed=transposed))
    return Program("test", {}, {}, tuple(sources), (), ()), wanted


def build(program: Program, folder: Path) -> WeightStore:
    """Open or build the store in `folder`."""
    return WeightStore.open_or_build(program, identity=IDENTITY, folder=folder)


def holds(store: WeightStore, wanted: dict[str, bytes]) -> bool:
    """Whether all blobs of an open store are as they must be."""
    for name, content in wanted.items():
        found = memoryview(bytearray(len(content)))
        store.read(name, 0, found)
        if found.tobytes() != content:
            return False
    return True


@fault("kill -9 while repacking")
def killed_while_repacking(folder: Path, rng: np.random.Generator) -> Outcome:
    """Killed before some call of the system; the next start builds the store, and nothing else is left."""
    program, wanted = blobs(folder, rng)
    place, number = folder / "stores" / "k", int(rng.integers(0, 30))
    old = rng.random() < 0.3
    if old:  # an unusable one, of another version, is there already
        build(program, place).close()
        index = place / INDEX
        index.write_bytes(index.read_bytes().replace(b'"schema":1', b'"schema":0'))

    def work() -> None:
        with killed_before(number):
            build(program, place)

    ended = in_child(work)
    with build(program, place) as store:
        right = holds(store, wanted)
    left = sorted(p.name for p in place.parent.iterdir()) + sorted(p.name for p in place.iterdir())
    lost = left != [".k.lock", "k", INDEX, "weights.bin"]
    return Outcome(ended == -signal.SIGKILL, not right, lost, said=f"call {number}: {left}")


@fault("kill -9 while writing a plan")
def killed_while_writing(folder: Path, rng: np.random.Generator) -> Outcome:
    """The old plan or the new one is there, whole; after the next writing, nothing else."""
    subject, path, number = shared_subject(), folder / "plan.json", int(rng.integers(0, 6))
    write_plan(subject.file, path)
    with cache_in(shared_cache()):
        other = _other_plan()

    def work() -> None:
        with killed_before(number):
            write_plan(other, path)

    ended = in_child(work)
    found = read_plan(path)
    left = sorted(p.name for p in folder.iterdir())
    write_plan(other, path)
    lost = read_plan(path) != other or [p.name for p in folder.iterdir()] != [path.name]
    return Outcome(ended == -signal.SIGKILL, found not in (subject.file, other), lost, said=f"call {number}: {left}")


def _other_plan() -> Any:
    from dataclasses import replace

    return replace(shared_subject().file, fixed_nbytes=1 << 20)


RUNNER = """
import json, os, resource, signal, sys
import numpy as np
from pathlib import Path
from tensorstow.executors import open_executor, read_runnable
plan, inputs, outputs, how, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
feeds = dict(np.load(inputs))
if how == "kill":
    read, count = os.preadv, 0
    def counted(*arguments):
        global count
        count += 1
        if count > number:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments)
    os.preadv = counted
from tensorstow.ir.errors import TensorstowError
file = read_runnable(plan)
if how == "limit":
    with open_executor(file) as executor:
        executor.run(feeds)
    size = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + number, size + number))
try:
    with open_executor(file) as executor:
        for _ in range(3):
            found = executor.run(feeds)
except TensorstowError as error:
    print(json.dumps({"refused": str(error), "kind": type(error).__name__}))
else:
    np.savez(outputs, **found)
    print(json.dumps({"ran": True}))
"""


def runner(folder: Path, how: str, number: int) -> tuple[int, str, str]:
    """Run the shared plan in a process of its own: exit status, stdout, stderr."""
    subject = shared_subject()
    plan, inputs = folder / "plan.json", folder / "inputs.npz"
    write_plan(subject.file, plan)
    np.savez(inputs, **subject.inputs)  # pyright: ignore[reportArgumentType]
    command = [sys.executable, "-c", RUNNER, str(plan), str(inputs), str(folder / "outputs.npz"), how, str(number)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT, env=environment(folder)
    )
    return done.returncode, done.stdout, done.stderr


def environment(folder: Path) -> dict[str, str]:
    """That of a process with a cache in `folder`, which imports this tree."""
    return {**os.environ, "TENSORSTOW_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@fault("kill -9 while running", costly=True)
def killed_while_running(folder: Path, rng: np.random.Generator) -> Outcome:
    """Killed at some read, while repacking or in a pass. The next start, here, is right, and no part of a store is
    left; the model is as it was."""
    subject, number = shared_subject(), int(rng.integers(0, 24))
    before = {p.name: p.read_bytes() for p in shared_folder().iterdir() if p.is_file()}
    ended, out, said = runner(folder, "kill", number)
    cache = folder / "cache"
    with cache_in(cache), open_executor(subject.file) as executor:
        found = executor.run(subject.inputs)
    parts = [p.name for p in cache.rglob("*") if p.name.endswith(".partial") or p.name.startswith(".scratch")]
    lost = bool(parts) or before != {p.name: p.read_bytes() for p in shared_folder().iterdir() if p.is_file()}
    killed = ended == -signal.SIGKILL
    unclear = "" if killed else f"exit status {ended}: {out} {said[-500:]}"
    return Outcome(True, not same_bits(found, subject.expected), lost, unclear, f"read {number}: {parts}")


@fault("two processes that share a store")
def shared_store(folder: Path, rng: np.random.Generator) -> Outcome:
    """Three open or build one store at once, and read it; one of them finds an unusable one there, or is killed while
    it builds. Those that live read what they must."""
    program, wanted = blobs(folder, rng)
    place, damaged, number = folder / "stores" / "k", rng.random() < 0.5, int(rng.integers(4, 30))
    context = multiprocessing.get_context("fork")
    if damaged:
        build(program, place).close()
        (place / INDEX).write_bytes(b"{}")

    def work(killed: bool) -> None:
        with killed_before(number) if killed else patch.dict({}):
            with build(program, place) as store:
                status = 0 if holds(store, wanted) else 9
            os._exit(status)

    children = [context.Process(target=work, args=(k == 0,)) for k in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    ended = [c.exitcode for c in children]
    with build(program, place) as store:
        right = holds(store, wanted)
    left = sorted(p.name for p in place.parent.iterdir())
    unclear = "" if all(e in (0, 9, -signal.SIGKILL) for e in ended) and ended[1:] != [None] * 2 else f"ended {ended}"
    return Outcome(True, not right or 9 in ended, left != [".k.lock", "k"], unclear, f"{ended} {left}")


@fault("bit flips in rows of a table")
def flips_in_rows(folder: Path, rng: np.random.Generator) -> Outcome:
    """A bit in a table that stays in the store, of which a few rows are read: an error where a row of that MiB is."""
    program, wanted = blobs(folder, rng)
    place, row_nbytes, unclear, wrong = folder / "stores" / "k", 4096, "no row is refused", False
    build(program, place).close()
    at = int(rng.integers(BLOB_NBYTES))
    flip(place / WEIGHTS, at, int(rng.integers(8)))
    with build(program, place) as store:
        for row in (at // row_nbytes, *rng.integers(0, BLOB_NBYTES // row_nbytes, 8).tolist()):
            found = bytearray(row_nbytes)
            try:
                store.read_rows("a", row * row_nbytes, memoryview(found))
            except ExecutionError as error:
                unclear = unclear_of(error)
            else:
                wrong = wrong or bytes(found) != wanted["a"][row * row_nbytes : (row + 1) * row_nbytes]
    return Outcome(True, wrong, unclear=unclear)


@fault("a store made anew under a reader")
def rebuilt_under_reader(folder: Path, rng: np.random.Generator) -> Outcome:
    """A process of another version replaces the store while this one reads it: this one reads what it opened."""
    program, wanted = blobs(folder, rng)
    place = folder / "stores" / "k"
    with build(program, place) as store:
        other = {"engine": "another", "files": []}

        def work() -> None:
            WeightStore.open_or_build(program, identity=other, folder=place).close()

        ended = in_child(work)
        right = holds(store, wanted)
    with build(program, place) as again:
        right = right and holds(again, wanted)
    return Outcome(ended == 0, not right)
