"""The search behind `stow`: candidates of decisions, each placed and simulated, the best kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..ir.plan import Plan
from ..solvers.landing import LOWEST, land
from ..solvers.packing.loading import load_compiled
from ..solvers.residency.lp import FINE_SIZE
from .instance import Instance
from .place import MANY_BODIES, place
from .realise import realise
from .round import spread_evictions
from .roundings import ways_of
from .spread import load_searches
from .stays import Decisions, live_peak, stays_of

TRANSFER_NBYTES = 256 << 10
"""What one transfer weighs, in bytes moved, where plans are equal in time."""

FEW_MORE_BYTES = 1.05
"""Moving up to this many times the bytes of the LP is not worth more search."""

KEPT = 8
"""How many of the best candidates are remembered."""

RELAX_SHARE = 0.4
"""A linear program that took more than this part of the search is not solved again."""

QUICK_S = 0.7
"""Nor is a coarse one that took more than this: each begins anew."""

AGAIN = 2.0
"""Nor is it waited for when it takes so many times as long as the first, with whose end it begins, and `QUICK_S`."""

FIRST_OF_MANY = 0.06
"""The share of the room that is left free first where thousands of values are made and some of them move."""

LIKE_CUT, MOST_LIKE = 0.01, 0.3
"""Cuts that differ by less than this share of the room fail alike; twice that for each that failed, up to the other."""

PACKING_S = 0.5
"""Seconds for the addresses of one candidate: what is harder to pack is seldom the best."""

PATIENT_S = 2 * PACKING_S
"""The same while nothing has been placed."""


def _moved(plan: Plan) -> int:
    return sum(plan.certificate.moved_nbytes.values())


def _burden(plan: Plan) -> int:
    """Bytes moved, and a constant for each transfer, as a thread that wakes takes a core from the kernels."""
    return _moved(plan) + TRANSFER_NBYTES * len(plan.transfers)


def warm_up() -> None:
    """Load or compile the code that placement calls, so that no search spends its time on that."""
    none = np.zeros(0, dtype=np.int64)
    land(
        none, none, np.zeros(0),
        bottom=0, top=2, nbytes=1, alignment=1, start_ns=0.0, due_ns=0.0, bytes_per_ns=1.0, rule=LOWEST, pointer=0,
    )  # fmt: skip
    load_compiled([], None)
    load_searches()


@dataclass
class Search:
    """What has been tried. `strategy` names the plans; `time_s` is spent once there is a plan, `most_s` before.

    `good_enough`: differences of time below this share are none; fewer bytes decide then, and a plan that is as near to
    the bound and moves hardly more than the LP ends the search. `repairs`: roundings that are too large are repaired,
    not dropped. `content`: a plan that is above the bound by no more than this share ends the search, whatever it
    moves.
    `known`: the seconds for addresses that decisions had, and what they scored.
    """

    instance: Instance
    strategy: str
    seed: int
    time_s: float
    most_s: float
    good_enough: float
    repairs: bool = True
    content: float = -1.0
    best: Plan | None = None
    last: Plan | None = None
    found: list[tuple[float, Decisions, Plan]] = field(default_factory=list[tuple[float, Decisions, Plan]])
    unsplit: tuple[float, Decisions] | None = None
    liked: dict[str, float] = field(default_factory=dict[str, float])
    scores: dict[int, float] = field(default_factory=dict[int, float])
    known: dict[tuple[object, ...], tuple[float, float]] = field(
        default_factory=dict[tuple[object, ...], tuple[float, float]]
    )
    dear_nbytes: float = float("inf")
    began: float = field(default_factory=time.monotonic)

    @property
    def finished(self) -> bool:
        """Good enough, or out of time."""
        spent = time.monotonic() - self.began
        if self.best is None:
            return spent > self.most_s
        lean = _moved(self.best) <= FEW_MORE_BYTES * self.relaxed_nbytes
        done = (self.near and lean) or self.within(self.content)
        return done or spent > min(self.most_s, self.time_s)

    @property
    def left_s(self) -> float:
        """Seconds that remain until there must be an answer."""
        return self.most_s - (time.monotonic() - self.began)

    @property
    def near(self) -> bool:
        """Whether there is a plan, and no other waits less by more than makes a difference."""
        return self.within(self.good_enough)

    def within(self, share: float) -> bool:
        """Whether there is a plan that is above the bound by no more than this share of it; what computing loses to
        what moves (`Link.contention`) is a matter of bytes."""
        if self.best is None:
            return False
        certificate = self.best.certificate
        return certificate.simulated_s - certificate.slowed_s <= self.bound_s * (1 + share)

    @cached_property
    def bound_s(self) -> float:
        """What no plan of this order is faster than."""
        bound = self.instance.relax(self.instance.capacity_nbytes, time_limit_s=self.most_s).bound
        return max(bound or 0.0, sum(self.instance.durations_ns)) / 1e9

    def cuts(self) -> list[int]:
        """Bytes of the room that may have to be left to addresses and whole tensors, the likeliest first: some times
        the largest item that moves, and shares of what the largest working set leaves."""
        instance = self.instance
        result = instance.relax(instance.capacity_nbytes, time_limit_s=self.most_s)
        if result.solution is None:
            return []
        moving = [
            instance.items[gap.item].nbytes
            for gap, e in zip(instance.gaps, result.solution.absent, strict=False)
            if e > 0
        ]
        room = instance.capacity_nbytes - max(instance.base_nbytes, default=0)
        largest = max(moving, default=0)
        wanted = [0.0, 0.5 * largest, largest, 0.03 * room, 0.06 * room, 2 * largest, 0.12 * room, 0.25 * room]
        wanted += [0.5 * room, 0.75 * room, room]
        return list(dict.fromkeys(int(min(w, room)) for w in wanted))

    def ranked_cuts(self) -> list[int]:
        """`cuts` as they are tried. Of thousands of values that are made, some must move and none may be late: without
        some room to spare they never pack, and to find that out takes as long as a plan does."""
        cuts, solution = (
            self.cuts(),
            self.instance.relax(self.instance.capacity_nbytes, time_limit_s=self.most_s).solution,
        )
        moves = solution is not None and any(
            e > 0 and not g.clean for e, g in zip(solution.absent, self.instance.gaps, strict=False)
        )
        if not moves or len(self.instance.items) <= MANY_BODIES:
            return cuts
        room = self.instance.capacity_nbytes - max(self.instance.base_nbytes, default=0)
        return sorted(cuts, key=lambda cut: abs(cut - FIRST_OF_MANY * room))

    def try_cut(self, cut_nbytes: int, roundings: int | None = None) -> None:
        """Score the roundings of the LP's fractions, with what the cut takes from what they keep: all, or as many,
        those first that have been best elsewhere."""
        if self.finished or cut_nbytes >= self.dear_nbytes or self._hopeless(cut_nbytes):
            return
        absent, stall_ns = self.relaxed(cut_nbytes, self.left_s)
        if self.best is not None and self._promised_s(stall_ns) >= self.best.certificate.simulated_s:
            self.dear_nbytes = cut_nbytes  # what takes more room cannot wait less, nor will the best plan take longer
            return
        best = self.scores.get(cut_nbytes, float("inf"))
        made = ways_of(self.instance, self.instance.capacity_nbytes - cut_nbytes, absent, stall_ns, self.repairs)
        tried = 0
        for name in sorted(made, key=lambda n: self.liked.get(n, float("inf"))):
            if self.finished or tried == roundings:
                break
            decisions = made[name]()
            if decisions is not None:
                seconds = self.score(decisions, PATIENT_S if self.best is None else PACKING_S)
                self.liked[name] = min(seconds, self.liked.get(name, float("inf")))
                best, tried = min(best, seconds), tried + 1
        self.scores[cut_nbytes] = best

    def _promised_s(self, stall_ns: Sequence[float]) -> float:
        """Seconds of a pass with these waits."""
        return (sum(self.instance.durations_ns) + sum(stall_ns)) / 1e9

    def relaxed(self, cut_nbytes: int, left_s: float) -> tuple[Sequence[float], Sequence[float]]:
        """Fractions absent and waits under a cut, found in `left_s` seconds. Where only weights leave, what the LP
        keeps of them is thinned evenly: that is better than to pose the LP again, which has no reason to keep the rest
        spread. What is made in the pass has its own times, which only the LP knows."""
        instance = self.instance
        whole = instance.relax(instance.capacity_nbytes, time_limit_s=self.most_s)
        assert whole.solution is not None, "cuts are none without a solution"
        fine = instance.steps + len(instance.solver_gaps) <= FINE_SIZE
        if (
            cut_nbytes
            and left_s > 0
            and whole.seconds < (RELAX_SHARE * self.time_s if fine else QUICK_S)
            and any(e > 0 and not g.clean for e, g in zip(whole.solution.absent, instance.gaps, strict=False))
        ):
            limit_s = min(left_s, max(AGAIN * whole.seconds, QUICK_S))
            less = instance.relax(instance.capacity_nbytes - cut_nbytes, time_limit_s=limit_s)
            if less.solution is not None:
                return less.solution.absent[: len(instance.gaps)], less.solution.stall_ns
        absent = spread_evictions(instance, whole.solution.absent[: len(instance.gaps)], cut_nbytes)
        return absent, whole.solution.stall_ns

    def _hopeless(self, cut_nbytes: int) -> bool:
        """Whether there is no plan yet, and nothing could be placed under a cut that is not much smaller: where much
        room must be left, as among weights whose stays reach around the pass, each try takes longer than the last."""
        failed = [cut for cut, score in self.scores.items() if score == float("inf")]
        room = self.instance.capacity_nbytes - max(self.instance.base_nbytes, default=0)
        near = min(LIKE_CUT * 2 ** len(failed), MOST_LIKE) * room
        return self.best is None and any(cut_nbytes < cut + near for cut in failed)

    def best_cuts(self, number: int) -> list[int]:
        """The cuts with the best scores, those that have one."""
        ranked = sorted(self.scores, key=lambda c: (self.scores[c], c))
        return [c for c in ranked if self.scores[c] < float("inf")][:number]

    def between_best(self) -> list[int]:
        """The middles between the best cut and its neighbours."""
        tried = sorted(self.scores)
        at = tried.index(min(self.scores, key=lambda c: (self.scores[c], c)))
        ends = tried[max(at - 1, 0) : at + 2]
        return [(a + b) // 2 for a, b in pairwise(ends) if b > a + 1]

    def score(self, decisions: Decisions, packing_time_s: float = PACKING_S) -> float:
        """Simulated seconds of a pass under `decisions`, remembered if best; infinite where nothing fits."""
        self.last = None
        given_s, seconds = self.known.get(decisions.key, (-1.0, float("inf")))
        if seconds == float("inf") and given_s < packing_time_s:
            seconds = self._score(decisions, packing_time_s)
            self.known[decisions.key] = packing_time_s, seconds
        return seconds

    def _score(self, decisions: Decisions, packing_time_s: float) -> float:
        """The same of decisions that are not known."""
        instance = self.instance
        stays = stays_of(instance, decisions)
        if live_peak(instance, stays) > instance.capacity_nbytes:
            return float("inf")
        placed = place(instance, stays, decisions, packing_time_s=packing_time_s, seed=self.seed)
        if placed is None:
            return float("inf")
        plan = realise(instance, placed, self.strategy)
        if instance.spills_too_much(plan):
            return float("inf")
        self.last = plan
        seconds = plan.certificate.simulated_s
        if not decisions.kept_nbytes and (self.unsplit is None or seconds < self.unsplit[0]):
            self.unsplit = seconds, decisions
        self.found.append((seconds, decisions, plan))
        self.found.sort(key=lambda entry: entry[0])
        del self.found[KEPT:]
        if self.best is None or self._better(plan, self.best):
            self.best = plan
        return seconds

    def _better(self, plan: Plan, best: Plan) -> bool:
        """Faster; or as fast with a lighter burden: what hides behind computing still takes bandwidth and wake-ups."""
        new, old = plan.certificate.simulated_s, best.certificate.simulated_s
        if abs(new - old) <= self.good_enough * old:
            return (_burden(plan), new) < (_burden(best), old)
        return new < old

    @cached_property
    def relaxed_nbytes(self) -> float:
        """Bytes that the LP moves in a pass."""
        instance = self.instance
        solution = instance.relax(instance.capacity_nbytes, time_limit_s=self.most_s).solution
        if solution is None:
            return 0.0
        shares = zip(solution.absent, solution.stored, solution.ahead, instance.solver_gaps, strict=False)
        return sum((absent + stored + ahead) * gap.nbytes for absent, stored, ahead, gap in shares)
