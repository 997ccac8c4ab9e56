"""A plan's transfers as jobs of the engine: between the arena, the weight store and the scratch file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph, Storage
from ..ir.machine import Link, Machine
from ..ir.plan import Plan, Transfer
from .addresses import Addresses
from .arena import Arena
from .directio import BLOCK, BOUNCE_NBYTES, DirectFile
from .reading import CRC_NBYTES, WeightReader
from .transfer import Cancelled, Job

Move = Callable[[Cancelled], None]
Wait = tuple[str, int, int]  # as in Job.waits


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes [lo, hi) of a spilled storage lie at `offset` of the scratch file."""

    lo: int
    hi: int
    offset: int


@dataclass(frozen=True, slots=True)
class Route:
    """Transfer `index` of the plan, in place `position` of `lane`, moves `place` of the arena."""

    index: int
    transfer: Transfer
    lane: str
    position: int
    place: int
    inward: bool


class Moves:
    """All transfers of `plan`: jobs by lane, and for each step what it waits for. Refuses what cannot be followed."""

    def __init__(self, plan: Plan, graph: Graph, machine: Machine, tier: str, addresses: Addresses) -> None:
        self.plan = plan
        self.graph = graph
        self.period = len(plan.steps)
        self.links: list[Link] = [_link(machine, plan, tier, t) for t in plan.transfers]
        self.routes = self._make_routes(tier, addresses)
        self.slots, self.scratch_nbytes = self._make_slots()
        self._check_lanes()
        self.waits = self._find_waits()

    def _make_routes(self, tier: str, addresses: Addresses) -> list[Route]:
        sizes: dict[str, int] = {}
        routes: list[Route] = []
        for index, (t, link) in enumerate(zip(self.plan.transfers, self.links, strict=True)):
            if t.storage not in self.graph.storage or not 0 <= t.lo < t.hi <= self.graph.storage[t.storage].nbytes:
                raise PlanMismatchError(f"transfer {index} moves [{t.lo}, {t.hi}) of '{t.storage}'; plan again")
            if not 0 <= t.after < self.period or not t.after <= t.before <= t.after + self.period:
                raise PlanMismatchError(
                    f"transfer {index} of '{t.storage}' runs after {t.after} and before {t.before} in a pass of "
                    f"{self.period} steps; plan again"
                )
            inward = t.target == tier
            if not inward and self.graph.storage[t.storage].homed:
                raise PlanMismatchError(
                    f"transfer {index} stores '{t.storage}', a {self.graph.storage[t.storage].kind.value} that no "
                    "operator of an inference pass may change; plan again"
                )
            position = sizes.get(link.lane, 0)
            sizes[link.lane] = position + 1
            routes.append(Route(index, t, link.lane, position, addresses.of_transfer(t), inward))
        return routes

    def _make_slots(self) -> tuple[dict[str, list[Slot]], int]:
        """A place in the scratch file for each range that is ever stored, on block boundaries."""
        ranges: dict[str, set[tuple[int, int]]] = {}
        for route in self.routes:
            if not route.inward:
                ranges.setdefault(route.transfer.storage, set()).add((route.transfer.lo, route.transfer.hi))
        slots: dict[str, list[Slot]] = {}
        end = 0
        for storage, found in ranges.items():
            for lo, hi in sorted(found):
                before = slots.setdefault(storage, [])
                if before and before[-1].hi > lo:
                    raise PlanMismatchError(
                        f"'{storage}' is stored as bytes [{before[-1].lo}, {before[-1].hi}) and as [{lo}, {hi}), which "
                        "overlap; plan again"
                    )
                before.append(Slot(lo, hi, end))
                end += -(-(hi - lo) // BLOCK) * BLOCK
        return slots, end

    def _check_lanes(self) -> None:
        """No transfer stands behind one that starts only after somebody waits for it."""
        last: dict[str, Route] = {}
        for route in self.routes:
            t = route.transfer
            latest = last.get(route.lane)
            if latest is None or t.after > latest.transfer.after:
                latest = last[route.lane] = route
            if latest.transfer.after > t.before:
                raise PlanMismatchError(
                    f"step {t.before} waits for transfer {route.index} of '{t.storage}', which stands on {route.lane} "
                    f"behind transfer {latest.index}, which starts only at instant {latest.transfer.after}; plan again"
                )

    def _find_waits(self) -> list[set[Wait]]:
        """For each transfer, the jobs that must be complete before it starts, beyond the order of its lane."""
        stores: dict[str, list[Route]] = {}
        due: dict[int, list[Route]] = {}
        for route in self.routes:
            if not route.inward:
                stores.setdefault(route.transfer.storage, []).append(route)
            due.setdefault(route.transfer.before % self.period, []).append(route)
        found: list[set[Wait]] = []
        for route in self.routes:
            waits = self._waits_at_instant(route, due.get(route.transfer.after, []))
            if route.inward and not self.graph.storage[route.transfer.storage].homed:
                waits |= self._waits_for_stores(route, stores.get(route.transfer.storage, []))
            found.append(waits)
        return found

    def _waits_for_stores(self, route: Route, stores: list[Route]) -> set[Wait]:
        """A load of spilled bytes waits until they are stored."""
        t = route.transfer
        latest: dict[int, Route] = {}
        for other in stores:
            u = other.transfer
            if u.lo < t.hi and t.lo < u.hi and u.after <= t.after:
                latest[u.lo] = other
        stored = sum(min(o.transfer.hi, t.hi) - max(o.transfer.lo, t.lo) for o in latest.values())
        if stored < t.nbytes:
            raise PlanMismatchError(
                f"transfer {route.index} loads {t.nbytes} bytes of '{t.storage}' from '{t.origin}' at instant "
                f"{t.after}, of which {stored} were stored there before; plan again"
            )
        return {w for other in latest.values() for w in self._wait_for(route, other, 0)}

    def _waits_at_instant(self, route: Route, due: list[Route]) -> set[Wait]:
        """A transfer waits for the store that makes room for it, and a store for the load of what it stores.

        This concerns only what is due at the very instant at which `route` may start: later, a step has waited for it.
        """
        t = route.transfer
        found: set[Wait] = set()
        for other in due:
            u = other.transfer
            overlap = other.place < route.place + t.nbytes and route.place < other.place + u.nbytes
            loaded_first = not route.inward and u.storage == t.storage and u.after < t.after
            if overlap and other is not route and (not other.inward or loaded_first):
                found |= self._wait_for(route, other, (u.before - t.after) // self.period)
        return found

    def _wait_for(self, route: Route, other: Route, turns: int) -> set[Wait]:
        if other.lane != route.lane:
            return {(other.lane, other.position, turns)}
        if turns == 0 and other.position > route.position:
            raise PlanMismatchError(
                f"transfer {route.index} of '{route.transfer.storage}' must wait for transfer {other.index} of "
                f"'{other.transfer.storage}', which stands behind it on {route.lane}; plan again"
            )
        return set()

    def due(self) -> list[list[tuple[str, int]]]:
        """For each instant 0..T of pass p, (lane, n): wait until n + p * (jobs of the lane) of its jobs are complete.

        n is negative or zero for what the pass before began. What is due at T is waited for when the pass ends.
        """
        sizes: dict[str, int] = {}
        for route in self.routes:
            sizes[route.lane] = sizes.get(route.lane, 0) + 1
        most: list[dict[str, int]] = [{} for _ in range(self.period + 1)]
        for route in self.routes:
            wraps = route.transfer.before > self.period
            counts = most[route.transfer.before - wraps * self.period]
            count = route.position + 1 - wraps * sizes[route.lane]
            counts[route.lane] = max(counts.get(route.lane, count), count)
        return [list(counts.items()) for counts in most]

    def jobs(self, arena: Arena, store: WeightReader, scratch: DirectFile | None) -> dict[str, list[Job]]:
        """The jobs of each lane, in the order of the plan."""
        lanes: dict[str, list[Job]] = {}
        for route, link, waits in zip(self.routes, self.links, self.waits, strict=True):
            t = route.transfer
            requests = self.requests(route, link, arena, store, scratch)
            job = Job(t.storage, t.nbytes, t.after, requests, route.inward, tuple(sorted(waits)))
            lanes.setdefault(route.lane, []).append(job)
        return lanes

    def exact(self, jobs: dict[str, list[Job]]) -> tuple[frozenset[str], dict[int, list[Move]]]:
        """Storages that are not of floating point alone, and by step what moves them.

        Stores come when they may start, loads when they are due. With these a pass runs well enough to be timed,
        whatever else is stale.
        """
        exact = {t.storage for t in self.graph.tensors if t.storage and not t.dtype.startswith(("float", "bfloat"))}
        moves: dict[int, list[Move]] = {}
        for inward in (False, True):
            for route in self.routes:
                t = route.transfer
                if t.storage in exact and route.inward == inward:
                    step = (t.before if inward else t.after) % self.period
                    moves.setdefault(step, []).extend(jobs[route.lane][route.position].requests)
        return frozenset(exact), moves

    def requests(
        self, route: Route, link: Link, arena: Arena, store: WeightReader, scratch: DirectFile | None
    ) -> tuple[Move, ...]:
        """What one transfer does, in requests of the link's chunk size; their ends lie on multiples of it in the blob,
        where checksums begin and end."""
        t = route.transfer
        chunk, storage = chunk_nbytes(link), self.graph.storage[t.storage]
        if storage.homed:
            first = storage.blob_offset
            chunk = -(-chunk // CRC_NBYTES) * CRC_NBYTES
            return tuple(
                partial(load_homed, store, storage, lo, arena.view(route.place + lo - t.lo, hi - lo), chunk)
                for lo, hi in _cuts(t.lo, t.hi, chunk, first)
            )
        assert scratch is not None
        found: list[Move] = []
        for slot in self.slots[t.storage]:
            for lo, hi in _cuts(max(slot.lo, t.lo), min(slot.hi, t.hi), chunk, -slot.lo):
                view = arena.view(route.place + lo - t.lo, hi - lo)
                run = _load_spilled if route.inward else _spill
                found.append(partial(run, scratch, slot.offset + lo - slot.lo, view, chunk))
        return tuple(found)


def _cuts(lo: int, hi: int, chunk: int, shift: int) -> list[tuple[int, int]]:
    """[lo, hi) cut where position + `shift` is a multiple of `chunk`."""
    edges = [lo, *range(lo + chunk - (lo + shift) % chunk, hi, chunk), hi]
    return list(pairwise(edges)) if lo < hi else []


def chunk_nbytes(link: Link | None) -> int:
    """The request size of a link in whole blocks."""
    return max((link.chunk_nbytes if link else BOUNCE_NBYTES) // BLOCK, 1) * BLOCK


def load_homed(
    store: WeightReader, storage: Storage, lo: int, target: memoryview, chunk: int, cancelled: Cancelled
) -> None:
    """Fill `target` with the bytes of a homed storage from `lo` on."""
    assert storage.blob is not None
    store.read(storage.blob, storage.blob_offset + lo, target, chunk=chunk, cancelled=cancelled)


def _load_spilled(file: DirectFile, offset: int, view: memoryview, chunk: int, cancelled: Cancelled) -> None:
    file.read_into(view, offset, chunk=chunk, cancelled=cancelled)


def _spill(file: DirectFile, offset: int, view: memoryview, chunk: int, cancelled: Cancelled) -> None:
    file.write_from(view, offset, chunk=chunk, cancelled=cancelled)


def _link(machine: Machine, plan: Plan, tier: str, t: Transfer) -> Link:
    if {t.origin, t.target} != {tier, plan.home_tier} or (t.origin, t.target) not in machine.link:
        raise PlanMismatchError(
            f"a transfer of '{t.storage}' goes over {t.link}; this executor moves between '{plan.home_tier}' and "
            f"'{tier}' of machine '{machine.name}'; plan again for it"
        )
    return machine.link[t.origin, t.target]
