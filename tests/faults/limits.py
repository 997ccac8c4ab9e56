"""Faults of memory: limits of a process and of its cgroup below what a plan promises, too little that is available."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tensorstow.executors import measure_fixed, open_executor
from tensorstow.ir.errors import ExecutionError
from tensorstow.ir.files import PlanFile, write_plan
from tests.faults.outcome import Outcome, SkippedFaultError, fault
from tests.faults.processes import environment, runner
from tests.faults.subject import BUDGET_NBYTES, ROOT, cache_in, same_bits, shared_cache, shared_subject

JOINING = """
import os, sys
with open(sys.argv[1], "w") as group:
    group.write("0")
os.execv(sys.executable, [sys.executable, "-m", "tensorstow", *sys.argv[2:]])
"""


@fault("a memory limit just below the plan", costly=True)
def memory_limit(folder: Path, rng: np.random.Generator) -> Outcome:
    """The process may take a little less address space than the arena needs (RLIMIT_AS): refused before a pass."""
    if not Path("/proc/self/status").exists():
        raise SkippedFaultError("there is no /proc/self/status to learn the size of a process from")
    room = int(rng.uniform(0, 0.9) * BUDGET_NBYTES)
    ended, out, said = runner(folder, "limit", room)
    try:
        answer = json.loads(out)
    except ValueError:
        return Outcome(True, unclear=f"exit status {ended}: {out} {said[-800:]}")
    if "ran" in answer:
        with np.load(folder / "outputs.npz") as found:
            wrong = not same_bits({n: found[n] for n in found.files}, shared_subject().expected)
        return Outcome(wrong, wrong, said="ran all the same")
    return Outcome(True, unclear="" if len(answer["refused"]) > 20 else str(answer), said=answer["refused"])


@fault("a memory cgroup just below the promise", costly=True)
def cgroup_limit(folder: Path, rng: np.random.Generator) -> Outcome:
    """`tensorstow run` in a cgroup that allows up to 4 MiB less than the plan promises to take: refused with both
    numbers and status 2 before anything is read."""
    file, less = promised(), int(rng.integers(1, 1025)) * 4096
    limit, plan = (file.promised_peak_nbytes - less) // 4096 * 4096, folder / "plan.json"
    write_plan(file, plan)
    with memory_cgroup(limit) as group:
        command = [sys.executable, "-c", JOINING, str(group / "cgroup.procs"), "run", str(plan), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT, env=environment(folder)
        )
    try:
        said = str(json.loads(done.stdout)["error"])
    except (ValueError, KeyError):
        return Outcome(True, unclear=f"exit status {done.returncode}: {done.stdout[-400:]} {done.stderr[-400:]}")
    clear = done.returncode == 2 and str(limit) in said and str(file.promised_peak_nbytes) in said
    touched = [p.name for p in folder.iterdir() if p != plan and any(p.iterdir())]
    return Outcome(True, lost_data=bool(touched), unclear="" if clear else f"{done.returncode}: {said}", said=said)


@cache
def promised() -> PlanFile:
    """The shared plan, with what the process that runs it takes beside it."""
    with cache_in(shared_cache()):
        return replace(shared_subject().file, fixed_nbytes=measure_fixed(shared_subject().file))


@contextmanager
def memory_cgroup(limit_nbytes: int) -> Generator[Path]:
    """A memory cgroup below the topmost one that we may make one in, v1 or v2, and gone afterwards."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"faults.{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / name).exists():
                continue
            (group / name).write_text(str(limit_nbytes))
            yield group
            return
        finally:
            group.rmdir()
    raise SkippedFaultError("no memory cgroup can be made here; it takes root, and a hierarchy that may be written")


@fault("available memory just below the arena")
def too_little_available(folder: Path, rng: np.random.Generator) -> Outcome:
    """What the system, or a memory cgroup, has left is less than the arena: refused with both numbers, right later."""
    from tensorstow.runtime import arena

    subject = shared_subject()
    available, unclear = subject.file.plan.arena_nbytes["dram"] - int(rng.integers(1, 4096)), "it runs in less"
    with cache_in(shared_cache()):
        with patch.object(arena, "available_nbytes", lambda: available):
            try:
                open_executor(subject.file).close()
            except ExecutionError as error:
                unclear = "" if str(available) in str(error) and "--tier" in str(error) else str(error)
        with open_executor(subject.file) as executor:
            right = same_bits(executor.run(subject.inputs), subject.expected)
    return Outcome(True, not right, unclear=unclear)
