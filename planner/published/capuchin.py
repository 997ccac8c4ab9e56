"""Capuchin: swap what hides behind computing, recompute what saves most memory for its time.

Source: Peng et al., 'Capuchin: Tensor-based GPU Memory Management for Deep Learning', ASPLOS 2020. Section 4.3 picks
candidates among the accesses around the peak; section 4.4 ranks swaps by Free Time, FT = (back access - swap time)
- (evicted access + swap time), equation 1, the largest first; section 4.5 ranks recomputations by Memory Saving Per
Second, MSPS = memory saving / recomputation time, equation 2, with recomputation time that grows by what it needs and
was given up, too; Algorithm 1 of section 4.6 takes swaps while they hide, and then whichever of the best swap and the
best recomputation costs less.

Adapted: their accesses are measured in a first iteration, here durations are given; their runtime moves the triggers of
late swaps forward by feedback, here the placement starts loads as early as addresses allow, and the simulator judges.
Transfers of a direction queue on its link, so a swap hides only if all chosen ones do, in order of access and deadline.
Weights, gradients and optimizer states stay, as there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ...ir.errors import TimeLimitError
from ...ir.plan import Plan
from ...ir.sizes import format_size
from ..fit import CUTS
from ..instance import Instance
from ..one_way import store_link
from ..place import place
from ..realise import realise
from ..recompute_orders import Flow, recompute_order
from ..stays import Decisions, live_peak, make_stays
from ..strategies import Effort, register
from .checkpointing import recomputable, too_small
from .common import load_link


@dataclass(frozen=True, slots=True)
class Swap:
    """A storage that may leave after step `start` and must be back at step `end`; times of its transfers and of these
    instants in nanoseconds."""

    storage: str
    start: int
    end: int
    nbytes: int
    out_ns: int
    in_ns: int
    leaves_ns: int
    needed_ns: int

    @property
    def free_ns(self) -> int:
        """Equation 1."""
        return (self.needed_ns - self.in_ns) - (self.leaves_ns + self.out_ns)


@register
@dataclass(frozen=True, slots=True)
class Capuchin:
    """Algorithm 1. Where its plan finds no addresses it is told a smaller memory, as every baseline here."""

    name: ClassVar[str] = "capuchin"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the largest memory told for which addresses are found."""
        flow = recomputable(instance, self.name)
        began = time.monotonic()
        least = max(instance.base_nbytes)
        smallest: int | None = None
        for cut in CUTS:
            told = instance.capacity_nbytes - int(cut * (instance.capacity_nbytes - least))
            policy = _Policy(instance, flow, told)
            policy.choose()
            order = recompute_order(flow, policy.again)
            posed = instance.reordered(order)
            evicted = evicted_gaps(posed, flow, policy.swapped)
            decisions = Decisions(evicted, {}, prefetch=True)
            stays = make_stays(posed, evicted)
            peak = live_peak(posed, stays)
            smallest = peak if smallest is None else min(smallest, peak)
            if peak <= instance.capacity_nbytes:
                left = max(0.1, effort.time_limit_s - (time.monotonic() - began))
                placed = place(posed, stays, decisions, packing_time_s=left / 4, seed=effort.seed)
                if placed is not None:
                    return realise(posed, placed, self.name)
            if time.monotonic() - began > effort.time_limit_s:
                break
        if smallest is not None and smallest > instance.capacity_nbytes:
            raise too_small(instance, self.name, smallest)
        raise TimeLimitError(
            f"strategy '{self.name}' found no addresses inside {format_size(instance.fast.usable_nbytes)} of tier "
            f"'{instance.fast.name}' in {effort.time_limit_s:g} s; give it more memory or more time"
        )


def evicted_gaps(posed: Instance, flow: Flow, swapped: Mapping[str, int]) -> frozenset[tuple[int, int]]:
    """The gaps of `posed` in which a storage leaves that `swapped` lets leave after a step of the flow's own order: the
    first gap behind that call, as recomputation may use the storage in between."""
    position: dict[int, int] = {}
    at = 0
    for t, op in enumerate(posed.order):  # the calls that are first ones stand in the flow's order
        if at < len(flow.order) and op == flow.order[at]:
            position[at] = t
            at += 1
    starts = {s: position[t] for s, t in swapped.items()}
    return frozenset((g.item, g.before) for g in posed.gaps if g.start == starts.get(posed.items[g.item].storage, -1))


@dataclass
class _Policy:
    """The state of Algorithm 1: what is swapped (after which step) and what is called again."""

    instance: Instance
    flow: Flow
    told_nbytes: int
    swapped: dict[str, int] = field(default_factory=dict[str, int])
    again: set[str] = field(default_factory=set[str])
    lanes: list[Swap] = field(default_factory=list[Swap])

    def choose(self) -> None:
        """Give up storages over the peak until what is left fits, or nothing is left to give up."""
        excess = self.instance.peak_of_all() - self.told_nbytes
        swaps = sorted(self._swaps(), key=lambda s: (-s.free_ns, s.start))
        for swap in list(swaps):
            if excess <= 0:
                return
            if swap.free_ns >= 0 and self._exposed_ns([*self.lanes, swap]) == 0:
                excess -= self._take(swap)
                swaps.remove(swap)
        hidden_ns = 0
        while excess > 0:
            swaps = [s for s in swaps if not self._made_again(s.storage)]
            calls = self._best_call()
            if not swaps and calls is None:
                return
            swap_ns = self._exposed_ns([*self.lanes, swaps[0]]) - hidden_ns if swaps else None
            if calls is not None and (swap_ns is None or calls[1] * swaps[0].nbytes <= swap_ns * calls[2]):
                excess -= self._give_up(calls[0])
            elif swaps:
                excess -= self._take(swaps.pop(0))
                hidden_ns = self._exposed_ns(self.lanes)

    def _swaps(self) -> list[Swap]:
        """Storages that wait over the turn; the wait is from the last access before it to the first behind."""
        instance, flow = self.instance, self.flow
        load = load_link(instance)
        store = store_link(instance)
        if store is None:
            return []
        ends = [0]
        for d in instance.durations_ns:
            ends.append(ends[-1] + d)
        found: list[Swap] = []
        for item in instance.items:
            before = [t for t in item.touches if t < flow.turn]
            behind = [t for t in item.touches if t >= flow.turn]
            if item.homed or not before or not behind or behind[0] == before[-1] + 1:
                continue
            a, b, nbytes = before[-1], behind[0], instance.graph.storage[item.storage].nbytes
            times = store.busy_ns(nbytes), load.busy_ns(nbytes)
            found.append(Swap(item.storage, a, b, nbytes, *times, ends[a + 1], ends[b]))
        return found

    def _exposed_ns(self, swaps: list[Swap]) -> int:
        """How late the transfers of these swaps are: stores queue in the order in which storages leave, loads run as
        late as their deadlines allow, one after another; what then begins before its store ended is late by that."""
        free, stored = 0, dict[str, int]()
        for s in sorted(swaps, key=lambda s: s.leaves_ns):
            free = stored[s.storage] = max(free, s.leaves_ns) + s.out_ns
        following, late = 1 << 62, 0
        for s in sorted(swaps, key=lambda s: -s.needed_ns):
            following = min(following, s.needed_ns) - s.in_ns
            late = max(late, stored[s.storage] - following)
        return late

    def _take(self, swap: Swap) -> int:
        self.swapped[swap.storage] = swap.start
        self.lanes.append(swap)
        return swap.nbytes

    def _made_again(self, storage: str) -> bool:
        return self.flow.maker.get(storage) in self.again

    def _best_call(self) -> tuple[str, int, int] | None:
        """(operator, nanoseconds, bytes saved) with the largest MSPS, as things stand."""
        best: tuple[str, int, int] | None = None
        for op in self.flow.order[: self.flow.turn]:
            if op not in self.flow.repeatable or op in self.again:
                continue
            saved = self._saved_nbytes(op)
            if saved <= 0 or not self.flow.unchanged(op, self.flow.last_use(op)):
                continue
            ns = self._again_ns(op)
            if best is None or saved * best[1] > best[2] * ns:
                best = op, ns, saved
        return best

    def _saved_nbytes(self, op: str) -> int:
        """Bytes that need not wait, less those of inputs that must wait for the call only."""
        flow = self.flow
        size = flow.graph.storage
        waiting = sum(size[s].nbytes for s in flow.writes[op] if flow.awaited(s) and s not in self.swapped)
        sources = [s for s in flow.reads[op] if not size[s].homed and not flow.awaited(s)]
        return waiting - sum(size[s].nbytes for s in sources if not self._made_again(s))

    def _again_ns(self, op: str) -> int:
        """Time of making it again, with those of its sources that were given up."""
        pending, seen = [op], {op}
        total = 0
        while pending:
            op = pending.pop()
            total += self.flow.duration_of(op)
            for s in self.flow.reads[op]:
                maker = self.flow.maker.get(s)
                if maker is not None and maker in self.again and maker not in seen:
                    seen.add(maker)
                    pending.append(maker)
        return max(1, total)

    def _give_up(self, op: str) -> int:
        saved = self._saved_nbytes(op)
        self.again.add(op)
        return saved
