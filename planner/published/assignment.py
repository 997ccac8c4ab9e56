"""One pass of XLA's memory space assignment over all buffers: priorities, segments, chunks and copies; see `xla`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

from ...solvers.heap import Heap
from ..instance import Instance
from ..one_way import store_link
from ..stays import Decisions, Placed, Stay, make_stays
from .common import Proposal, load_link, payload_nbytes, use_blocks
from .intervals import Clock, CopyResource, Ratios, eviction_end, prefetch_starts


def boundedness(instance: Instance) -> list[float]:
    """Per item: seconds saved by its being in the fast tier at the operators that are bound by memory, added up, or the
    largest of what the others are short of that; over the square root of its bytes (`GetMemoryBoundedness`)."""
    load, store = load_link(instance), store_link(instance)

    def copy_s(i: int, t: int) -> float:
        link = store if store is not None and t in instance.items[i].writes else load
        return payload_nbytes(instance, i) / link.bytes_per_s

    memory_s = [0.0] * instance.steps
    for i, item in enumerate(instance.items):
        for t in item.touches:
            memory_s[t] += copy_s(i, t)
    found: list[float] = []
    for i, item in enumerate(instance.items):
        benefit: float | None = None
        for t in item.touches:
            short = memory_s[t] - instance.durations_ns[t] / 1e9
            saved = copy_s(i, t) if short > 0 else short
            if benefit is not None:
                saved = benefit + saved if benefit > 0 and saved > 0 else max(benefit, saved)
            benefit = saved
        found.append((benefit or 0.0) / sqrt(max(item.nbytes, 1)))
    return found


@dataclass
class _Run:
    """Use blocks `first_block` to `last_block` at one address, from instant `start` to `end`."""

    first: int
    start: int
    end: int
    offset: int


@dataclass
class _Draft:
    """The runs of one item as they are assigned, its cuts, and what must be given back if it does not work out."""

    runs: list[_Run] = field(default_factory=list[_Run])
    cuts: list[Stay] = field(default_factory=list[Stay])
    chunks: list[int] = field(default_factory=list[int])
    grants: list[tuple[CopyResource, list[tuple[int, int]]]] = field(
        default_factory=list[tuple[CopyResource, list[tuple[int, int]]]]
    )
    dirty: bool = False


class Assignment:
    """One pass over all buffers of an instance, in a heap of `capacity_nbytes`.

    `reserved`: an address for every (item, first step of a use block) where nothing is kept. `around`: whether weights
    are first offered a chunk for the whole cycle.
    """

    def __init__(
        self,
        instance: Instance,
        ratios: Ratios,
        capacity_nbytes: int,
        reserved: dict[tuple[int, int], int],
        *,
        around: bool,
    ) -> None:
        self.instance, self.ratios, self.around = instance, ratios, around
        self.clock = Clock(instance.durations_ns)
        self.heap = Heap(instance.steps, capacity_nbytes)
        load, store = load_link(instance), store_link(instance)
        self.loads = CopyResource(instance.durations_ns)
        shared = store is not None and store.lane == load.lane
        self.stores = self.loads if shared else CopyResource(instance.durations_ns)
        self.load_ns = [load.busy_ns(payload_nbytes(instance, i)) for i in range(len(instance.items))]
        self.store_ns = [store.busy_ns(payload_nbytes(instance, i)) if store else 0 for i in range(len(instance.items))]
        self.most_ns = ratios.most * 1e9 * instance.capacity_nbytes / load.bytes_per_s
        self.blocks: dict[int, list[Stay]] = {}
        for stay in sorted(use_blocks(instance), key=lambda s: s.first):
            self.blocks.setdefault(stay.item, []).append(stay)
        self.reserved = reserved
        self.places: dict[int, list[int]] = {}
        self.homeless = False
        for item in self.blocks:
            self._reserve(item)

    def run(self, max_retries: int) -> Proposal:
        """What leaves when, and every address, if all were found."""
        rank = boundedness(self.instance)
        items = self.instance.items
        drafts: dict[int, _Draft] = {}
        for i in sorted(self.blocks, key=lambda i: (-rank[i], -items[i].nbytes, items[i].touches[0], i)):
            for handle in self.places.pop(i, ()):
                self.heap.give(handle)
            drafts[i] = self._commit(i, max_retries)
        return self._proposal(drafts)

    def _commit(self, item: int, max_retries: int) -> _Draft:
        for retry in range(max_retries + 1):
            draft = _Draft()
            if self._assign(item, draft, retry):
                return draft
            for handle in draft.chunks:
                self.heap.give(handle)
            for resource, grants in draft.grants:
                resource.give(grants)
        return self._leave_in_default(item)

    def _reserve(self, item: int) -> bool:
        """Take the reserved place of every use block; False where one is not known or not free."""
        for block in self.blocks[item]:
            nbytes, offset = self.instance.items[item].nbytes, self.reserved.get((item, block.first), -1)
            if not self.heap.is_free(block.first, block.last + 1, offset, nbytes):
                return False
            handle = self.heap.take(block.first, block.last + 1, offset, nbytes)
            self.places.setdefault(item, []).append(handle)
        return True

    def _leave_in_default(self, item: int) -> _Draft:
        """Every use by itself, in its reserved place, copies while the operator waits."""
        blocks = self.blocks[item]
        if not self._reserve(item):
            self.homeless = True
        runs = [_Run(b.first, b.first, b.last + 1, self.reserved.get((item, b.first), -1)) for b in blocks]
        return _Draft(runs, [b for b in blocks if self._leaves(b)])

    def _leaves(self, block: Stay) -> bool:
        """Whether there is a gap behind a block."""
        blocks = self.blocks[block.item]
        return not block.always and (self.instance.items[block.item].homed or block is not blocks[-1])

    def _assign(self, item: int, draft: _Draft, retry: int) -> bool:
        blocks, steps = self.blocks[item], self.instance.steps
        if self.instance.items[item].homed:
            if (self.around or blocks[0].always) and self._keep_around(item, draft):
                return True
            if blocks[0].always:
                return False
            ends = [blocks[-1].last - steps, *(b.last for b in blocks[:-1])]
            longest = max(range(len(blocks)), key=lambda k: self.clock.elapsed(ends[k] + 1, blocks[k].first))
            order = [(b, 0) for b in blocks[longest:]] + [(b, steps) for b in blocks[:longest]]
            done = self._prefetch(item, draft, ends[longest] + 1, order)
        else:
            order = [(b, 0) for b in blocks]
            done = self._open(item, draft, blocks[0].first, order)
        if not done:
            return False
        draft.dirty = order[0][0].stores or not self.instance.items[item].homed
        for k in range(1, len(order)):
            if not self._segment(item, draft, order[k - 1 :], retry):
                return False
        if self.instance.items[item].homed:
            draft.cuts.append(order[-1][0])
            if draft.dirty:
                self._evict(item, draft, draft.runs[0].start + steps, retry)
        return True

    def _keep_around(self, item: int, draft: _Draft) -> bool:
        """A chunk for the whole cycle, if no gap is longer than a stay without copies may be."""
        blocks, steps = self.blocks[item], self.instance.steps
        if not blocks[0].always:
            ends = [blocks[-1].last - steps, *(b.last for b in blocks[:-1])]
            if any(self.clock.elapsed(e + 1, b.first) >= self.most_ns for e, b in zip(ends, blocks, strict=True)):
                return False
        nbytes = self.instance.items[item].nbytes
        offset = self.heap.best_fit(0, steps, nbytes, self.instance.alignment_of(item))
        if offset is None:
            return False
        self._take(item, draft, 0, steps, offset)
        draft.runs.append(_Run(0, 0, steps, offset))
        return True

    def _segment(self, item: int, draft: _Draft, order: list[tuple[Stay, int]], retry: int) -> bool:
        """`AllocateSegment` from block order[0] to block order[1]: no copy, or else eviction and prefetch."""
        (before, _), (block, shift) = order[0], order[1]
        run, nbytes = draft.runs[-1], self.instance.items[item].nbytes
        first, end = block.first + shift, block.last + 1 + shift
        short = self.clock.elapsed(run.end, first) < self.most_ns
        whole = end - run.start <= self.instance.steps
        if short and whole and self.heap.is_free(run.end, end, run.offset, nbytes):
            self._take(item, draft, run.end, end, run.offset)
            run.end = end
            draft.dirty |= block.stores
            return True
        draft.cuts.append(before)
        if draft.dirty:
            self._evict(item, draft, first, retry)
        draft.dirty = block.stores
        return self._prefetch(item, draft, run.end, order[1:])

    def _evict(self, item: int, draft: _Draft, latest: int, retry: int) -> None:
        """Keep the chunk until the copy out is complete, if there is room and bandwidth; else the store blocks."""
        run, nbytes = draft.runs[-1], self.instance.items[item].nbytes
        wanted = eviction_end(self.clock, run.end, latest, self.store_ns[item], self.ratios, retry)
        for end in range(wanted, run.end, -1):
            if not self.heap.is_free(run.end, end, run.offset, nbytes):
                continue
            grants = self.stores.take(run.end, end, self.store_ns[item])
            if grants is None:
                return  # shorter intervals have less
            draft.grants.append((self.stores, grants))
            self._take(item, draft, run.end, end, run.offset)
            run.end = end
            return

    def _prefetch(self, item: int, draft: _Draft, earliest: int, order: list[tuple[Stay, int]]) -> bool:
        """The first interval of the picker with bandwidth and a chunk; without one, a load that blocks."""
        block, shift = order[0]
        first, needed = block.first + shift, self.load_ns[item]
        for start in prefetch_starts(self.clock, earliest, first, needed, self.most_ns, self.ratios):
            grants = self.loads.take(start, first, needed)
            if grants is None:
                continue
            if self._open(item, draft, start, order):
                draft.grants.append((self.loads, grants))
                return True
            self.loads.give(grants)
        return self._open(item, draft, first, order)

    def _open(self, item: int, draft: _Draft, start: int, order: list[tuple[Stay, int]]) -> bool:
        """A run from `start` through the first block, in the chunk that is free until the latest possible block
        (`FindBestChunkCandidate`)."""
        nbytes, alignment = self.instance.items[item].nbytes, self.instance.alignment_of(item)
        for block, shift in reversed(order):
            if block.last + 1 + shift - start > self.instance.steps:
                continue
            offset = self.heap.best_fit(start, block.last + 1 + shift, nbytes, alignment)
            if offset is not None:
                end = order[0][0].last + 1 + order[0][1]
                self._take(item, draft, start, end, offset)
                draft.runs.append(_Run(order[0][0].first + order[0][1], start, end, offset))
                return True
        return False

    def _take(self, item: int, draft: _Draft, start: int, end: int, offset: int) -> None:
        draft.chunks.append(self.heap.take(start, end, offset, self.instance.items[item].nbytes))

    def _proposal(self, drafts: dict[int, _Draft]) -> Proposal:
        instance, steps = self.instance, self.instance.steps
        number = {(g.item, g.start): (g.item, g.before) for g in instance.gaps}
        evicted = frozenset(number[b.item, b.last % steps] for draft in drafts.values() for b in draft.cuts)
        decisions = Decisions(evicted, prefetch=True)
        if self.homeless:
            return decisions, None
        runs = {(i, run.first % steps): run for i, draft in drafts.items() for run in draft.runs}
        placed: list[Placed] = []
        for stay in make_stays(instance, evicted):
            run = runs[stay.item, stay.first]
            shift = run.first - stay.first
            start, end = run.start - shift, run.end - shift
            placed.append(Placed(stay, run.offset, start, end))
        return decisions, placed
