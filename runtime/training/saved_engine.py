"""The memory and the disk that saved tensors share: what is there, what is below, what is on its way."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from ...ir.errors import ExecutionError
from ...ir.saved import Choice
from .saved_contents import Contents, all_bytes, block_aligned, modified, view_of
from .saved_records import Content, Record, Saved, SavedStats, State
from .spill import Cancelled, Job, SpillFile, Worker

_COUNTS = ("contents", "shared", "offloaded", "written_nbytes", "read_nbytes", "forwarded", "deviations")


class Engine:
    """The memory and the disk that contents share. `below` are those on disk alone, by sequence."""

    def __init__(self, capacity: int, folder: Path) -> None:
        self.capacity = capacity
        self.contents = Contents()
        self.counts = dict.fromkeys(_COUNTS, 0)
        self._peak = 0
        self._stall_s = 0.0
        self.resident = 0
        self._dropped: deque[Record] = deque()
        self.closed = False
        self.changed = threading.Condition(threading.Lock())
        self.file = SpillFile(folder)
        self._process = os.getpid()
        self._sequence = 0
        self._below: list[int] = []
        self._records: dict[int, Record] = {}  # of those below
        self._ahead: dict[int, Record] = {}  # loaded and not yet read by all
        self._kept: dict[int, Record] = {}  # in memory, of what may leave
        self._error: BaseException | None = None
        self._writer = Worker("saved tensors, out", self.changed)
        self._reader = Worker("saved tensors, in", self.changed)

    def check(self) -> None:
        """Raise ExecutionError where nothing can be moved any more."""
        if self.closed:
            raise ExecutionError("these saved tensors are closed; make new ones")
        if os.getpid() != self._process:
            raise ExecutionError("saved tensors do not pass a fork: make them in the process that trains")

    def add(self, tensor: torch.Tensor, nbytes: int, choice: Choice | None) -> Content:
        """A content that was not saved before, and where it goes."""
        self.check()
        with self.changed:
            self.settle()
            self._raise_error()
            record = Record(self._sequence, nbytes)
            self._sequence += 1
            content = Content(record, tensor, self._drop)
            record.holder = weakref.ref(content)
            self.counts["contents"] += 1
            self.counts["deviations"] += choice is None
            if choice != "held":
                fits = self._make_room(nbytes)
                self._take(record)
                self._kept[record.sequence] = record
                if choice == "offload" or not fits:
                    self._store(record, content)
        self.contents.add(tensor, content)
        self.settle_dropped()
        return content

    def save(self, content: Content, tensor: torch.Tensor, *, again: bool) -> Saved:
        """A save of `content`, which was saved before if `again`."""
        with self.changed:
            self.counts["shared"] += again
            content.unread += 1
        return Saved(content, tensor)

    def read(self, saved: Saved) -> torch.Tensor:
        """The tensor that was saved."""
        content, record = saved.content, saved.content.record
        with self.changed:
            self.settle()
            self._raise_error()
            data = self._bring(content)
            if not saved.read:
                saved.read = True
                content.unread -= 1
            if record.state is State.LOADED and content.unread <= 0:
                self._let_go(content)
            if not self.closed:
                self._prefetch(record.sequence)
        self.settle_dropped()
        if record.modified:
            raise modified(tuple(saved.shape.size))
        return saved.shape.over(data)

    def _drop(self, record: Record) -> None:
        """Its content is gone."""
        self._dropped.append(record)
        self.settle_dropped()

    def settle_dropped(self) -> None:
        """Count what was dropped, unless somebody holds the lock, who will; never waits, for it runs at any time."""
        while self._dropped and self.changed.acquire(blocking=False):
            try:
                self.settle()
            finally:
                self.changed.release()

    def settle(self) -> None:
        """Give back what dropped contents had, and let the next ones come. Under the lock."""
        while self._dropped:
            record = self._dropped.popleft()
            waits = record.job is not None and not record.job.settled
            if waits and record.job is not None:
                worker = self._writer if record.state is State.STORING else self._reader
                waits = not worker.cancel(record.job)
            if record.state is State.BELOW:
                self._forget_below(record)
            self._ahead.pop(record.sequence, None)
            self._kept.pop(record.sequence, None)
            record.state = State.GONE
            if not waits:  # else when its job ends
                self._give_back(record)

    def close(self) -> None:
        """End the threads and give the disk back."""
        self.closed = True
        self._writer.close()
        self._reader.close()
        self.file.close()

    def stats(self) -> SavedStats:
        """What was counted so far."""
        with self.changed:
            self.settle()
            disk = 0 if self.closed else self.file.used_nbytes
            return SavedStats(
                **self.counts,
                resident_nbytes=self.resident,
                peak_nbytes=self._peak,
                disk_nbytes=disk,
                stall_s=self._stall_s,
            )

    def _take(self, record: Record) -> None:
        record.counted = True
        self.resident += record.nbytes
        self._peak = max(self._peak, self.resident)

    def _release(self, record: Record) -> None:
        if record.counted:
            record.counted = False
            self.resident -= record.nbytes

    def _give_back(self, record: Record) -> None:
        self._release(record)
        if record.place is not None and not self.closed:
            self.file.give(record.place)
        record.place = None

    def _forget_below(self, record: Record) -> None:
        if self._records.pop(record.sequence, None) is not None:
            del self._below[bisect_left(self._below, record.sequence)]

    def _wait(self, done: Callable[[], bool]) -> None:
        begin = perf_counter()
        while not done() and not self.closed:
            self.changed.wait()
            self.settle()
        self._stall_s += perf_counter() - begin

    def _make_room(self, nbytes: int) -> bool:
        """Until `nbytes` more fit: stores end, then goes what was loaded ahead, then what was kept; the earliest first,
        for it is needed last. Whether they fit."""
        self._wait_for_stores(nbytes)
        while self.resident + nbytes > self.capacity and (self._ahead or self._kept):
            if self._ahead:
                record = self._ahead[min(self._ahead)]
                content = record.content()
                if content is not None:
                    content.data = None
                self._below_again(record)
                continue
            record = self._kept[min(self._kept)]
            content = record.content()
            if content is None:
                del self._kept[record.sequence]  # dropped just now
                continue
            self._store(record, content)
            self._wait_for_stores(nbytes)
        return self.resident + nbytes <= self.capacity

    def _wait_for_stores(self, nbytes: int) -> None:
        """Until `nbytes` more fit, or no store is left that would make room."""
        if self.resident + nbytes > self.capacity and not self._writer.idle:
            self._wait(lambda: self.resident + nbytes <= self.capacity or self._writer.idle)

    def _store(self, record: Record, content: Content) -> None:
        assert content.data is not None
        self._kept.pop(record.sequence, None)
        record.place = self.file.take(record.nbytes)
        record.state = State.STORING
        data, place = all_bytes(content.data), record.place

        def run(cancelled: Cancelled) -> None:
            self.file.write(view_of(data), place, cancelled)

        record.job = Job(run, lambda job: self._stored(record, job))
        self.counts["offloaded"] += 1
        self._writer.submit(record.job)

    def _stored(self, record: Record, job: Job) -> None:
        """Its store has ended. Under the lock, in the thread that stores."""
        record.job = None
        content = record.content()
        if record.state is State.GONE:
            self._give_back(record)
        elif record.state is State.STORING and content is not None:
            if job.error is not None:
                record.state, self._error = State.KEPT, job.error  # its bytes are still here
                return
            content.check()
            content.data = None
            self._release(record)
            self.counts["written_nbytes"] += record.nbytes
            record.state = State.BELOW
            insort(self._below, record.sequence)
            self._records[record.sequence] = record
        self.settle()

    def _bring(self, content: Content) -> torch.Tensor:
        """Its bytes, in memory."""
        record = content.record
        if record.state is State.STORING:
            self._forward(record)
        if record.state is State.BELOW:
            self.check()
            self._make_room(record.nbytes)
        if record.state is State.BELOW:
            self._load(record, first=True)
        if record.state is State.LOADING:
            if record.job is not None:
                self._reader.hurry(record.job)
            self._wait(lambda: record.state is not State.LOADING)
        if content.data is None:
            error, record.error = record.error, None
            raise ExecutionError(
                *(error.args if error else ("these saved tensors were closed; make new ones",))
            ) from error
        content.check()
        return content.data if record.state is State.LOADED else all_bytes(content.data)

    def _forward(self, record: Record) -> None:
        """It is needed before it is below: it stays, and its store is given up."""
        self.counts["forwarded"] += 1
        if record.job is not None and not self._writer.cancel(record.job):
            record.state = State.KEPT
            self._wait(lambda: record.job is None)  # at its next request: the place is written to until then
        record.state = State.KEPT
        record.job = None
        if record.place is not None:
            self.file.give(record.place)
            record.place = None

    def _prefetch(self, sequence: int) -> None:
        """Loads of what was saved before content `sequence`, the latest first, while there is room."""
        at = bisect_left(self._below, sequence)
        while at:
            record = self._records[self._below[at - 1]]
            if self.resident + record.nbytes > self.capacity:
                return
            self._load(record)
            at -= 1

    def _load(self, record: Record, *, first: bool = False) -> None:
        assert record.place is not None
        self._forget_below(record)
        self._take(record)
        record.state = State.LOADING
        place, nbytes = record.place, record.nbytes
        made: list[torch.Tensor] = []

        def run(cancelled: Cancelled) -> None:
            made.append(block_aligned(nbytes))
            self.file.read(view_of(made[0]), place, cancelled)

        record.job = Job(run, lambda job: self._loaded(record, job, made))
        self._reader.submit(record.job, first=first)

    def _loaded(self, record: Record, job: Job, made: list[torch.Tensor]) -> None:
        """Its load has ended. Under the lock, in the thread that loads."""
        record.job = None
        content = record.content()
        if record.state is State.GONE:
            self._give_back(record)
        elif job.error is None and content is not None:
            content.data = made[0]
            record.state = State.LOADED
            self._ahead[record.sequence] = record
            self.counts["read_nbytes"] += record.nbytes
        else:
            record.error = job.error
            self._below_again(record)
        made.clear()
        self.settle()

    def _let_go(self, content: Content) -> None:
        """Memory of what is on disk and was read by all."""
        content.data = None
        self._below_again(content.record)

    def _below_again(self, record: Record) -> None:
        self._ahead.pop(record.sequence, None)
        self._release(record)
        record.state = State.BELOW
        insort(self._below, record.sequence)
        self._records[record.sequence] = record

    def _raise_error(self) -> None:
        """What stopped a store; after that, what follows may try again."""
        error, self._error = self._error, None
        if isinstance(error, ExecutionError):
            raise ExecutionError(*error.args) from error
        if error is not None:
            raise ExecutionError(f"storing a saved tensor failed: {type(error).__name__}: {error}") from error
