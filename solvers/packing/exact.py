"""Exact search for a packing within a capacity: `kernel.search` under several strategies in turn, with restarts.

Run times of such searches have heavy tails: a strategy that fails within a second may need a day, and another finds a
packing at once (Gomes, Selman and Kautz, "Boosting combinatorial search through randomization", AAAI 1998). So each
strategy gets a number of decisions that grows from round to round; what it learned about sections stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from ..result import Status
from . import kernel, layout
from .compact import Compact, Ints, compact, live_bytes, lower_bound
from .kernel import Tricks
from .layout import Array, Frames, Model, State
from .problem import Body, Box, PackingProblem

Order = Array

# A strategy: how to choose, and the keys of its order: T largest load that the body meets, Z size, A area, W sections,
# L lifetime, B sections x size, S start.
STRATEGIES: tuple[tuple[int, str], ...] = (
    (kernel.LOWEST, "TZ"),
    (kernel.BALANCED, "LZ"),
    (kernel.TIGHTEST, "A"),
    (kernel.LOWEST, "TA"),
    (kernel.LEANING, "A"),
    (kernel.BALANCED, "A"),
    (kernel.TIGHTEST, "WA"),
    (kernel.LOWEST, "Z"),
    (kernel.TIGHTEST, "LZ"),
    (kernel.BALANCED, "B"),
    (kernel.LEANING, "LZ"),
    (kernel.BALANCED, "Z"),
)
_FIRST_ROUND = 400
"""Decisions of a strategy's first attempt, beside one for each body."""
_GROWTH = 1.35
_TRAIL = 300_000
"""Changes that may be open at once, beside some for each body and section; a search that has more gives up."""
MOST_MEETINGS = 12_000_000
"""Pairs of boxes that meet, above which the search would take more memory than it is worth (8 bytes a pair)."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """FEASIBLE with `bases` (units), INFEASIBLE as a proof, or UNKNOWN; and the decisions that were taken."""

    status: Status
    bases: Ints | None
    nodes: int
    strategy: str = ""


def fits_memory(c: Compact) -> bool:
    """Whether the search can be built: 64-bit addresses, and no more meeting boxes than memory should hold."""
    if c.hi.dtype == np.dtype(object):
        return False
    firsts, lasts = np.sort(c.first), np.sort(c.last)
    meets = np.searchsorted(firsts, c.last, "left") - np.searchsorted(lasts, c.first, "right")
    return int(meets.sum()) <= MOST_MEETINGS


def order_by(c: Compact, keys: str, noise: np.random.Generator | None = None) -> Order:
    """Rank of each body when sorted by keys, largest first; with `noise` each key is scaled by up to a quarter."""
    count = len(c)
    spans = np.zeros(count)
    width, height, load = np.zeros(count), np.zeros(count), np.zeros(count)
    loads = np.array(live_bytes(c), dtype=np.float64)
    start = np.full(count, np.inf)
    np.add.at(spans, c.owner, c.span.astype(np.float64))
    np.add.at(width, c.owner, (c.last - c.first).astype(np.float64))
    np.maximum.at(height, c.owner, c.hi.astype(np.float64))
    np.minimum.at(start, c.owner, c.first.astype(np.float64))
    most = np.array([loads[a:b].max() for a, b in zip(c.first, c.last, strict=True)])
    np.maximum.at(load, c.owner, most)
    values = {
        "T": load,
        "Z": height,
        "A": spans * height,
        "W": width,
        "L": spans,
        "B": width * height,
        "S": -start,
    }
    columns = [values[key] * (1.0 if noise is None else noise.uniform(0.75, 1.25, count)) for key in keys]
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort([-column for column in reversed(columns)])] = np.arange(count)
    return rank


class Search:
    """The search on one problem: its arrays, built once, and for each strategy what it has learned."""

    def __init__(self, c: Compact, tricks: Tricks | None = None, seed: int = 0) -> None:
        self._c = c
        self.tricks = tricks or Tricks()
        self._seed = seed % 2**31
        self.model, self._order = _model(c, self.tricks.twins)
        self._weights: dict[int, Array] = {}
        self._stop = np.zeros(1, dtype=np.int64)
        self.nodes = 0

    def attempt(self, capacity: int, strategy: int, limit: int, shuffled: int = 0) -> Found:
        """One strategy with at most `limit` decisions; `shuffled` > 0 perturbs its order, each number differently."""
        how, keys = STRATEGIES[strategy]
        noise = np.random.default_rng([self._seed, strategy, shuffled]) if shuffled else None
        rank = order_by(self._c, keys, noise)
        weight = self._weights.setdefault(strategy, np.ones(self._c.live_sets))
        state = _state(self.model, self._order, weight)
        name = f"exact search {('lowest', 'tightest', 'balanced', 'leaning')[how]}-{keys}"
        if not _start(self._c, self.model, state, capacity):
            return Found(Status.INFEASIBLE, None, 0, name)
        frames = _frames(len(self._c), self._c.live_sets)
        # FOUND is checked by the caller, as any packing is; NOTHING_FITS rests on the search having run to its end.
        answer = kernel.search(self.model, state, frames, rank, how, capacity, limit, self.tricks, self._stop)
        nodes = int(state.counts[layout.NODES])
        if answer == kernel.FOUND:
            return Found(Status.FEASIBLE, state.body[:, layout.LOW].astype(self._c.hi.dtype), nodes, name)
        return Found(Status.INFEASIBLE if answer == kernel.NOTHING_FITS else Status.UNKNOWN, None, nodes, name)

    def run(
        self,
        capacity: int,
        deadline: float,
        workers: int = 1,
        most_nodes: int | None = None,
        rounds: int | None = None,
    ) -> Found:
        """All strategies in rounds of growing length until one has the answer or the time is over.

        `most_nodes` and `rounds` limit the work in another way, which does not depend on the machine's speed.

        `workers` strategies run at once; the first of a batch in the order of STRATEGIES that has the answer is taken,
        so the answer does not depend on which was faster.
        """
        self._stop[0] = 0
        nodes, limit, turn = 0, _FIRST_ROUND + len(self._c), 0
        with ThreadPoolExecutor(max(1, workers)) as pool:
            while (
                time.monotonic() < deadline
                and (most_nodes is None or nodes < most_nodes)
                and (rounds is None or turn < rounds)
            ):
                for at in range(0, len(STRATEGIES), max(1, workers)):
                    batch = range(at, min(at + max(1, workers), len(STRATEGIES)))
                    share = limit if most_nodes is None else min(limit, most_nodes - nodes)
                    jobs = [_job(self, capacity, number, share, turn) for number in batch]
                    found = self._batch(pool, jobs, deadline)
                    nodes += sum(f.nodes for f in found)
                    self.nodes += sum(f.nodes for f in found)
                    for f in found:
                        if f.status != Status.UNKNOWN:
                            return Found(f.status, f.bases, nodes, f.strategy)
                    if time.monotonic() >= deadline or (most_nodes is not None and nodes >= most_nodes):
                        break
                limit, turn = int(limit * _GROWTH), turn + 1
        return Found(Status.UNKNOWN, None, nodes)

    def _batch(self, pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], Found]], deadline: float) -> list[Found]:
        futures = [pool.submit(job) for job in jobs]
        try:
            wait(futures, timeout=min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX))
        finally:  # out of time, or interrupted: the compiled loops end within a decision
            self._stop[0] = int(not all(future.done() for future in futures))
        return [future.result() for future in futures]


def _job(search: Search, capacity: int, strategy: int, limit: int, turn: int) -> Callable[[], Found]:
    # The second round repeats the first with more decisions and what was learned; later ones shuffle every other time.
    return lambda: search.attempt(capacity, strategy, limit, turn // 2 if turn % 2 and turn > 1 else 0)


def _model(c: Compact, twins: bool) -> tuple[Model, Array]:
    first, last = c.first.astype(np.int64), c.last.astype(np.int64)
    by_first = np.argsort(first, kind="stable").astype(np.int64)
    meets, pair = layout.meetings(c.begin, c.owner, first, last, by_first)
    start, order = layout.sections(first, last, c.live_sets)
    count = len(c)
    body = np.zeros((count + 1, 7), dtype=np.int64)
    body[:, layout.BEGIN], body[:, layout.MEETS] = c.begin, meets
    body[:count, layout.ALIGNMENT] = c.alignment
    body[:, layout.LEFT] = c.live_sets
    np.maximum.at(body[:, layout.TOP], c.owner, c.hi.astype(np.int64))
    np.minimum.at(body[:, layout.LEFT], c.owner, first)
    np.maximum.at(body[:, layout.RIGHT], c.owner, last)
    body[:count, layout.TWIN] = _twins(c) if twins else -1
    box = np.stack([c.owner, first, last, c.lo.astype(np.int64), c.hi.astype(np.int64)], axis=1)
    return Model(body, np.ascontiguousarray(box), start, pair), order


def _twins(c: Compact) -> Array:
    """For each body of one box the next that is alike in everything: exchanging them changes nothing."""
    twin = np.full(len(c), -1, dtype=np.int64)
    latest: dict[tuple[int, ...], int] = {}
    for i in range(len(c)):
        k = int(c.begin[i])
        if int(c.begin[i + 1]) - k != 1 or c.fixed[i] >= 0:
            continue
        form = tuple(int(a) for a in (c.first[k], c.last[k], c.lo[k], c.hi[k], c.alignment[i]))
        if form in latest:
            twin[latest[form]] = i
        latest[form] = i
    return twin


def _state(model: Model, order: Array, weight: Array) -> State:
    bodies, live_sets = len(model.body) - 1, len(model.start) - 1
    crossing = np.zeros(live_sets + 1, dtype=np.int64)
    np.add.at(crossing, model.body[:bodies, layout.LEFT], 1)
    np.add.at(crossing, model.body[:bodies, layout.RIGHT] - 1, -1)
    section = np.zeros((live_sets, 6), dtype=np.int64)
    section[:, layout.UNPLACED] = np.diff(model.start)
    section[:, layout.CUT] = np.cumsum(crossing)[:live_sets]
    section[:, layout.DIRTY] = 1
    count = np.zeros(7, dtype=np.int64)
    count[layout.QUEUE], count[layout.MARK] = live_sets, 1
    return State(
        body=np.zeros((bodies, 2), dtype=np.int64),
        section=section,
        queue=np.arange(live_sets, dtype=np.int64),
        order=order.copy(),
        trail=np.zeros((8 * (bodies + 3 * live_sets) + _TRAIL, 2), dtype=np.int64),
        stamp=np.zeros(bodies + 3 * live_sets, dtype=np.int64),
        counts=count,
        weight=weight,
    )


def _frames(bodies: int, live_sets: int) -> Frames:
    return Frames(np.zeros((bodies + 1, 5), dtype=np.int64), np.zeros((bodies + live_sets + 2, 4), dtype=np.int64))


def _start(c: Compact, model: Model, state: State, capacity: int) -> bool:
    """Fixed bodies are placed before all; then every other is lifted off them, and twins off one another."""
    fixed = np.flatnonzero(c.fixed >= 0)
    for i in fixed:
        state.body[i, layout.LOW] = c.fixed[i]
        if c.fixed[i] + model.body[i, layout.TOP] > capacity:
            return False
    if any(not kernel.place(model, state, int(i), capacity) for i in fixed):
        return False
    for i in np.flatnonzero(c.fixed < 0):
        if not kernel.lift(model, state, int(i), 0, capacity):
            return False
        following = int(model.body[i, layout.TWIN])
        if following >= 0:
            k = c.begin[i]
            above = int(state.body[i, layout.LOW] + c.hi[k] - c.lo[k])
            if not kernel.lift(model, state, following, above, capacity):
                return False
    return True


def warm_up() -> None:
    """Compile everything, or load it from the cache, on a problem that uses it."""
    from . import fit

    boxes = ((0, 2, 2), (0, 2, 2), (1, 3, 3), (2, 5, 4))
    bodies = tuple(Body((Box(start, end, 0, nbytes),)) for start, end, nbytes in boxes)
    tiny = compact(PackingProblem((*bodies, Body((Box(0, 1, 0, 1),), fixed=9))))
    Search(tiny).attempt(lower_bound(tiny) // tiny.unit, 0, 100)
    fit.place_compiled(tiny, np.arange(len(tiny)))
