"""Faults of files: bits that flipped, ends that are missing, stores and plans of another version of the code."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tensorstow.executors import open_executor, read_runnable
from tensorstow.ir.errors import ExecutionError, InputError
from tensorstow.ir.files import SCHEMA, read_plan, write_plan
from tensorstow.runtime import store as stores
from tests.faults.cases import unclear_of
from tests.faults.outcome import Outcome, fault
from tests.faults.subject import (
    Streamed,
    cache_in,
    run,
    same_bits,
    shared_cache,
    shared_folder,
    shared_subject,
    streamed,
)


def warm_copy(folder: Path) -> tuple[Streamed, Path]:
    """The shared subject with a cache of its own in `folder`, its store built; and that store's folder."""
    subject = shared_subject()
    with cache_in(shared_cache()):
        run(subject, 1)
    shutil.copytree(shared_cache(), folder / "cache", dirs_exist_ok=True)
    found = [p.parent for p in (folder / "cache" / "stores").glob("*/weights.bin")]
    return subject, next(p for p in found if _is_of(p, subject))


def _is_of(store: Path, subject: Streamed) -> bool:
    program = subject.file.program
    assert program is not None
    index = json.loads((store / stores.INDEX).read_text())
    return [b["blob"] for b in index["blobs"]] == [b.blob for b in program.blobs]


def flip(path: Path, at: int, bit: int) -> None:
    """Change one bit of a file, its times as they were."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _run_or_refuse(subject: Streamed, folder: Path) -> tuple[bool, str, str]:
    """Two passes from a new start: whether bits are wrong, what is unclear, what was said."""
    with cache_in(folder / "cache"):
        try:
            found = run(subject)
        except (ExecutionError, InputError) as error:
            return False, unclear_of(error), str(error)
    return not same_bits(found, subject.expected), "", "an answer"


@fault("bit flips in stored weights")
def flips_in_weights(folder: Path, rng: np.random.Generator) -> Outcome:
    """A bit anywhere in the repacked weights: an error that names the range, or a bit that nobody reads. When the
    folder is removed, as the error says, the next start is right."""
    subject, store = warm_copy(folder)
    weights = store / stores.WEIGHTS
    flip(weights, int(rng.integers(weights.stat().st_size)), int(rng.integers(8)))
    wrong, unclear, said = _run_or_refuse(subject, folder)
    shutil.rmtree(store)
    again, _, _ = _run_or_refuse(subject, folder)
    return Outcome("CRC-32" in said or wrong, wrong or again, unclear=unclear, said=said)


@fault("bit flips in the index of a store")
def flips_in_index(folder: Path, rng: np.random.Generator) -> Outcome:
    """A bit anywhere in the index: the store is made again, or its checksums do not fit, which is said."""
    subject, store = warm_copy(folder)
    index = store / stores.INDEX
    flip(index, int(rng.integers(index.stat().st_size)), int(rng.integers(8)))
    wrong, unclear, said = _run_or_refuse(subject, folder)
    return Outcome(True, wrong, unclear=unclear, said=said)


@fault("truncated stores")
def truncated_store(folder: Path, rng: np.random.Generator) -> Outcome:
    """Weights or index end early, or are empty: made again."""
    subject, store = warm_copy(folder)
    path = store / str(rng.choice([stores.WEIGHTS, stores.INDEX]))
    os.truncate(path, int(rng.integers(path.stat().st_size)))
    wrong, unclear, said = _run_or_refuse(subject, folder)
    return Outcome(True, wrong or said != "an answer", unclear=unclear, said=said)


@fault("a store cut while it is in use")
def store_cut_in_use(folder: Path, rng: np.random.Generator) -> Outcome:
    """The file loses its end between two passes: an error; the next start makes it again."""
    subject, store = warm_copy(folder)
    weights, unclear, wrong, said = store / stores.WEIGHTS, "", False, "an answer"
    with cache_in(folder / "cache"), open_executor(subject.file) as executor:
        executor.run(subject.inputs)
        os.truncate(weights, int(rng.integers(weights.stat().st_size // 2)))
        try:
            wrong = not same_bits(executor.run(subject.inputs), subject.expected)
        except ExecutionError as error:
            unclear, said = unclear_of(error), str(error)
    again, _, _ = _run_or_refuse(subject, folder)
    return Outcome(said != "an answer" or wrong, wrong or again, unclear=unclear, said=said)


OTHERS: dict[str, Callable[[dict[str, object]], object]] = {
    "older": lambda d: d.update(schema=0),
    "newer": lambda d: d.update(schema=stores.SCHEMA + 1),
    "newer, more entries": lambda d: d.update(compressed=False),
    "older, fewer entries": lambda d: d.pop("sources"),
    "other engine": lambda d: d["identity"].update(engine="onnxruntime 0.1") if isinstance(d["identity"], dict) else 0,
    "other form": lambda d: d.update(blobs={}),
}
"""How the index of a store that another version wrote differs."""


@fault("a store older or newer than the code")
def store_of_another_version(folder: Path, rng: np.random.Generator) -> Outcome:
    """Not used, and made again."""
    subject, store = warm_copy(folder)
    index = store / stores.INDEX
    document, before = json.loads(index.read_text()), index.read_bytes()
    OTHERS[str(rng.choice(sorted(OTHERS)))](document)
    index.write_text(json.dumps(document))
    wrong, unclear, said = _run_or_refuse(subject, folder)
    rebuilt = index.read_bytes() == before
    return Outcome(True, wrong, not rebuilt, unclear or ("" if said == "an answer" else said), said)


def _plan_file(folder: Path) -> Path:
    path = folder / "plan.json"
    write_plan(shared_subject().file, path)
    return path


def _refused(path: Path) -> tuple[bool, str, str]:
    """Whether a plan file that is not as it was written is taken for something else; what is unclear; what was said."""
    with cache_in(shared_cache()):
        try:
            found = read_runnable(path)
        except InputError as error:
            return False, unclear_of(error), str(error)
    return found != shared_subject().file, "", "read"


@fault("bit flips in plan files")
def flips_in_plans(folder: Path, rng: np.random.Generator) -> Outcome:
    """A bit anywhere: refused, or it did not matter (the plan is equal)."""
    path = _plan_file(folder)
    flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))
    wrong, unclear, said = _refused(path)
    return Outcome(True, wrong, unclear=unclear, said=said)


@fault("truncated plan files")
def truncated_plan(folder: Path, rng: np.random.Generator) -> Outcome:
    """Cut anywhere, or with bytes behind its end."""
    path = _plan_file(folder)
    size = path.stat().st_size
    if rng.random() < 0.2:
        path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 200))))
    else:
        os.truncate(path, int(rng.integers(size)))
    wrong, unclear, said = _refused(path)
    return Outcome(True, wrong or (said == "read" and path.stat().st_size < size - 1), unclear=unclear, said=said)


@fault("a plan older or newer than the code")
def plan_of_another_version(folder: Path, rng: np.random.Generator) -> Outcome:
    """Another schema, or the same with an entry that this version does not know or misses: refused in words."""
    from tensorstow.ir.codec import digest

    path = _plan_file(folder)
    document = json.loads(path.read_text())
    how = int(rng.integers(4))
    if how == 0:
        document["schema"] = SCHEMA[:-1] + str(int(SCHEMA[-1]) + int(rng.choice([-1, 1, 8])))
    elif how == 1:
        document["body"]["plan"]["colour"] = "green"
    elif how == 2:
        del document["body"]["plan"][str(rng.choice(["steps", "residencies", "certificate", "home_tier"]))]
    else:
        document["body"]["machine"]["tiers"][0]["kind"] = "memristor"
    document["digest"] = digest(document["body"])
    path.write_text(json.dumps(document))
    wrong, unclear, said = _refused(path)
    return Outcome(True, wrong or said == "read", unclear=unclear, said=said)


@fault("no room (ENOSPC) for a plan file")
def full_while_writing_a_plan(folder: Path, rng: np.random.Generator) -> Outcome:
    """The old file stays whole, and nothing lies beside it."""
    path = _plan_file(folder)
    before, unclear, touched = path.read_bytes(), "it was written without room", list[int]()

    def full(descriptor: int) -> None:
        touched.append(descriptor)
        raise OSError(int(rng.choice([errno.ENOSPC, errno.EDQUOT, errno.EIO])), "No space left on device")

    with patch.object(os, "fsync", full):
        try:
            write_plan(shared_subject().file, path)
        except InputError as error:
            unclear = unclear_of(error)
    lost = path.read_bytes() != before or [p.name for p in folder.iterdir()] != ["plan.json"]
    return Outcome(bool(touched), not_equal(path), lost, unclear)


def not_equal(path: Path) -> bool:
    """Whether a plan file is not the shared subject's."""
    return read_plan(path) != shared_subject().file


@fault("weights changed after planning")
def changed_model(folder: Path, rng: np.random.Generator) -> Outcome:
    """The model's data is written to, cut, replaced or removed: refused, and the file is left as it is."""
    subject = streamed(folder, int(rng.integers(1 << 30)))
    data = subject.model.with_name(subject.model.name + ".data")
    how = str(rng.choice(["written", "cut", "removed", "replaced"]))
    if how == "written":
        flip(data, int(rng.integers(data.stat().st_size)), int(rng.integers(8)))
        os.utime(data)
    elif how == "cut":
        os.truncate(data, int(rng.integers(data.stat().st_size)))
    elif how == "removed":
        data.unlink()
    else:
        data.with_suffix(".new").write_bytes(rng.bytes(data.stat().st_size))
        data.with_suffix(".new").replace(data)
    unclear, now = "it ran with other weights", data.read_bytes() if data.exists() else None
    with cache_in(folder / "cold"):
        try:
            run(subject)
        except InputError as error:
            unclear = unclear_of(error)
    return Outcome(True, False, now != (data.read_bytes() if data.exists() else None), unclear, how)


def shared_files() -> list[Path]:
    """Files of the shared subject's model, which no fault may change."""
    return sorted(p for p in shared_folder().iterdir() if p.is_file())
