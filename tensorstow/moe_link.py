"""A link in virtual time: reads that share its bandwidth, as those of the runtime's reading threads do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence


class Read:
    """`nbytes` that are under way over `link`: what a future of the runtime's cache of experts is."""

    def __init__(self, link: VirtualLink, nbytes: float, before: Sequence[Read] = ()) -> None:
        self.left_nbytes = nbytes
        self.before = before
        self._link = link
        self._cancelled = False

    def done(self) -> bool:
        """Whether it is complete, or will never be."""
        return self._cancelled or self.left_nbytes <= 0

    def cancelled(self) -> bool:
        """Whether it was given up before it began."""
        return self._cancelled

    def exception(self) -> None:
        """None: such a read does not fail."""

    def cancel(self) -> bool:
        """Give it up, if it has not begun."""
        self._cancelled = self._link.withdraw(self)
        return self._cancelled

    def result(self) -> None:
        """Let time pass until it is complete."""
        self._link.finish(self)


class VirtualLink:
    """A link of `bytes_per_s`, on which up to `readers` reads run side by side, at even shares, and others queue up.

    Each takes `latency_ns` beside its bytes; one that is to come after others holds its place until these are
    complete, as a thread that waits does. `now_ns` is the time.
    """

    def __init__(self, bytes_per_s: float, latency_ns: float, readers: int) -> None:
        self.now_ns = 0.0
        self._rate = bytes_per_s / 1e9
        self._latency_nbytes = latency_ns * self._rate
        self._readers = readers
        self._queue: deque[Read] = deque()
        self._running: list[Read] = []

    def read(self, nbytes: float, before: Sequence[Read] = ()) -> Read:
        """Begin to read when those `before` are complete, or wait in the queue for a place."""
        found = Read(self, nbytes + self._latency_nbytes, before)
        self._queue.append(found)
        self._fill()
        return found

    def withdraw(self, read: Read) -> bool:
        """Take a read out of the queue; whether it was there."""
        if read not in self._queue:
            return False
        self._queue.remove(read)
        return True

    def wait(self, ns: float) -> None:
        """Let `ns` pass."""
        end = self.now_ns + ns
        while self._running and self.now_ns < end:
            self._step(end)
        self.now_ns = end

    def finish(self, read: Read) -> None:
        """Let time pass until `read` is complete."""
        while not read.done():
            self._step(float("inf"))

    def _step(self, end_ns: float) -> None:
        """To the end of the next read, or to `end_ns`."""
        moving = [r for r in self._running if all(b.done() for b in r.before)]
        share = self._rate / len(moving)
        soonest = min(r.left_nbytes for r in moving)
        if self.now_ns + soonest / share <= end_ns:
            self.now_ns += soonest / share
            passed = soonest
        else:
            passed = (end_ns - self.now_ns) * share
            self.now_ns = end_ns
        for read in moving:
            read.left_nbytes = 0.0 if read.left_nbytes <= passed else read.left_nbytes - passed
        self._running = [r for r in self._running if r.left_nbytes > 0]
        self._fill()

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._readers:
            self._running.append(self._queue.popleft())


class VirtualPool:
    """What the runtime's cache hands its loads to: each of them reads `nbytes` over `link`."""

    def __init__(self, link: VirtualLink, nbytes: int) -> None:
        self._link = link
        self._nbytes = nbytes

    def submit(self, fill: Callable[[tuple[Read, ...]], None], before: tuple[Read, ...]) -> Read:
        """Begin a load that comes after those `before`; `fill` would do it."""
        return self._link.read(self._nbytes, before)
