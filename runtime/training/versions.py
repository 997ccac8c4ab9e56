"""Where the last version of what a plan changes is: states on their way between memory and disk.

The home of a homed storage holds what was last stored there. A step changes the storage in memory; until the store
behind that step is complete, memory has the only copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...ir.graph import Graph, Storage
from ...ir.plan import Plan
from ...ir.uses import storage_uses
from ..directio import BOUNCE_NBYTES, never
from ..moves import Route
from ..passes import PlanMemory
from ..reading import StateKeeper


@dataclass(frozen=True, slots=True)
class Version:
    """The last content of bytes [lo, hi) of a storage is at `offset` of the arena, or at home where that is None."""

    lo: int
    hi: int
    offset: int | None


def changed_storages(plan: Plan, graph: Graph) -> dict[str, tuple[int, ...]]:
    """Homed storages with bytes that steps of `plan` change, and these steps."""
    uses = storage_uses(graph, [s.op for s in plan.steps])
    return {
        s.id: uses[s.id].writes for s in graph.storages if s.homed and s.nbytes and s.id in uses and uses[s.id].writes
    }


def last_versions(
    plan: Plan, storage: Storage, writes: Sequence[int], tier: str, now: int, routes: Sequence[tuple[Route, int]]
) -> Iterator[Version]:
    """Where the bytes of `storage` are last at instant `now`, counted on over passes of the plan since they began.

    `writes` are the steps of a pass that change it, in `tier`. `routes` are the plan's transfers, each with how often
    it is complete. Nothing moves meanwhile.
    """
    total = len(plan.steps)
    last = max((w + (now - w - 1) // total * total for w in writes), default=-1)
    stays = [r for r in plan.residencies_of.get(storage.id, ()) if r.tier == tier]
    stores = [
        (r.transfer, count)
        for r, count in routes
        if r.transfer.storage == storage.id and not r.inward and r.place is None
    ]
    ends = [0, storage.nbytes, *(e for r in stays for e in (r.lo, r.hi)), *(e for t, _ in stores for e in (t.lo, t.hi))]
    for lo, hi in pairwise(sorted(set(ends))):
        stored = any(
            t.lo <= lo and hi <= t.hi and t.after + (count - 1) * total > last for t, count in stores if count > 0
        )
        if last < 0 or stored:
            yield Version(lo, hi, None)
            continue
        (stay,) = (r for r in stays if r.lo <= lo and hi <= r.hi and (last - r.start) % total < r.end - r.start)
        yield Version(lo, hi, stay.base + lo)


class ChangedStorages:
    """The homed storages that a plan changes, read and brought home wherever their bytes are.

    To be used by the computing thread, between two steps. `store` is their home.
    """

    def __init__(self, memory: PlanMemory, store: StateKeeper) -> None:
        self._memory = memory
        self._store = store
        self._writes = changed_storages(memory.plan, memory.graph)

    def read(self, wanted: Sequence[tuple[str, memoryview]]) -> None:
        """Fill each view with the last content of the storage that stands before it."""
        routes = self._memory.settle()
        for name, target in wanted:
            storage = self._memory.graph.storage[name]
            for version in self._last(storage, routes):
                part = target[version.lo : version.hi]
                if version.offset is None:
                    assert storage.blob is not None
                    self._store.read(storage.blob, storage.blob_offset + version.lo, part)
                else:
                    part[:] = self._memory.arena.view(version.offset, len(part))

    def bring_home(self, reached: int = 0) -> int:
        """Store whatever memory has the only copy of; the bytes stored. A restart may follow, or the end.

        `reached` is an instant that the steps have reached for certain, counted on over passes: who computes need not
        have told the engine of each.
        """
        routes = self._memory.settle()
        stored = 0
        for name in self._writes:
            storage = self._memory.graph.storage[name]
            assert storage.blob is not None
            for version in self._last(storage, routes, reached):
                if version.offset is not None:
                    part = self._memory.arena.view(version.offset, version.hi - version.lo)
                    self._store.write(
                        storage.blob, storage.blob_offset + version.lo, part, chunk=BOUNCE_NBYTES, cancelled=never
                    )
                    stored += len(part)
        return stored

    def _last(self, storage: Storage, routes: Sequence[tuple[Route, int]], reached: int = 0) -> Iterator[Version]:
        memory = self._memory
        writes = self._writes.get(storage.id, ())
        return last_versions(memory.plan, storage, writes, memory.tier, max(memory.engine.now, reached), routes)
