"""A lower bound on waiting when loads run behind computation: the stall linear program, over one link and over two.

Events are the sets of all caches in the order of time; event j computes for d_j. Of each interval between two uses of
an object (event a to event b) the fraction e is given up and loaded again by b; of it, over two links, the fraction f
is given up below as well and passes both links (storage to memory, memory to cache). With q_j the wait before event j,
l_j what a link brings between the starts of events j-1 and j, and X_j what it has brought ahead of need:

    minimise    sum of q_j
    subject to  X_j = X_(j-1) + l_j - (what is due at j) >= 0,   l_j <= rate x (d_(j-1) + q_j)   for each link
                kept in a cache while one of its sets is at work <= its capacity - that set
                kept in all caches + X_j <= all capacities
                kept below + X_j of the link into it - X_j of the link out of it <= the capacity below.

The last line is what lies below: not what has passed up already, ahead of its use. Every timeline with any knowledge of
the future satisfies all this (transfers may overlap, split and interleave at will), so no schedule waits less; but over
two links what a cache gives up and finds below has lain there since its use: a schedule that writes copies down, out of
the caches, is not of this class. First uses must be loaded unless the caches are taken to begin with them (`warm`).
Sizes are divided by the largest one, times by what that one takes over the last link, so that tolerances of an engine
mean as much for bytes as for objects.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..linear import Highs, LinearProgram, safe_bound
from ..result import Status
from .problem import NONE, Floats, Ints, Requests


@dataclass(frozen=True, slots=True)
class Links:
    """What moves and how fast: `load_ns` for one unit of size over the last link, into the caches.

    With `below_ns` there is a second link before it and `below_capacity` units of size between the two; without, all
    objects lie where the last link begins.
    """

    load_ns: float
    below_ns: float | None = None
    below_capacity: float = 0


@dataclass(frozen=True, slots=True)
class StallBound:
    """No schedule waits less than `stall_ns` in all windows together. `windows` counts them, `seconds` is wall time.

    `status` is OPTIMAL, or FEASIBLE where time ran out and the windows left count nothing.
    """

    stall_ns: float
    windows: int
    status: Status
    seconds: float


class _Rows:
    """Entries of a sparse matrix, one family of rows after the other."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Ints, Floats]] = []
        self.lower: list[Floats] = []
        self.upper: list[Floats] = []
        self.count = 0

    def family(self, count: int, lower: float | Floats, upper: float | Floats) -> int:
        """`count` rows between limits; the number of the first."""
        first = self.count
        self.lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), (count,)))
        self.upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (count,)))
        self.count += count
        return first

    def add(self, rows: Ints, columns: Ints, values: float | Floats) -> None:
        """Entries, by absolute row and column."""
        wide = np.broadcast_to(np.asarray(values, dtype=np.float64), rows.shape)
        self._parts.append((rows, columns, wide))

    def program(self, cost: Floats, col_lower: Floats, col_upper: Floats) -> LinearProgram:
        """The linear program with these rows; entries at the same place are added up."""
        rows, columns, values = (np.concatenate([p[i] for p in self._parts]) for i in range(3))
        keys, place = np.unique(rows * len(cost) + columns, return_inverse=True)
        summed = np.bincount(place, weights=values, minlength=len(keys)).astype(np.float64)
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys // len(cost), minlength=self.count))])
        return LinearProgram(
            cost,
            col_lower,
            col_upper,
            np.concatenate(self.lower),
            np.concatenate(self.upper),
            starts.astype(np.int32),
            (keys % len(cost)).astype(np.int32),
            summed,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Events:
    """One window, in units of the largest object and of its time over the last link: sizes of intervals, where they
    start and end, their cache.

    `start` is -1 where the interval began before the window, and J, the number of events, where it ends after it.
    `due` is what first uses bring at each event.
    """

    size: Floats
    cache: Ints
    start: Ints
    end: Ints
    due: Floats
    sets: Floats


def stall_bound(
    requests: Requests,
    capacity: int | Ints,
    links: Links,
    compute_ns: float | Sequence[float],
    *,
    warm: bool = False,
    window: int = 96,
    time_limit_s: float = 120.0,
) -> StallBound:
    """A lower bound on the total wait. `compute_ns` is that of an event, or of an event of each cache.

    `window` is in rounds; windows are bounded apart, each but the first taken to begin with whatever it likes in the
    caches. With `warm` so is the first; else its first uses must be loaded.
    """
    began = time.monotonic()
    unit = float(requests.sizes.max(initial=1))
    # Rounding a quotient may cut off what fits exactly: limits are a little wider than the division says.
    limits = requests.capacities(capacity) / unit * (1 + 1e-12)
    below = None
    if links.below_ns is not None:
        below = links.load_ns / links.below_ns, links.below_capacity / unit * (1 + 1e-12)
    time_ns = links.load_ns * unit
    each = np.broadcast_to(np.asarray(compute_ns, dtype=np.float64), (requests.caches,)) / time_ns
    total, status, windows = 0.0, Status.OPTIMAL, 0
    for low in range(0, requests.rounds, window):
        left = time_limit_s - (time.monotonic() - began)
        windows += 1
        if left <= 0:
            status = Status.FEASIBLE
            break
        high = min(low + window, requests.rounds)
        events = _events(requests, low, high, warm or low > 0, unit)
        program = _program(events, limits, below, np.tile(each, high - low))
        solver = Highs(program)
        # Any multipliers give a bound: an interior point's do, in a twentieth of the simplex method's time.
        solver.option("solver", "ipm")
        solver.option("run_crossover", "off")
        answer = solver.solve(left)
        if answer.duals is None:
            status = Status.FEASIBLE
            continue
        total += max(0.0, safe_bound(program, answer.duals)) * time_ns
    return StallBound(total, windows, status, time.monotonic() - began)


def _events(requests: Requests, low: int, high: int, free: bool, unit: float) -> _Events:
    """Intervals between uses of rounds [low, high), sizes in `unit`s; `free`: what was not used yet may have been there
    before."""
    caches = requests.caches
    size: list[float] = []
    cache: list[int] = []
    start: list[int] = []
    end: list[int] = []
    due = np.zeros((high - low) * caches)
    sets = np.zeros((high - low) * caches)
    begins = requests.resets()
    last: dict[tuple[int, int], int] = {}
    for t in range(low, high):
        if begins[t]:
            last, free = {}, False
        for c in range(caches):
            at = (t - low) * caches + c
            for o in requests.ids[t, c].tolist():
                if o == NONE:
                    continue
                units = float(requests.sizes[c, o]) / unit
                sets[at] += units
                if (c, o) in last or free:
                    size.append(units)
                    cache.append(c)
                    start.append(last.get((c, o), -1))
                    end.append(at)
                else:
                    due[at] += units
                last[c, o] = at
    return _Events(
        np.array(size), np.array(cache, np.int64), np.array(start, np.int64), np.array(end, np.int64), due, sets
    )


def _program(events: _Events, limits: Floats, below: tuple[float, float] | None, compute: Floats) -> LinearProgram:
    """Columns: e of each interval, q of each event, what each cache keeps around each of its events (A); then for each
    link l, X and what is kept above it (P) of each event; and f with two links. `below` is the first one's rate against
    the last one's, and the capacity between them."""
    n, count = len(events.size), len(compute)
    at_q, at_a = n, n + count
    upper_link = (0, at_q, n + 2 * count)
    at_f = n + 5 * count
    columns = at_f + (0 if below is None else n + 3 * count)
    rows = _Rows()
    # Nothing is loaded twice by a best schedule: limits that cut nothing off, so that rounding cannot undo the bound.
    most = float(events.size.sum() + events.due.sum()) + 1.0
    col_upper = np.full(columns, most)
    col_upper[:n] = 1.0
    col_upper[at_q : at_q + count] = most if below is None else most * max(1.0, 1.0 / below[0])
    _kept_by_each(rows, events, at_a, len(limits))
    col_upper[at_a : at_a + count] = limits[np.arange(count) % len(limits)] - events.sets
    _flow(rows, events, upper_link, compute, 1.0)
    kept = _kept_in_all(rows, events, upper_link[2], less=None)
    at_x, number = upper_link[2] + count, np.arange(count, dtype=np.int64)
    total = rows.family(count, -np.inf, float(limits.sum()))
    rows.add(total + number, kept + number, 1.0)
    rows.add(total + number, at_x + number, 1.0)
    col_upper[kept : kept + count] = float(limits.sum())
    if below is not None:
        rate, between = below
        col_upper[at_f : at_f + n] = 1.0
        lower_link = (at_f, at_q, at_f + n)
        _flow(rows, events, lower_link, compute, rate)
        pairs = np.arange(n, dtype=np.int64)
        first = rows.family(n, -np.inf, 0.0)  # f <= e
        rows.add(first + pairs, at_f + pairs, 1.0)
        rows.add(first + pairs, pairs, -1.0)
        kept = _kept_in_all(rows, events, lower_link[2], less=at_f)
        held = rows.family(count, -np.inf, between)
        rows.add(held + number, kept + number, 1.0)
        rows.add(held + number, lower_link[2] + count + number, 1.0)
        rows.add(held + number, at_x + number, -1.0)
    cost = np.zeros(columns)
    cost[at_q : at_q + count] = 1.0
    return rows.program(cost, np.zeros(columns), col_upper)


def _flow(rows: _Rows, events: _Events, at: tuple[int, int, int], compute: Floats, rate: float) -> None:
    """X_j - X_(j-1) - l_j + sum of s e due at j = -(first uses at j);  l_j - rate q_j <= rate d_(j-1)."""
    at_e, at_q, at_l = at
    count = len(compute)
    at_x = at_l + count
    number = np.arange(count, dtype=np.int64)
    first = rows.family(count, -events.due, -events.due)
    rows.add(first + number, at_x + number, 1.0)
    rows.add(first + number[1:], at_x + number[:-1], -1.0)
    rows.add(first + number, at_l + number, -1.0)
    rows.add(first + events.end, at_e + np.arange(len(events.size), dtype=np.int64), events.size)
    earlier = np.concatenate([[0.0], compute[:-1]])
    limit = rows.family(count, -np.inf, rate * earlier)
    rows.add(limit + number, at_l + number, 1.0)
    rows.add(limit + number, at_q + number, -rate)


def _kept_by_each(rows: _Rows, events: _Events, at_a: int, caches: int) -> None:
    """A_j - A_(j - caches) - sum of s (1 - e) that begins to span j + sum of s (1 - e) that no longer does = 0."""
    count = len(events.sets)
    number = np.arange(count, dtype=np.int64)
    begin = np.where(events.start < 0, events.cache, events.start + caches)
    spans = np.flatnonzero(begin < events.end)
    net = np.zeros(count)
    net += np.bincount(begin[spans], weights=events.size[spans], minlength=count)
    net -= np.bincount(events.end[spans], weights=events.size[spans], minlength=count)
    first = rows.family(count, net, net)
    rows.add(first + number, at_a + number, 1.0)
    rows.add(first + number[caches:], at_a + number[:-caches], -1.0)
    rows.add(first + begin[spans], spans, events.size[spans])
    rows.add(first + events.end[spans], spans, -events.size[spans])


def _kept_in_all(rows: _Rows, events: _Events, at_l: int, *, less: int | None) -> int:
    """P_j - P_(j-1) - sum of s w that begins at j + sum of s w that ends at j = 0; the first column of P.

    w is 1 - e where `less` is None, in the caches; else e - f, below them, f at column `less`.
    """
    count = len(events.sets)
    at_p = at_l + 2 * count
    number = np.arange(count, dtype=np.int64)
    pairs = np.arange(len(events.size), dtype=np.int64)
    begin = np.maximum(events.start, 0)
    net = np.zeros(count)
    if less is None:
        net += np.bincount(begin, weights=events.size, minlength=count)
        net -= np.bincount(events.end, weights=events.size, minlength=count)
    first = rows.family(count, net, net)
    rows.add(first + number, at_p + number, 1.0)
    rows.add(first + number[1:], at_p + number[:-1], -1.0)
    sign = 1.0 if less is None else -1.0
    rows.add(first + begin, pairs, sign * events.size)
    rows.add(first + events.end, pairs, -sign * events.size)
    if less is not None:
        rows.add(first + begin, less + pairs, events.size)
        rows.add(first + events.end, less + pairs, -events.size)
    return at_p
