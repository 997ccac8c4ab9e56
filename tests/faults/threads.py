"""Faults of threads: those that move bytes end, or cannot be started, or are not there after a fork."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tensorstow.executors import open_executor
from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime.transfer import Lane
from tests.faults.cases import unclear_of
from tests.faults.outcome import Outcome, fault
from tests.faults.subject import cache_in, run, same_bits, shared_cache, shared_subject

WAIT_S = 60.0
"""Nothing here takes as long, on any box: who waits longer waits for what will not come."""


def ours() -> list[str]:
    """Names of the threads of ours that live."""
    return [t.name for t in threading.enumerate() if t.name.startswith("tensorstow")]


@fault("death of a transfer thread")
def dead_thread(folder: Path, rng: np.random.Generator) -> Outcome:
    """A thread ends outside of a request, where nothing is caught: the pass is refused, and so is the next one; a new
    executor is right."""
    subject, method = shared_subject(), str(rng.choice(["take", "complete"]))
    kind = [MemoryError, KeyError, SystemExit][int(rng.integers(3))]
    with cache_in(shared_cache()), open_executor(subject.file) as executor:
        executor.run(subject.inputs)
        with patch.object(Lane, method, side_effect=kind("injected")) as touched:
            said = [_refusal(executor, subject.inputs)]
        said.append(_refusal(executor, subject.inputs))
        executor.close()
        left = ours()
        right = same_bits(run(subject), subject.expected)
    unclear = next((u for u, _ in said if u), "")
    return Outcome(touched.called, not right, bool(left), unclear, str(said))


def _refusal(executor: object, inputs: object) -> tuple[str, str]:
    """What is unclear about the error of a pass, and the error; a pass that waits for ever counts as unclear."""
    found: list[tuple[str, str]] = []

    def call() -> None:
        try:
            executor.run(inputs)  # type: ignore[attr-defined]
        except ExecutionError as error:
            found.append((unclear_of(error), str(error)))
        else:
            found.append(("an answer", ""))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    return found[0] if found else (f"waits for {WAIT_S} s and more", "")


@fault("threads that cannot be started")
def no_threads(folder: Path, rng: np.random.Generator) -> Outcome:
    """The system gives none, or fewer than are wanted: refused, none is left behind, the next start is right."""
    subject, allowed = shared_subject(), int(rng.integers(0, 3))
    start, count, unclear = threading.Thread.start, 0, "it runs without its threads"

    def limited(thread: threading.Thread) -> None:
        nonlocal count
        if thread.name.startswith("tensorstow"):
            count += 1
            if count > allowed:
                raise RuntimeError("can't start new thread")
        start(thread)

    with cache_in(shared_cache()):
        with patch.object(threading.Thread, "start", limited):
            try:
                open_executor(subject.file).close()
            except ExecutionError as error:
                unclear = unclear_of(error)
        left = ours()
        right = same_bits(run(subject), subject.expected)
    return Outcome(count > allowed, not right, bool(left), unclear if count > allowed else "")


@fault("a fork of a process that runs a plan")
def forked_child(folder: Path, rng: np.random.Generator) -> Outcome:
    """The child has the executor and none of its threads: it is told so, and does not wait for ever. The parent goes
    on."""
    subject = shared_subject()
    with cache_in(shared_cache()), open_executor(subject.file) as executor:
        executor.run(subject.inputs)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                executor.load()
            except ExecutionError as error:
                os.write(writer, (unclear_of(error) or "clear").encode()[:4000])
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode()
        os.waitpid(child, 0)
        right = same_bits(executor.run(subject.inputs), subject.expected)
    return Outcome(True, not right, unclear="" if said == "clear" else said or "the child says nothing", said=said)
