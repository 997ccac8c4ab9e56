"""A scratch file that grows as it must, and threads that write to it and read from it in the order they are told."""

from __future__ import annotations

import errno
import os
import threading
import traceback
from bisect import insort
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ...ir.errors import ExecutionError
from ..directio import BLOCK, DirectFile, TransferCancelledError, disk_full, free_nbytes

CHUNK = 4 << 20
"""Bytes of one request; what is larger can be given up between two."""

Cancelled = Callable[[], bool]


class SpillFile:
    """Blocks of a nameless file in `folder`, taken and given back: best fit, and the file grows where none fits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nbytes = 0
        self._file = DirectFile.scratch(folder, 0)
        self._free: list[tuple[int, int]] = []  # (offset, bytes), by offset, never adjacent

    def reserve(self, nbytes: int) -> None:
        """Be at least `nbytes` long. Raises ExecutionError where the disk has no room."""
        more = -(-nbytes // BLOCK) * BLOCK - self.nbytes
        if more > 0:
            self._grow(more)

    def take(self, nbytes: int) -> tuple[int, int]:
        """(offset, bytes) of a place for `nbytes`. Raises ExecutionError where the disk has no room."""
        wanted = -(-nbytes // BLOCK) * BLOCK
        fitting = [(size, offset) for offset, size in self._free if size >= wanted]
        if not fitting:
            offset, size = self._free[-1] if self._free else (self.nbytes, 0)
            self._grow(wanted - (size if offset + size == self.nbytes else 0))
            size, offset = self._free[-1][1], self._free[-1][0]
        else:
            size, offset = min(fitting)
        self._free.remove((offset, size))
        if size > wanted:
            insort(self._free, (offset + wanted, size - wanted))
        return offset, wanted

    def give(self, place: tuple[int, int]) -> None:
        """What `take` gave is free again."""
        merged = list[tuple[int, int]]()
        insort(self._free, place)
        for offset, size in self._free:
            if merged and merged[-1][0] + merged[-1][1] == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        self._free = merged

    @property
    def used_nbytes(self) -> int:
        """Bytes of the places that are taken."""
        return self.nbytes - sum(size for _, size in self._free)

    def _grow(self, nbytes: int) -> None:
        try:
            os.posix_fallocate(self._file.descriptor, self.nbytes, nbytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise ExecutionError(
                    f"no {nbytes} bytes can be reserved in '{self.folder}': {error.strerror}"
                ) from error
            raise disk_full(self.folder, nbytes, free_nbytes(self.folder)) from error
        self.nbytes += nbytes
        self.give((self.nbytes - nbytes, nbytes))

    def write(self, source: memoryview, place: tuple[int, int], cancelled: Cancelled) -> None:
        """Store `source`. Raises ExecutionError, or TransferCancelledError."""
        self._file.write_from(source, place[0], chunk=CHUNK, cancelled=cancelled)

    def read(self, target: memoryview, place: tuple[int, int], cancelled: Cancelled) -> None:
        """Fill `target`. Raises ExecutionError, or TransferCancelledError."""
        self._file.read_into(target, place[0], chunk=CHUNK, cancelled=cancelled)

    def close(self) -> None:
        """Give the disk back; again is allowed."""
        self._file.close()


class Job:
    """Work for a thread. `ended` is called with it, under the lock, once it was run; then `settled` is set."""

    __slots__ = ("cancelled", "ended", "error", "run", "settled", "started")

    def __init__(self, run: Callable[[Cancelled], None], ended: Callable[[Job], None]) -> None:
        self.run: Callable[[Cancelled], None] | None = run
        self.ended: Callable[[Job], None] | None = ended
        self.started = self.settled = self.cancelled = False
        self.error: BaseException | None = None

    def is_cancelled(self) -> bool:
        """Whether nobody needs it any more."""
        return self.cancelled


class Worker:
    """A thread that runs jobs in order. All of its methods want the lock of `changed` held, but `close`."""

    def __init__(self, name: str, changed: threading.Condition) -> None:
        self._changed = changed
        self._jobs: deque[Job] = deque()
        self._now: Job | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name=f"tensorstow {name}", daemon=True)
        self._thread.start()

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Run it after the others, or before those that have not begun."""
        (self._jobs.appendleft if first else self._jobs.append)(job)
        self._changed.notify_all()

    def hurry(self, job: Job) -> None:
        """Run it before the others that have not begun."""
        if not job.started and not job.settled:
            self._jobs.remove(job)
            self._jobs.appendleft(job)

    def cancel(self, job: Job) -> bool:
        """Whether it will never begin. One that runs is given up at its next request."""
        job.cancelled = True
        if job.started or job.settled:
            return False
        self._jobs.remove(job)
        job.run = job.ended = None
        job.settled = True
        return True

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._now is None and not self._jobs

    def close(self) -> None:
        """Give up what is under way and end the thread; again is allowed."""
        with self._changed:
            self._stopped = True
            while self._jobs:
                self.cancel(self._jobs[0])
            if self._now is not None:
                self._now.cancelled = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while self._next():
            pass

    def _next(self) -> bool:
        with self._changed:
            while not self._jobs and not self._stopped:
                self._changed.wait()
            if self._stopped:
                return False
            self._now = job = self._jobs.popleft()
            job.started = True
        try:
            if job.run is not None:
                job.run(job.is_cancelled)
        except TransferCancelledError as cancelled:
            job.error = cancelled
        except BaseException as failed:  # noqa: BLE001 - whoever waits for the job raises it
            traceback.clear_frames(failed.__traceback__)  # they hold tensors
            job.error = failed
        with self._changed:
            self._now = None
            job.settled = True
            if job.ended is not None:
                job.ended(job)
            job.run = job.ended = None
            self._changed.notify_all()
        return True
