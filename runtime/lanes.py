"""What moves: jobs, and the queue of each lane with how far it is. `transfer.Engine` runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Cancelled = Callable[[], bool]

REQUESTS = 2
"""Threads of a lane: requests that are under way at once. Four read more beside kernels on a busy box, but share the
rate: what a step waits for comes later, and passes that wait for the disk took 7% longer (docs/benchmarks.md)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One transfer: its `requests` run once a pass, when instant `after` has come and the jobs of `waits` are complete.

    `waits` are (lane, position in it) of the same pass, or with `turns` = 1 of the pass before: (lane, position,
    turns). A request may ask its argument whether to give up, and then raises TransferCancelledError. `inward` jobs
    read from the home tier and others write to it, unless they are `copied` from one memory to another. `link` tells
    jobs that may wait for one another from those that never do.
    """

    name: str
    nbytes: int
    after: int
    requests: tuple[Callable[[Cancelled], None], ...]
    inward: bool = True
    waits: tuple[tuple[str, int, int], ...] = ()
    copied: bool = False
    link: str = ""


class Lane:
    """The queue of one lane and how far it is. `done` counts complete jobs over all passes since the last reset.

    `taken` counts jobs whose requests are all taken, `request` those taken of the next one; `left` holds, by number of
    the job, the requests that are not complete. `busy` threads run one. Jobs at the positions `skip` are not run:
    `skipped` has their numbers, until `Engine.fetch` runs one after all.
    """

    def __init__(self, name: str, jobs: Sequence[Job]) -> None:
        self.name = name
        self.jobs = tuple(jobs)
        self.read_nbytes = 0
        self.written_nbytes = 0
        self.copied_nbytes = 0
        self.wait_ns = 0
        self.busy = 0
        # Where several links share a lane, order alone must keep a load behind the store that makes room for it.
        self.requests_at_once = REQUESTS if len({(j.inward, j.link) for j in jobs}) == 1 else 1
        self.restart()

    def restart(self) -> None:
        """Before instant 0 of pass 0."""
        self.done = self.taken = self.request = 0
        self.left: dict[int, int] = {}
        self.skip: frozenset[int] = frozenset()
        self.skipped: set[int] = set()

    def take(self) -> tuple[int, Callable[[Cancelled], None]]:
        """The next request, and the number of its job."""
        number, job = self.taken, self.jobs[self.taken % len(self.jobs)]
        if not self.request and number % len(self.jobs) in self.skip:
            self.skipped.add(number)
            self.left[number] = 1
            self.taken = number + 1
            return number, _nothing
        request = job.requests[self.request]
        self.left.setdefault(number, len(job.requests))
        self.request += 1
        if self.request == len(job.requests):
            self.taken, self.request = number + 1, 0
        return number, request

    def complete(self, number: int) -> None:
        """A request of job `number` is complete."""
        self.left[number] -= 1
        while self.left.get(self.done) == 0:
            job = self.jobs[self.done % len(self.jobs)]
            if self.done in self.skipped:
                pass
            elif job.copied:
                self.copied_nbytes += job.nbytes
            elif job.inward:
                self.read_nbytes += job.nbytes
            else:
                self.written_nbytes += job.nbytes
            del self.left[self.done]
            self.done += 1


def _nothing(cancelled: Cancelled) -> None:
    """What is left of a job that is skipped."""
