"""Which parcels stay in a tier between their visits: by the residency LP of that tier, or by the policy of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from ..solvers.residency.lp import solve_residency
from ..solvers.residency.problem import Gap, ResidencyProblem
from .items import round_up
from .levels_arena import Times
from .levels_visits import Parcel, Pause
from .replay import Cacheable, Urgency, misses

Fractions = list[list[float]]
"""For each parcel and each of its pauses, the share of it that is away."""

Away = list[list[int]]
"""For each parcel and each of its pauses, how many of its first bytes are away."""


@dataclass(frozen=True)
class Level:
    """A tier of `capacity_nbytes` between two others: its parcels, and the time that the tiers above need.

    Rates are those of its links with the tier below, in bytes per second; 0 where there is none.
    """

    parcels: tuple[Parcel, ...]
    capacity_nbytes: int
    alignment: int
    times: Times
    load_bytes_per_s: float
    store_bytes_per_s: float
    shared_channel: bool

    @property
    def grain(self) -> int:
        """Parcels up to this size are not divided: more transfers would cost more than the bytes are worth."""
        return round_up(max(1, self.capacity_nbytes // 4096), self.alignment)

    def may_leave(self, parcel: Parcel, pause: Pause) -> bool:
        """Whether it is of use, and possible, that a parcel is away in a pause: not where the next visit overwrites it,
        nor where it would have to go down and no link leads there."""
        return not pause.dead and (self.store_bytes_per_s > 0 or not parcel.made)

    def stays(self, parcel: Parcel) -> set[int]:
        """Steps at which a parcel is there whatever is decided: its visits, and pauses in which it cannot leave."""
        spans = [(v.after, end) for v, end in zip(parcel.visits, parcel.ends, strict=True)]
        spans += [(q.start, q.end) for q in parcel.pauses if not q.dead and not self.may_leave(parcel, q)]
        return {t % self.times.steps for start, end in spans for t in range(start, end)}

    @cached_property
    def base_nbytes(self) -> tuple[int, ...]:
        """Bytes that are there at each step whatever is decided."""
        base = [0] * self.times.steps
        for parcel in self.parcels:
            for t in self.stays(parcel):
                base[t] += parcel.nbytes
        return tuple(base)

    @cached_property
    def makes(self) -> bool:
        """Whether anything that the level above made could go on from here to the tier below."""
        return any(not q.clean and self.may_leave(p, q) for p in self.parcels for q in p.pauses)

    def relaxed(self, cut_nbytes: int) -> tuple[Fractions, Times] | None:
        """By parcel and pause, the share that is away in the fluid optimum with `cut_nbytes` left free; and the
        instants of a pass with the waits of that optimum.

        Where only weights come and go, the cut is taken from what the optimum of the whole capacity keeps of them, the
        same share of each, which leaves them evenly spread. What was made above has its own times, which only the
        program knows: then it is solved again. None where the visits alone do not fit.
        """
        solved = cut_nbytes if self.makes else 0
        if solved not in self._solved:
            self._solved[solved] = self._solve(self.capacity_nbytes - solved)
        found = self._solved[solved]
        if found is None or solved == cut_nbytes:
            return found
        return _thinned(self, found[0], cut_nbytes), found[1]

    @cached_property
    def _solved(self) -> dict[int, tuple[Fractions, Times] | None]:
        return {}

    def _solve(self, capacity_nbytes: int) -> tuple[Fractions, Times] | None:
        steps, instants = self.times.steps, self.times.instants_ns
        gaps: list[Gap] = []
        where: list[tuple[int, int]] = []
        for i, parcel in enumerate(self.parcels):
            for n, pause in enumerate(parcel.pauses):
                back = (pause.start - 1) // steps * steps
                if self.may_leave(parcel, pause) and pause.end - pause.start >= 1:
                    gaps.append(Gap(i, parcel.nbytes, pause.start - 1 - back, pause.end - back, pause.clean))
                    where.append((i, n))
        problem = ResidencyProblem(
            durations_ns=tuple(b - a for a, b in pairwise(instants)),
            base_nbytes=self.base_nbytes,
            gaps=tuple(gaps),
            capacity_nbytes=max(0, capacity_nbytes),
            load_bytes_per_s=self.load_bytes_per_s,
            store_bytes_per_s=self.store_bytes_per_s,
            periodic=True,
            shared_channel=self.shared_channel,
        )
        solution = solve_residency(problem, time_limit_s=30.0).solution
        if solution is None:
            return None
        found = [[0.0] * len(parcel.pauses) for parcel in self.parcels]
        for (i, n), absent in zip(where, solution.absent, strict=True):
            found[i][n] = absent
        waits = [0.0, *accumulate(solution.stall_ns)]  # those before step 0 count at the end of the pass
        instants = [
            a + w - waits[1] for a, w in zip(self.times.instants_ns, (*waits[1:], waits[-1] + waits[1]), strict=True)
        ]
        return found, replace(self.times, instants_ns=whole_times(instants))


def _thinned(level: Level, fractions: Fractions, nbytes: int) -> Fractions:
    """`nbytes` more of the weights away: the same share of what is kept of each."""
    pauses = [(i, n, p, q) for i, p in enumerate(level.parcels) for n, q in enumerate(p.pauses)]
    clean = [(i, n) for i, n, p, q in pauses if q.clean and level.may_leave(p, q)]
    kept = sum((1.0 - fractions[i][n]) * level.parcels[i].nbytes for i, n in clean)
    share = min(1.0, nbytes / kept) if kept > 0 else 0.0
    found = [list(f) for f in fractions]
    for i, n in clean:
        found[i][n] += (1.0 - found[i][n]) * share
    return found


def even(level: Level, fractions: Fractions) -> Fractions:
    """The same bytes away, but of all weights with one visit a pass the same share: what comes from below comes in a
    steady stream, which needs the least room."""
    once = [i for i, p in enumerate(level.parcels) if p.homed and len(p.pauses) == len(p.visits) == 1]
    large = [i for i in once if level.parcels[i].nbytes > level.grain]
    total = sum(level.parcels[i].nbytes for i in large)
    away = sum(fractions[i][0] * level.parcels[i].nbytes for i in once)
    found = [list(f) for f in fractions]
    for i in once:
        found[i][0] = 0.0
    for i in large:
        found[i][0] = min(1.0, away / total) if total else 0.0
    return found


def away_nbytes(level: Level, wanted: Fractions) -> Away:
    """The fractions in whole blocks. What is too small to be divided is away or not such that the bytes away keep up
    with the fractions, in the order in which they come back."""
    found: Away = [[0] * len(p.pauses) for p in level.parcels]
    owed = 0.0
    pauses = [(q.end % level.times.steps, i, n) for i, p in enumerate(level.parcels) for n, q in enumerate(p.pauses)]
    for _, i, n in sorted(pauses):
        nbytes = level.parcels[i].nbytes
        if wanted[i][n] <= 1e-6:
            continue
        owed += wanted[i][n] * nbytes
        if nbytes > level.grain:
            found[i][n] = min(nbytes, round_up(int(min(owed, wanted[i][n] * nbytes)), level.alignment))
        elif owed >= 0.5 * nbytes:
            found[i][n] = nbytes
        owed -= found[i][n]
    return found


def nothing_kept(level: Level) -> Away:
    """Whatever is at home below leaves after every visit, if it can; the rest stays."""
    return [[p.nbytes if p.homed and level.may_leave(p, q) else 0 for q in p.pauses] for p in level.parcels]


def all_away(level: Level) -> Away:
    """Whatever comes goes on, after every visit, if it can: what needs the least room."""
    return [[p.nbytes if level.may_leave(p, q) else 0 for q in p.pauses] for p in level.parcels]


def cached(level: Level, capacity_nbytes: int, urgency: Urgency) -> Away | None:
    """Replay a cache of whole parcels until its steady state; what has no copy below stays, and what no link takes
    there. None where that is too much."""
    steps, parcels = level.times.steps, level.parcels
    homed = [i for i, p in enumerate(parcels) if p.homed and (level.store_bytes_per_s > 0 or not p.made)]
    pinned = [0] * steps
    for i in sorted(set(range(len(parcels))) - set(homed)):
        parcel = parcels[i]
        for t in level.stays(parcel) if parcel.homed else range(parcel.visits[0].after, parcel.ends[-1]):
            pinned[t] += parcel.nbytes
    entries = [Cacheable(parcels[i].nbytes, tuple(v.after for v in parcels[i].visits), parcels[i].ends) for i in homed]
    missed = misses(entries, pinned, capacity_nbytes, urgency)
    if missed is None:
        return None
    away: Away = [[0] * len(p.pauses) for p in parcels]
    for k, n in missed:
        parcel = parcels[homed[k]]
        for number, pause in enumerate(parcel.pauses):
            if pause.visit == (n - 1) % len(parcel.visits) and not pause.dead:
                away[homed[k]][number] = parcel.nbytes
    return away


def whole_times(instants_ns: Sequence[float]) -> tuple[int, ...]:
    """Instants as whole nanoseconds that never fall."""
    return tuple(int(x) for x in np.maximum.accumulate(np.round(np.asarray(instants_ns, dtype=np.float64))))
