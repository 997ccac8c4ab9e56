"""Faults of disks: reads that come short, fail or end, writes that find no room, time that passes, bits that flip.

All go through `os.preadv` and `os.pwritev`, which are what the runtime reads and writes with.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tensorstow.executors import Executor, open_executor
from tensorstow.ir.errors import ExecutionError
from tests.faults.cases import unclear_of
from tests.faults.outcome import Outcome, fault
from tests.faults.subject import cache_in, run, same_bits, shared_cache, shared_subject, streamed
from tests.runtime.plans import execute, feed, forked, spilling

BLOCK = 4096
Read = Callable[[int, list[memoryview], int], int]
Counted = list[int]

real_read, real_write = os.preadv, os.pwritev


@contextmanager
def reads(chosen: Callable[[int], bool], how: Read, *, lanes_only: bool = True) -> Generator[Counted]:
    """Requests whose number is `chosen` go through `how`; those of the main thread are neither counted nor touched
    where `lanes_only`. Gives a list with one entry for each that was touched."""
    touched, lock, count = Counted(), threading.Lock(), 0

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal count
        if lanes_only and threading.current_thread() is threading.main_thread():
            return real_read(descriptor, buffers, offset)
        with lock:
            number, count = count, count + 1
        if not chosen(number):
            return real_read(descriptor, buffers, offset)
        touched.append(number)
        return how(descriptor, buffers, offset)

    with patch.object(os, "preadv", read):
        yield touched


def failing(number: int) -> Callable[[int, list[memoryview], int], int]:
    """A request that fails with this errno."""

    def fail(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def writes(first: int, number: int) -> Generator[Counted]:
    """From the `first` request on, writing fails with this errno."""
    touched, count = Counted(), 0

    def write(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal count
        count += 1
        if count <= first:
            return real_write(descriptor, buffers, offset)
        touched.append(count)
        raise OSError(number, os.strerror(number))

    with patch.object(os, "pwritev", write):
        yield touched


def broken_pass(executor: Executor, words: str) -> tuple[bool, str, str]:
    """A pass of the shared subject that ought to fail: whether it gave wrong bits, what is unclear, what was said."""
    subject = shared_subject()
    try:
        found = executor.run(subject.inputs)
    except ExecutionError as error:
        unclear = unclear_of(error) or ("" if words in str(error) else f"does not say '{words}': {error}")
        return False, unclear, str(error)
    return not same_bits(found, subject.expected), "", "an answer"


def _streaming(chosen: Callable[[int], bool], how: Read, words: str) -> Outcome:
    """Some reads of a pass are touched: the pass says so or is right, and the next pass of the executor is right."""
    subject = shared_subject()
    with cache_in(shared_cache()), open_executor(subject.file) as executor:
        executor.run(subject.inputs)
        with reads(chosen, how) as touched:
            wrong, unclear, said = broken_pass(executor, words)
        after = same_bits(executor.run(subject.inputs), subject.expected)
    return Outcome(bool(touched), wrong or not after, unclear=unclear, said=said)


@fault("short reads")
def short_reads(folder: Path, rng: np.random.Generator) -> Outcome:
    """Reads give some whole blocks, or part of one more, of what was asked for."""
    share, over = rng.random(), int(rng.integers(0, BLOCK))

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        got = real_read(descriptor, buffers, offset)
        keep = max(BLOCK, int(got * share) // BLOCK * BLOCK)
        return got if got <= BLOCK else min(got, keep + (over if keep < got else 0))

    return _streaming(lambda _: rng.random() < 0.7, short, "")


@fault("read errors (EIO)")
def read_errors(folder: Path, rng: np.random.Generator) -> Outcome:
    """One read of a pass, and all after it, fail."""
    first = int(rng.integers(0, 3))
    return _streaming(lambda n: n >= first, failing(errno.EIO), "Input/output error")


@fault("reads that end early")
def ended_reads(folder: Path, rng: np.random.Generator) -> Outcome:
    """The file gives nothing from some read on, as one that was cut does."""
    first = int(rng.integers(0, 3))
    return _streaming(lambda n: n >= first, lambda d, b, o: 0, "gives no more bytes")


@fault("a slow disk")
def slow_disk(folder: Path, rng: np.random.Generator) -> Outcome:
    """Every read takes some milliseconds longer: right all the same, and the pass tells that it waited for the disk."""
    subject, delay_s = shared_subject(), float(rng.uniform(0.005, 0.015))

    def slow(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        time.sleep(delay_s)
        return real_read(descriptor, buffers, offset)

    with cache_in(shared_cache()), open_executor(subject.file) as executor:
        executor.run(subject.inputs)
        executor.run(subject.inputs)
        with reads(lambda _: True, slow) as touched:
            found = executor.run(subject.inputs)
        waited_s, stats = sum(executor.stats.wait_ns.values()) * 1e-9, executor.stats
    silent = "" if waited_s >= delay_s / 2 else f"waited {waited_s} s of {stats.seconds}, and each read took {delay_s}"
    return Outcome(bool(touched), not same_bits(found, subject.expected), unclear=silent)


@fault("bit flips on the way from the disk, first reading")
def flips_on_the_way(folder: Path, rng: np.random.Generator) -> Outcome:
    """A bit of what a read brings is not what was written. Checksums are looked at when a MiB is read first."""
    subject, where, bit = shared_subject(), rng.random(), int(rng.integers(8))

    def flip(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        got = real_read(descriptor, buffers, offset)
        buffers[0][int(where * min(got, len(buffers[0])))] ^= 1 << bit
        return got

    chosen = int(rng.integers(0, 4))
    with cache_in(shared_cache()), open_executor(subject.file) as executor:
        with reads(lambda n: n == chosen, flip, lanes_only=False) as touched:
            wrong, unclear, said = broken_pass(executor, "CRC-32 should be")
        after = same_bits(executor.run(subject.inputs), subject.expected)
    return Outcome(bool(touched), wrong or not after, unclear=unclear, said=said)


@fault("no room (ENOSPC) while repacking")
def full_while_repacking(folder: Path, rng: np.random.Generator) -> Outcome:
    """Writing the weights fails at some request: an error, nothing half made, and the next start is right."""
    subject = streamed(folder, int(rng.integers(1 << 30)))
    unclear, cache = "it was built without room", folder / "cold"
    with cache_in(cache):
        with writes(int(rng.integers(0, 1)), errno.ENOSPC) as touched:
            try:
                open_executor(subject.file).close()
            except ExecutionError as error:
                unclear = unclear_of(error) or ("" if "free" in str(error) else f"does not say what to free: {error}")
        left = [p for p in cache.rglob("*") if p.suffix != ".lock" and p.name != "stores"]
        right = same_bits(run(subject), subject.expected)
    return Outcome(bool(touched), not right, bool(left), unclear, said=str(left))


@fault("no room (ENOSPC) for spilled activations")
def full_while_spilling(folder: Path, rng: np.random.Generator) -> Outcome:
    """A store of an activation fails in some pass: an error, and the pass after it is right."""
    shape, good = (64, 48), int(rng.integers(0, 3))
    net = forked(folder)
    inputs, unclear = feed(int(rng.integers(100)), shape), "it went on without room"
    expected = net.reference(inputs)
    with execute(net, spilling(net)) as executor:
        for _ in range(good):
            executor.run(inputs)
        with writes(0, errno.ENOSPC) as touched:
            try:
                executor.run(inputs)
            except ExecutionError as error:
                unclear = unclear_of(error) or (
                    "" if "free space" in str(error) else f"does not say what to do: {error}"
                )
        right = same_bits(executor.run(inputs), expected)
    return Outcome(bool(touched), not right, unclear=unclear)
