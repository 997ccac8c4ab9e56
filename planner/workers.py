"""Runs of strategies, here or each in a process of its own that may crash, hang or take too much without harm.

A worker is spawned, sets its memory limit, says when it begins to plan and when it begins to certify, and sends what
it has found. The parent stops it when one of these takes much longer than the strategy's time limit. Whatever a
solver prints, or says as it dies, goes to a file of the worker's, and from there into the reason.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path

from ..ir.errors import InfeasibleError, NotApplicableError, TensorstowError, TimeLimitError
from ..ir.plan import Plan
from ..ir.sizes import format_size
from .bounds import Bound
from .build import judge
from .instance import Instance
from .levels import plan_levels
from .strategies import Effort, Strategy

OVERRUN, GRACE_S = 2.0, 5.0
"""A worker is stopped this many times its limit and that much later: a strategy stops itself well before."""
START_S = 120.0
"""Until a worker has imported what it needs, on a machine that does much else."""
LONGEST_WAIT_S = 3600.0
"""Limits may be years, or none; the system counts the milliseconds of one wait in 32 bits. It is begun again."""
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a strategy."""

    strategy: Strategy
    effort: Effort


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found: a plan with its bound, or a status and a reason."""

    seed: int
    plan: Plan | None
    bound: Bound | None
    status: str
    reason: str
    solve_s: float


def run_here(instance: Instance, bound: Bound, task: Task) -> Outcome:
    """Run `task` in this process. An error that is not one of ours is our own bug and is raised."""
    return _attempt(instance, bound, task, lambda _: None)


def _attempt(instance: Instance, bound: Bound, task: Task, enter: Callable[[str], None]) -> Outcome:
    """Run `task`, telling `enter` when a stage begins."""
    began, seed = time.monotonic(), task.effort.seed
    try:
        enter("planning")
        plan = plan_levels(task.strategy, instance, task.effort)
        enter("certifying")
        plan, own = judge(plan, instance, bound, time_limit_s=task.effort.time_limit_s)
    except TensorstowError as error:
        return Outcome(seed, None, None, _status(error), str(error), time.monotonic() - began)
    return Outcome(seed, plan, own, plan.certificate.status, "", time.monotonic() - began)


def _status(error: TensorstowError) -> str:
    words = ((NotApplicableError, "not applicable"), (InfeasibleError, "infeasible"), (TimeLimitError, "time limit"))
    return next((word for kind, word in words if isinstance(error, kind)), "error")


# In the worker


def _work(connection: Connection, log: str, memory_limit_nbytes: int | None, payload: bytes) -> None:
    """What a worker does."""
    os.setsid()  # so that what a solver starts can be stopped with it
    _die_with_parent()
    _redirect(log)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # a row, not a file
    began, seed = time.monotonic(), 0
    try:
        instance, bound, task = pickle.loads(payload)
        seed = task.effort.seed
        _limit_memory(memory_limit_nbytes)
        began = time.monotonic()
        outcome = _attempt(instance, bound, task, connection.send)
    except MemoryError:
        allowed = f" in {format_size(memory_limit_nbytes)}" if memory_limit_nbytes is not None else ""
        status, reason = "memory", f"the strategy ran out of memory{allowed}"
        outcome = Outcome(seed, None, None, status, reason, time.monotonic() - began)
    except Exception as error:  # noqa: BLE001  a strategy that breaks costs its own row, which says how
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        outcome = Outcome(seed, None, None, "crashed", reason, time.monotonic() - began)
    if memory_limit_nbytes is not None:  # the answer must not fail for lack of it
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    connection.send(outcome)
    connection.close()


def _die_with_parent() -> None:
    """A worker that no one waits for any more ends, be it inside a solver. Linux only; elsewhere it ends by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _redirect(log: str) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)


def _limit_memory(nbytes: int | None) -> None:
    """Address space for `nbytes` beyond what this process has mapped. Raises MemoryError where none is left."""
    if nbytes is None:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = pages * resource.getpagesize() + nbytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


# In the parent


def run_in_workers(
    instance: Instance,
    bound: Bound,
    tasks: Sequence[Task],
    *,
    workers: int,
    memory_limit_nbytes: int | None = None,
    progress: Progress,
) -> list[Outcome]:
    """Run every task in a worker of its own, `workers` of them at a time; outcomes in the order of the tasks."""
    found: dict[int, Outcome] = {}
    running: dict[int, _Worker] = {}
    waiting = list(range(len(tasks)))[::-1]
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    i = waiting.pop()
                    progress(f"planning with {tasks[i].strategy.name}", len(found) / len(tasks))
                    log = str(Path(folder) / str(i))
                    running[i] = _Worker(instance, bound, tasks[i], log, memory_limit_nbytes)
                _wait(list(running.values()))
                for i in [i for i, worker in running.items() if worker.listen()]:
                    worker = running.pop(i)
                    worker.stop()
                    found[i] = worker.outcome()
        finally:
            for worker in running.values():
                worker.stop()
    return [found[i] for i in range(len(tasks))]


def _wait(workers: Sequence[_Worker]) -> None:
    """Until one of them says something, ends, or has had its time."""
    if any(w.answer is not None for w in workers):
        return
    patience = min(w.deadline for w in workers) - time.monotonic()
    ends = [*(w.connection for w in workers), *(w.process.sentinel for w in workers)]
    wait(ends, min(max(0.0, patience), LONGEST_WAIT_S))


class _Worker:
    """A process that runs one task, and what is known of it so far."""

    def __init__(self, instance: Instance, bound: Bound, task: Task, log: str, memory_limit_nbytes: int | None) -> None:
        self.task = task
        self.log = Path(log)
        self.memory_limit_nbytes = memory_limit_nbytes
        self.stage = "starting"
        self.began = time.monotonic()
        self.deadline = self.began + START_S
        self.answer: Outcome | None = None
        self.killed_after_s: float | None = None
        payload = pickle.dumps((instance, bound, task))
        self.connection, theirs = get_context("spawn").Pipe(duplex=False)
        self.process = get_context("spawn").Process(
            target=_work, args=(theirs, log, memory_limit_nbytes, payload), daemon=True
        )
        try:
            self.process.start()
        except OSError as error:  # it costs its own row, as everything else that a worker may do
            how = (
                "died before it had read what to plan" if isinstance(error, BrokenPipeError) else "could not be started"
            )
            reason = f"the worker {how}, as where memory runs out: {type(error).__name__}: {error}"
            self.answer = Outcome(task.effort.seed, None, None, "crashed", reason, time.monotonic() - self.began)
        finally:
            theirs.close()

    def listen(self) -> bool:
        """Take what the worker says; whether it is done, has died, or has had its time."""
        if self.answer is not None:
            return True
        # Before reading: what it said last is then in the pipe. Asked so that its number is not free for others yet.
        dead = bool(wait([self.process.sentinel], 0))
        with suppress(EOFError, OSError):
            while self.connection.poll():
                said = self.connection.recv()
                if isinstance(said, Outcome):
                    self.answer = said
                    return True
                self._enter(str(said))
        if dead:
            return True
        if time.monotonic() >= self.deadline:
            self.killed_after_s = time.monotonic() - self.began
            return True
        return False

    def _enter(self, stage: str) -> None:
        self.began = time.monotonic() if self.stage == "starting" else self.began
        self.stage = stage
        self.deadline = time.monotonic() + OVERRUN * self.task.effort.time_limit_s + GRACE_S

    def stop(self) -> None:
        """End the worker and whatever it started."""
        if self.process.pid is None:  # it never came to be one
            self.connection.close()
            return
        with suppress(ProcessLookupError, PermissionError):  # it has no group of its own yet, or none any more
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()

    def outcome(self) -> Outcome:
        """What it answered, or how it ended."""
        if self.answer is not None:
            return self.answer
        seconds, seed = time.monotonic() - self.began, self.task.effort.seed
        limit = self.task.effort.time_limit_s
        if self.killed_after_s is not None:
            reason = f"stopped after {self.killed_after_s:.1f} s of {self.stage}; its limit was {limit:g} s"
            return Outcome(seed, None, None, "time limit", reason, seconds)
        said = self._last_words()
        status, how = self._death(said)
        return Outcome(seed, None, None, status, f"{how} while {self.stage}" + (f": {said}" if said else ""), seconds)

    def _death(self, said: str) -> tuple[str, str]:
        code = self.process.exitcode or 0
        limit = self.memory_limit_nbytes
        if "bad_alloc" in said or "MemoryError" in said:
            return "memory", "ran out of memory" + (f" in {format_size(limit)}" if limit is not None else "")
        if code == -signal.SIGKILL:
            return "memory", "was killed, as the system does where memory runs out,"
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return "crashed", f"died of {name}"

    def _last_words(self) -> str:
        if not self.log.exists():
            return ""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""
