"""The engine of transfers: the threads of a lane run the plan's transfers of that lane in order, pass after pass.

A transfer is a row of requests. The threads of a lane take them one after another, so that while one request is under
way the next one already stands before the disk: on a box whose cores all compute, a thread that has just been woken
waits for a core, and with a single request the disk would wait with it. Requests are taken in order, and no transfer
begins before all requests of the one before are taken, so the first of two still gets the whole rate.

It knows jobs and instants, not files. Instants are counted on over all passes: instant t of pass p is p * period + t.
What is shared between threads are plain integers, each written by one thread. Whoever must wait first says so, then
looks again, then sleeps; whoever changes a number then looks whether somebody waits. So in the common case, in which
nobody waits, nothing but an attribute is touched: a round trip between threads costs 15 us, a step may take less.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Mapping, Sequence
from time import perf_counter_ns

from ..ir.errors import ExecutionError
from .directio import TransferCancelledError
from .lanes import Job, Lane
from .trace import Event

_NEVER = 1 << 62


class Engine:
    """Lanes with their threads, and the clock by which they go.

    One thread, the computing one, may call `arrive`, `wait` and the rest. Nothing moves before the first `arrive`.
    """

    def __init__(self, lanes: Mapping[str, Sequence[Job]], period: int) -> None:
        self.lanes = {name: Lane(name, jobs) for name, jobs in lanes.items() if jobs}
        self.period = period
        self.now = -1
        self.events: list[Event] | None = None
        self._error: BaseException | None = None
        self._died: BaseException | None = None  # what ended a thread
        self._wake_at = _NEVER
        self._sleepers = 0  # computing threads that wait for a job to be complete
        self._awaited = False  # whether a lane waits for a job of another
        self._paused = False
        self._stopped = False
        self._cancel = False
        # Held by way of the lock itself: an interrupt between two instructions of the condition's own Python code would
        # leave it held for ever.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Daemons: a script that ends without closing us must not hang.
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"tensorstow {lane.name}", daemon=True)
            for lane in self.lanes.values()
            for _ in range(lane.requests_at_once)
        ]
        self._start()

    def _start(self) -> None:
        """Raises ExecutionError, with no thread left behind, where the system gives none."""
        started = 0
        try:
            for thread in self._threads:
                thread.start()
                started += 1
        except RuntimeError as error:
            wanted, self._threads = len(self._threads), self._threads[:started]
            self.close()
            raise ExecutionError(
                f"the system gives {started} of the {wanted} threads that move bytes ({error}); allow more threads "
                "(ulimit -u), or free memory for their stacks"
            ) from error

    def arrive(self, instant: int) -> None:
        """The computing thread has reached `instant`."""
        self.now = instant
        if instant >= self._wake_at:
            with self._lock:
                self._wake_at = _NEVER  # those who still wait set it again
                self._changed.notify_all()

    def wait(self, lane: Lane, count: int) -> None:
        """Sleep until `lane` has completed `count` jobs. Raises what stopped a lane instead."""
        if lane.done >= count:
            return
        begin = perf_counter_ns()
        position = (count - 1) % len(lane.jobs)
        self._check_threads()
        with self._lock:
            self._sleepers += 1
            try:
                while lane.done < count:
                    self._raise_error()
                    self._changed.wait()
            finally:
                self._sleepers -= 1
        end = perf_counter_ns()
        lane.wait_ns += end - begin
        if self.events is not None:
            self.events.append(Event("wait", lane.jobs[position].name, begin, end))

    def settle(self) -> None:
        """Sleep until nothing moves: all that may start by now is complete, or a failure has stopped it."""
        with self._lock:
            self._sleepers += 1
            try:
                lanes = self.lanes.values()
                while not self._over and any(lane.busy or self._may_start(lane) for lane in lanes):
                    self._changed.wait()
            finally:
                self._sleepers -= 1

    def skip(self, positions: Mapping[str, frozenset[int]]) -> None:
        """From now on the jobs at these positions of lanes are not run; their numbers are those of complete ones."""
        with self._lock:
            for name, lane in self.lanes.items():
                lane.skip = positions.get(name, frozenset())

    def forget(self, passes: int) -> bool:
        """Forget what was skipped so many passes ago or earlier; whether anything skipped is remembered."""
        with self._lock:
            for lane in self.lanes.values():
                oldest = lane.done - passes * len(lane.jobs)
                lane.skipped = {number for number in lane.skipped if number >= oldest}
            return any(lane.skipped for lane in self.lanes.values())

    def fetch(self, lane: Lane, number: int) -> None:
        """Run job `number`, which was skipped, now and here. Its place must be free for it still."""
        job = lane.jobs[number % len(lane.jobs)]
        for request in job.requests:
            request(self._cancelled)
        with self._lock:
            lane.skipped.discard(number)
            lane.read_nbytes += job.nbytes

    @property
    def _over(self) -> bool:
        """Whether nothing will move any more: whoever waits would wait forever."""
        return self._stopped or self._died is not None

    def _check_threads(self) -> None:
        """ExecutionError where a thread is gone, so that nobody waits for it: in the child of a fork all are."""
        if self._stopped:
            raise ExecutionError("what moves the bytes of this plan is closed; open the plan again")
        gone = [t.name for t in self._threads if not t.is_alive()]
        if gone or self._died is not None:
            why = "a child process has none" if self._died is None else f"{type(self._died).__name__}: {self._died}"
            raise ExecutionError(
                f"the thread '{(gone or ['of a lane'])[0]}', which moves bytes, is gone ({why}); open the plan again, "
                "in the process that runs it"
            ) from self._died

    def _raise_error(self) -> None:
        if self._over:
            self._check_threads()
        error = self._error
        if isinstance(error, ExecutionError):
            raise ExecutionError(*error.args) from error
        if error is not None:
            raise ExecutionError(f"a transfer failed: {type(error).__name__}: {error}") from error

    def reset(self) -> None:
        """Give up what is under way, forget errors, and start again before instant 0 of pass 0.

        Raises ExecutionError where a thread is gone.
        """
        self._check_threads()
        with self._lock:
            self._paused = self._cancel = True
            self._changed.notify_all()
            while not self._over and any(lane.busy for lane in self.lanes.values()):
                self._changed.wait()
            if self._over:
                self._check_threads()
            for lane in self.lanes.values():
                lane.restart()
            self.now, self._wake_at, self._error = -1, _NEVER, None
            self._paused = self._cancel = False
            self._changed.notify_all()

    def runs_here(self) -> bool:
        """Whether this is a thread of a lane, which cannot wait for its own end."""
        return threading.current_thread() in self._threads

    def close(self) -> None:
        """Give up what is under way and end the threads, of which none may call this; again is allowed."""
        with self._lock:
            self._stopped = self._cancel = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, lane: Lane) -> None:
        """What a thread of a lane does. Whatever ends it but `close` is told to those who wait for it."""
        try:
            self._serve(lane)
        except BaseException as died:  # noqa: BLE001 - it is raised again, in the computing thread
            traceback.clear_frames(died.__traceback__)
            with self._lock:
                self._died = died
                self._changed.notify_all()

    def _serve(self, lane: Lane) -> None:
        """Take requests of a lane in order, and run them."""
        while True:
            with self._lock:
                while not self._stopped and not self._may_start(lane):
                    self._changed.wait()
                if self._stopped:
                    return
                number, request = lane.take()
                lane.busy += 1
            begin = perf_counter_ns()
            error: BaseException | None = None
            try:
                request(self._cancelled)
            except TransferCancelledError as cancelled:  # a reset or the end
                error = cancelled
            except BaseException as failed:  # noqa: BLE001 - it is raised again, in the computing thread
                # The frames hold views of the arena, which must not live as long as the error.
                traceback.clear_frames(failed.__traceback__)
                error = failed
            self._finished(lane, number, begin, error)

    def _finished(self, lane: Lane, number: int, begin: int, error: BaseException | None) -> None:
        """A request has ended: count it, or remember what went wrong, and wake whoever waits for that."""
        events = self.events
        if events is not None and error is None:
            job = lane.jobs[number % len(lane.jobs)]
            events.append(Event(lane.name, job.name, begin, perf_counter_ns(), job.nbytes // len(job.requests)))
        with self._lock:
            lane.busy -= 1
            before = lane.done
            if error is None:
                lane.complete(number)
            elif self._error is None and not self._cancel and not isinstance(error, TransferCancelledError):
                self._error = error
            # Nobody waits for a request alone, but while something goes wrong or is given up.
            awaited = lane.done > before and (self._sleepers or self._awaited)
            if awaited or error is not None or self._error is not None or self._paused:
                self._awaited = False  # those who still wait set it again
                self._changed.notify_all()

    def _may_start(self, lane: Lane) -> bool:
        """Whether the next request of `lane` may start; if not, what changes that will wake this thread.

        It never lets go of the lock: whoever calls it has seen all that changed before.
        """
        if self._paused or self._error is not None:
            return False
        if lane.request:
            return True  # its job has begun
        turn, position = divmod(lane.taken, len(lane.jobs))
        job = lane.jobs[position]
        instant = turn * self.period + job.after
        if self.now < instant:
            self._wake_at = min(self._wake_at, instant)
            if self.now < instant:
                return False
        for name, before, turns in job.waits:
            other = self.lanes[name]
            count = (turn - turns) * len(other.jobs) + before + 1
            if other.done < count:
                self._awaited = True
                return False
        return True

    def _cancelled(self) -> bool:
        return self._cancel
