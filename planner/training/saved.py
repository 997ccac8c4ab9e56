"""Which of the tensors that autograd saves leave memory, where a module runs as it is and only they can be planned.

The clock is that of the profile, the step without stalls. What is saved must find room: while it does not, the step
waits for stores, which run one after another from when their tensors were saved. In the backward pass, whenever a
tensor is needed or let go, loads of what was saved before it start while there is room, the latest first; what is
needed and not there is waited for. `simulate` is what the engine of the runtime does, stores that it would cancel
included as if they ran.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

from ...ir.errors import InfeasibleError, InputError
from ...ir.saved import Choice, SavedPlan, SavedProfile, SavedTensor

_PACK, _NEED, _FREE = range(3)
_TRIALS = 300
"""Simulations of the local search, each linear in the number of tensors."""

Events = Sequence["tuple[float, int, int]"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a choice: seconds waited, the most bytes of saved tensors in memory, bytes that were stored."""

    stall_s: float
    peak_nbytes: int
    stored_nbytes: int


def plan_saved(
    profile: SavedProfile, capacity_nbytes: int, *, write_bytes_per_s: float, read_bytes_per_s: float, seed: int = 0
) -> SavedPlan:
    """The choice that waits least of those tried: several orders cut where they fit, then a local search.

    Raises InfeasibleError where what must be in memory at one time is more than `capacity_nbytes`.
    """
    if not (write_bytes_per_s > 0 and read_bytes_per_s > 0):
        raise InputError(f"rates of {write_bytes_per_s} and {read_bytes_per_s} bytes per second: give positive ones")
    tensors = profile.tensors
    for i, t in enumerate(tensors):
        if t.nbytes < 0 or not t.packed_s <= t.needed_s <= t.freed_s:
            raise InputError(
                f"saved tensor {i} of {t.nbytes} bytes is saved at {t.packed_s} s, needed at {t.needed_s} s and let go "
                f"at {t.freed_s} s: profile the step again"
            )
    needed = required_nbytes(tensors)
    if needed > capacity_nbytes:
        raise InfeasibleError(
            f"the step needs {needed} bytes of saved tensors at one time, the capacity for them is {capacity_nbytes}; "
            f"give at least {needed}",
            smallest_nbytes=needed,
        )
    events = _events(tensors)

    def outcome(chosen: frozenset[int]) -> Outcome | None:
        return simulate(tensors, events, chosen, capacity_nbytes, write_bytes_per_s, read_bytes_per_s)

    chosen = _search(tensors, outcome, Random(seed))
    result = outcome(chosen)
    assert result is not None, "all offloaded fits where what is needed does"
    choices: tuple[Choice, ...] = tuple(
        "held" if t.held else "offload" if i in chosen else "keep" for i, t in enumerate(tensors)
    )
    return SavedPlan(
        capacity_nbytes,
        tuple(t.nbytes for t in tensors),
        choices,
        stall_s=result.stall_s,
        bound_s=stall_bound_s(tensors, capacity_nbytes, write_bytes_per_s, read_bytes_per_s),
        peak_nbytes=result.peak_nbytes,
        offloaded_nbytes=result.stored_nbytes,
    )


def required_nbytes(tensors: Sequence[SavedTensor]) -> int:
    """The most bytes that the backward pass reads at one time, with what is saved meanwhile: any plan needs them."""
    now = most = 0
    for _, what, i in _events(tensors):
        nbytes = tensors[i].nbytes
        now += nbytes if what == _NEED else 0 if what == _PACK else -nbytes
        most = max(most, now + (nbytes if what == _PACK else 0))
    return most


def stall_bound_s(
    tensors: Sequence[SavedTensor], capacity_nbytes: int, write_bytes_per_s: float, read_bytes_per_s: float
) -> float:
    """Seconds that every choice waits, also one that splits tensors.

    At instant t, S of the tensors that live then and do not fit are below. They were stored since the first of them
    was saved, so the step has waited S / write - (t - first saved) before t; they are loaded before the last of them
    is needed, so it waits S / read - (last needed - t) after t. Waiting before t and after a later t' adds up.
    """
    before = best = 0.0
    for t in sorted({x.packed_s for x in tensors if not x.held}):
        live = [x for x in tensors if not x.held and x.packed_s <= t < x.freed_s]
        below = sum(x.nbytes for x in live) - capacity_nbytes
        if below > 0:
            before = max(before, below / write_bytes_per_s - (t - min(x.packed_s for x in live)))
            after = below / read_bytes_per_s - (max(x.needed_s for x in live) - t)
            best = max(best, before + max(0.0, after))
    return best


def _events(tensors: Sequence[SavedTensor]) -> Events:
    """(time, what, tensor) in order. At one instant what was needed before is let go first, and saving comes last, but
    for what is saved, needed or let go at once."""
    found: list[tuple[float, int, int, int]] = []
    for i, t in enumerate(tensors):
        if not t.held:
            found.append((t.packed_s, 2 if t.needed_s > t.packed_s else 1, i, _PACK))
            found.append((t.needed_s, 1, i, _NEED))
            found.append((t.freed_s, 0 if t.freed_s > t.needed_s else 1, i, _FREE))
    return [(time, what, i) for time, _, i, what in sorted(found)]


def simulate(
    tensors: Sequence[SavedTensor],
    events: Events,
    chosen: frozenset[int],
    capacity_nbytes: int,
    write_bytes_per_s: float,
    read_bytes_per_s: float,
) -> Outcome | None:
    """What happens if the tensors in `chosen` are offloaded; None where the capacity is not kept."""
    run = _Run(tensors, capacity_nbytes, write_bytes_per_s, read_bytes_per_s)
    for time, what, i in events:
        run.now = max(run.now, time + run.stall)
        run.complete_stores()
        if what == _PACK:
            fits = run.pack(i, i in chosen)
        elif what == _NEED:
            fits = run.need(i)
        else:
            fits = run.free(i)
        if not fits:
            return None
        run.stall = run.now - time
    return Outcome(run.stall, run.peak, sum(tensors[i].nbytes for i in chosen))


class _Run:
    """The state of a simulated step: `memory` and `below` hold tensors, `stores` those on their way with their ends."""

    def __init__(self, tensors: Sequence[SavedTensor], capacity: int, write: float, read: float) -> None:
        self.tensors, self.capacity, self.write, self.read = tensors, capacity, write, read
        self.now = self.stall = 0.0
        self.resident = self.peak = 0
        self.stores: deque[tuple[int, float]] = deque()
        self.pending: set[int] = set()
        self.below: list[int] = []
        self.loads: dict[int, float] = {}  # loaded or being loaded and not needed yet, with the end
        self.writer = self.reader = 0.0
        self.backward = -1  # the tensor that was needed last

    def _take(self, nbytes: int) -> None:
        self.resident += nbytes
        self.peak = max(self.peak, self.resident)

    def complete_stores(self) -> None:
        """Those that have ended by now."""
        while self.stores and self.stores[0][1] <= self.now:
            i, _ = self.stores.popleft()
            if i in self.pending:
                self.pending.remove(i)
                self.resident -= self.tensors[i].nbytes
                insort(self.below, i)

    def _make_room(self, nbytes: int) -> bool:
        """Stores end, then what was loaded ahead goes, the earliest saved first; whether `nbytes` more fit then."""
        while self.resident + nbytes > self.capacity and self.stores:
            self.now = max(self.now, self.stores[0][1])
            self.complete_stores()
        while self.resident + nbytes > self.capacity and self.loads:
            farthest = min(self.loads)
            del self.loads[farthest]
            self.resident -= self.tensors[farthest].nbytes
            insort(self.below, farthest)
        return self.resident + nbytes <= self.capacity

    def pack(self, i: int, offload: bool) -> bool:
        """It is saved."""
        self.backward = -1
        nbytes = self.tensors[i].nbytes
        if not self._make_room(nbytes):
            return False
        self._take(nbytes)
        if offload:
            self.writer = max(self.writer, self.now) + nbytes / self.write
            self.stores.append((i, self.writer))
            self.pending.add(i)
        return True

    def need(self, i: int) -> bool:
        """It is read: forwarded from memory, waited for, or fetched now."""
        self.backward = i
        self.pending.discard(i)
        if i in self.loads:
            self.now = max(self.now, self.loads.pop(i))
        elif i in self.below:
            if not self._make_room(self.tensors[i].nbytes):
                return False
            self._load(i)
            self.now = max(self.now, self.loads.pop(i))
        self.prefetch()
        return True

    def free(self, i: int) -> bool:
        """It is let go."""
        self.resident -= self.tensors[i].nbytes
        self.prefetch()
        return True

    def prefetch(self) -> None:
        """Loads of what was saved before what was needed last, while there is room."""
        if self.backward < 0:
            return
        at = bisect_left(self.below, self.backward)
        while at and self.resident + self.tensors[self.below[at - 1]].nbytes <= self.capacity:
            at -= 1
            self._load(self.below[at])

    def _load(self, i: int) -> None:
        del self.below[bisect_left(self.below, i)]
        self._take(self.tensors[i].nbytes)
        self.reader = max(self.reader, self.now) + self.tensors[i].nbytes / self.read
        self.loads[i] = self.reader


def _search(
    tensors: Sequence[SavedTensor], outcome: Callable[[frozenset[int]], Outcome | None], random: Random
) -> frozenset[int]:
    """The best of the prefixes of some orders, bettered by single changes and exchanges."""
    free = [i for i, t in enumerate(tensors) if not t.held and t.nbytes]
    if 1 << len(free) <= _TRIALS:  # few enough to try them all
        subsets = (frozenset(c) for n in range(len(free) + 1) for c in combinations(free, n))
        return min(subsets, key=lambda c: _worth(outcome(c)))
    best, worth = _prefixes(tensors, free, outcome)
    for _ in range(_TRIALS if worth > (0.0, 0) else 0):
        flipped = {random.choice(free)} | ({random.choice(free)} if random.random() < 0.5 else set[int]())
        value = _worth(outcome(best ^ flipped))
        best, worth = (best ^ flipped, value) if value < worth else (best, worth)
    return best


def _prefixes(
    tensors: Sequence[SavedTensor], free: list[int], outcome: Callable[[frozenset[int]], Outcome | None]
) -> tuple[frozenset[int], tuple[float, int]]:
    """The best of some orders, each cut where it begins to fit and a little after, and what it is worth."""
    rest = {i: tensors[i].needed_s - tensors[i].packed_s for i in free}
    orders: tuple[Callable[[int], float], ...] = (
        lambda i: -rest[i],
        lambda i: -tensors[i].nbytes,
        lambda i: -rest[i] * tensors[i].nbytes,
        lambda i: tensors[i].packed_s,
    )
    best, worth = frozenset(free), _worth(outcome(frozenset(free)))
    for order in orders:
        ordered = sorted(free, key=order)
        low, high = 0, len(ordered)  # the prefix of `high` fits, as far as more offloading never fits less
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if outcome(frozenset(ordered[:middle])) is not None else (middle + 1, high)
        for count in {high, min(len(ordered), high + 1), (high + len(ordered)) // 2}:
            found = frozenset(ordered[:count])
            value = _worth(outcome(found))
            best, worth = (found, value) if value < worth else (best, worth)
    return best, worth


def _worth(outcome: Outcome | None) -> tuple[float, int]:
    return (float("inf"), 0) if outcome is None else (outcome.stall_s, outcome.stored_nbytes)
