"""How long torch's operators take here: each distinct call of a model once, on made-up tensors, in this process.

The calls are taken round and round in the order of the program, as in a pass: before each one others have run, so that
its code and its operands lie where they would. What one operator hands to the next is written just before the call.
Weights take turns, in as many copies as a pass makes such calls, within a pool larger than the last cache: they come
from memory where those of a pass do. Results are released within the measured time, because what the C library returns
to the system (`memory.settle_allocator`) is taken anew, page by page, in every pass. A plan that puts results into an
arena has them in memory that was touched before: for that (`warm`) the heap is kept while it is measured. On the box
where this was written, memory-bound operators take three to five times as long in fresh pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median

import torch

from ..ir.caches import cache_nbytes
from ..ir.errors import ExecutionError, InputError
from ..ir.signature import Request, Signature
from ..ir.sizes import format_size
from .memory import available_nbytes, kept_heap, settle_allocator
from .torch_rates_cache import add_known, cache_path, read_known
from .torch_rates_calls import Bench, Overheads, Pool, UnmeasurableError, measure_overheads

Progress = Callable[[float], None]

_ROUNDS = 9
_MOST_COPIES = 16
_CACHES = 2
"""How many times the last cache the pool of weights is larger than the largest of them."""
_LEAST_POOL_NBYTES = 512 << 20


@dataclass(frozen=True)
class Measured:
    """Nanoseconds of a call by signature. `skipped` says why others cannot be measured here, `unreached` are those for
    which there was no time."""

    times: dict[Signature, int]
    skipped: dict[Signature, str] = field(default_factory=dict[Signature, str])
    unreached: tuple[Signature, ...] = ()


def measure(
    requests: Sequence[Request],
    *,
    threads: int,
    budget_s: float,
    progress: Progress | None = None,
    warm: bool = False,
) -> Measured:
    """Times of the calls, in the order of the program, on `threads` threads; what an earlier call found is not measured
    again.

    It takes `budget_s` seconds at the most, if no single call takes longer than its formula says: those with the
    largest formula times are taken first, and then again, in the order of the program, up to nine times. A call's time
    is the lower quartile of its runs, since what disturbs a run only adds to it, times what the median round took over
    the sum of those. Operands take at the most twice the largest weight or 512 MiB, whichever is more, and the largest
    call's activations. A call that needs more memory than there is, is skipped. `warm`: results take memory that was
    touched before. Raises InputError where the cache cannot be written.
    """
    if threads < 1:
        raise InputError(f"cannot measure on {threads} threads; give one or more")
    path = cache_path(threads, warm=warm)
    known = read_known(path)
    wanted = {r.signature: r for r in requests}
    todo = [r for r in wanted.values() if r.signature not in known.times and r.signature not in known.skipped]
    times = {s: known.times[s] for s in wanted if s in known.times}
    skipped = {s: known.skipped[s] for s in wanted if s in known.skipped}
    if not todo:
        return Measured(times, skipped)
    with _as_executed(threads, warm=warm):
        session = _Session(todo, budget_s, progress or (lambda part: None))
        session.run()
    add_known(path, session.times(), session.refused)
    times |= session.times()
    skipped |= session.refused | session.unfit
    unreached = tuple(s for s in wanted if s not in times and s not in skipped)
    return Measured(times, skipped, unreached)


@contextmanager
def _as_executed(threads: int, *, warm: bool) -> Generator[None]:
    """Threads, allocator and gradient mode as the executor has them."""
    before = torch.get_num_threads()
    settle_allocator()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), kept_heap() if warm else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)


class _Session:
    """The measuring of some requests within a budget."""

    def __init__(self, requests: Sequence[Request], budget_s: float, progress: Progress) -> None:
        self.begin = time.perf_counter()
        self.budget_s = budget_s
        self.progress = progress
        self.runs: dict[Signature, list[int]] = {}
        self.refused: dict[Signature, str] = {}
        self.unfit: dict[Signature, str] = {}
        self.benches: dict[Signature, Bench] = {}
        self.requests: list[Request] = []
        self.overheads = Overheads(0.0, 0.0, 0.0)
        self.by_overload: set[Signature] = set()
        room = available_nbytes()
        for request in requests:
            self._admit(request, room)

    def _admit(self, request: Request, room: int) -> None:
        try:
            bench = Bench(request.signature, min(request.calls, _MOST_COPIES))
            needed = request.nbytes + bench.weights_nbytes + _CACHES * cache_nbytes(3)
        except (UnmeasurableError, InputError) as error:
            self.refused[request.signature] = str(error)
            return
        if needed > room:
            self.unfit[request.signature] = (
                f"it needs {format_size(needed)} of memory, {format_size(room)} are available"
            )
            return
        self.benches[request.signature] = bench
        self.requests.append(request)

    @property
    def left_s(self) -> float:
        return self.budget_s - (time.perf_counter() - self.begin)

    def run(self) -> None:
        """Measure for as long as the budget allows."""
        if not self.requests:
            return
        try:
            with self._pools() as (weights, activations):
                self.overheads = measure_overheads()
                self._first_runs(weights, activations)
                self._rounds()
                self.by_overload = {s for s, b in self.benches.items() if b.by_overload}
        except ExecutionError as error:
            self.unfit |= {r.signature: str(error) for r in self.requests if r.signature not in self.runs}

    @contextmanager
    def _pools(self) -> Generator[tuple[Pool, Pool]]:
        """Weights: the largest call's and twice the last cache, or what the program has where that is less."""
        benches = self.benches.values()
        largest = max(b.weights_nbytes for b in benches)
        program = sum(b.weights_nbytes * b.copies for b in benches)
        wanted = min(program, largest + _CACHES * cache_nbytes(3), max(2 * largest, _LEAST_POOL_NBYTES))
        with ExitStack() as stack:
            yield (
                stack.enter_context(closing(Pool(wanted))),
                stack.enter_context(closing(Pool(max(b.shared_nbytes for b in benches)))),
            )

    def _first_runs(self, weights: Pool, activations: Pool) -> None:
        """Every call three times, the most expensive first: to find its function, to warm it up, and to measure it."""
        ranked = sorted(self.requests, key=lambda r: -r.formula_ns * r.calls)
        for done, request in enumerate(ranked):
            if self.left_s < 3e-9 * request.formula_ns or self.left_s <= 0:
                continue
            bench = self.benches[request.signature]
            try:
                bench.prepare(weights, activations)
                bench.run()
                self.runs[request.signature] = [bench.run()]
            except UnmeasurableError as error:
                self.refused[request.signature] = str(error)
            self.progress((done + 1) / len(ranked) / 2)

    def _rounds(self) -> None:
        for number in range(_ROUNDS):
            began = time.perf_counter()
            for request in self.requests:
                runs = self.runs.get(request.signature)
                if runs is not None and self.left_s > 1e-9 * runs[0]:
                    runs.append(self.benches[request.signature].run())
            self.progress((1 + (number + 1) / _ROUNDS) / 2)
            if self.left_s < time.perf_counter() - began:
                break

    def times(self) -> dict[Signature, int]:
        """Nanoseconds of a call as a module makes it."""
        # The first run was made among other calls than in the program.
        counted = {signature: sorted(runs[1:] or runs) for signature, runs in self.runs.items()}
        best = {signature: runs[(len(runs) - 1) // 4] for signature, runs in counted.items()}
        usual = self._usual_over(best)
        return {
            signature: self.overheads.corrected(round(usual * ns), by_overload=signature in self.by_overload)
            for signature, ns in best.items()
        }

    def _usual_over(self, best: dict[Signature, int]) -> float:
        """How many times as long as its calls at their `best` the median round took: something is always disturbed."""
        most = max(map(len, self.runs.values()), default=0)
        whole = [r for r in self.requests if len(self.runs.get(r.signature, ())) == most]
        rounds = [sum(r.calls * self.runs[r.signature][k] for r in whole) for k in range(1, most)]
        return max(1.0, median(rounds) / sum(r.calls * best[r.signature] for r in whole)) if rounds else 1.0
