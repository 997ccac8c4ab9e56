"""The independent parts of a packing problem, and the first packings of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import greedy
from .compact import Compact, Ints, compact, components, lower_bound
from .loading import Progress, load_compiled
from .problem import PackingProblem

# Parts above this many boxes get compiled first fits, and exact search on their most loaded bodies alone.
_LARGE = 1_600
_FAR = 2**61
"""No wish from here on, in bytes: what first fit adds to it would leave 64 bits."""


@dataclass(slots=True, eq=False)
class Part:
    """Bodies that share no instant with other parts, and the best packing of them so far. Bytes, except `bases`.

    `bound` is proven. `method` is empty as long as there is no packing.
    """

    members: list[int]
    form: Compact
    bound: int
    bases: Ints
    peak: int
    method: str

    @property
    def large(self) -> bool:
        """Whether it is too large for anything quadratic in Python."""
        return len(self.form.owner) > _LARGE

    def take(self, bases: Ints, method: str) -> None:
        """Accept a packing if it is lower."""
        peak = int(np.max(bases[self.form.owner] + self.form.hi)) * self.form.unit
        if not self.method or peak < self.peak:
            self.bases, self.peak, self.method = bases, peak, method


def wishes(problem: PackingProblem, start: Sequence[int | None]) -> list[int]:
    """The base of each body that is fixed, else the one in an earlier packing; -1 where that is none."""
    return [
        body.fixed if body.fixed is not None else -1 if s is None or s < 0 or s % body.alignment else s
        for s, body in zip(start, problem.bodies, strict=True)
    ]


def whole_of(problem: PackingProblem, wished: Sequence[int] | None) -> Compact:
    """The problem made small, in units in which every wish can be said."""
    return compact(problem, () if wished is None else (w for w in wished if w >= 0))


def split(problem: PackingProblem, whole: Compact, bound: int, goal: int, wished: Sequence[int] | None) -> list[Part]:
    """The independent parts; where there is but one, it is the whole, which is compact already.

    Those that one first fit brings down to `goal` bytes are one part together: there may be as many as bodies, and each
    by itself takes its while.
    """
    groups = components(whole)
    if len(groups) == 1:
        form = replace(whole, bodies=tuple(range(len(whole))))
        return [Part(list(whole.bodies), form, bound, form.fixed, 0, "")]
    found: list[Part] = []
    for batch in _batches(groups, np.diff(whole.begin).tolist()):
        found += _fitted(problem, [[whole.bodies[i] for i in group] for group in batch], goal, wished)
    return found


def _batches(groups: Iterable[list[int]], boxes: Sequence[int]) -> Iterator[list[list[int]]]:
    """Groups one after another, as long as they have no more than `_LARGE` boxes together."""
    batch: list[list[int]] = []
    held = 0
    for group in groups:
        more = sum(boxes[i] for i in group)
        if batch and held + more > _LARGE:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += more
    if batch:
        yield batch


def _fitted(problem: PackingProblem, groups: list[list[int]], goal: int, wished: Sequence[int] | None) -> list[Part]:
    """One part for all groups that a first fit brings down to the goal, and one for each of the others."""
    joined = _part(problem, [i for group in groups for i in group], wished)
    if len(groups) == 1:
        return [joined]
    c = joined.form
    if wished is None:
        joined.take(greedy.first_fit(c, greedy.by_size(c), greedy.conflicts(c)), "first-fit by size")
    else:
        joined.take(_from_start(joined, wished), "start")
    if joined.peak <= goal:
        return [joined]
    tops = np.zeros(len(c), dtype=c.hi.dtype)
    np.maximum.at(tops, c.owner, joined.bases[c.owner] + c.hi)
    low: list[int] = []
    found: list[Part] = []
    at = 0
    for group in groups:
        own = range(at, at + len(group))
        at = own.stop
        if int(tops[own.start : own.stop].max()) * c.unit <= goal:
            low += own
        else:
            found.append(_part(problem, group, wished))
    if low:
        part = _part(problem, [joined.members[i] for i in low], wished)
        part.take(joined.bases[low] * c.unit // part.form.unit, joined.method)
        found.append(part)
    return found


def _part(problem: PackingProblem, members: list[int], wished: Sequence[int] | None) -> Part:
    form = whole_of(
        PackingProblem(tuple(problem.bodies[i] for i in members)),
        None if wished is None else [wished[i] for i in members],
    )
    return Part(members, form, lower_bound(form), form.fixed, 0, "")


def first_packings(
    parts: list[Part],
    goal: int,
    wished: Sequence[int] | None,
    deadline: float,
    notes: list[str],
    progress: Progress | None,
) -> float:
    """The start, then static orders for every part. Returns the seconds that compiling took."""
    compiling = 0.0
    for part in parts:
        c, target = part.form, goal // part.form.unit
        if wished is not None and not part.method:
            part.take(_from_start(part, wished), "start")
        if part.method and part.peak <= max(goal, part.bound):
            continue
        if part.large and c.hi.dtype != np.dtype(object):
            compiled, seconds = load_compiled(notes, progress)
            compiling += seconds
            if compiled:
                from .fit import portfolio_compiled

                found = portfolio_compiled(c, target, deadline + compiling)
                part.take(found.bases, found.method)
                continue
        found = greedy.portfolio(c, greedy.conflicts(c), target, deadline)
        part.take(found.bases, found.method)
    return compiling


def _from_start(part: Part, wished: Sequence[int]) -> Ints:
    """Bodies get the bases that they wish in the order of these where they are free; others go by first fit."""
    c = part.form
    far = _FAR - int(c.hi.max()) * c.unit if c.hi.dtype != np.dtype(object) else None
    bases = [-1 if w < 0 or (far is not None and w >= far) else w // c.unit for w in (wished[i] for i in part.members)]
    order = np.array(sorted(range(len(c)), key=lambda i: (bases[i] < 0, bases[i], -int(c.hi[c.begin[i]]))))
    return greedy.first_fit(c, order.astype(np.int64), greedy.conflicts(c), wished=bases)
