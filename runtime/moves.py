"""A plan's transfers as jobs of the engine: between the arenas, the weight store and the scratch file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from ..ir.chains import place_among, source_of, transfer_waits
from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph
from ..ir.machine import Link, Machine
from ..ir.plan import Plan, Transfer
from .addresses import Addresses
from .directio import BLOCK, BOUNCE_NBYTES, DirectFile
from .filling import Move, cuts
from .slots import make_slots
from .tiers import Cancelled, Tiers
from .transfer import Job

Wait = tuple[str, int, int]  # as in Job.waits


@dataclass(frozen=True, slots=True)
class Route:
    """Transfer `index` of the plan, in place `position` of `lane`: from `source` in the arena of its origin to `place`
    in that of its target. None stands for the home tier."""

    index: int
    transfer: Transfer
    lane: str
    position: int
    source: int | None
    place: int | None

    @property
    def inward(self) -> bool:
        """Whether it comes from the home tier, or from one memory to the next."""
        return self.place is not None

    @property
    def copied(self) -> bool:
        """Whether it goes from one memory to another."""
        return self.source is not None and self.place is not None


class Moves:
    """All transfers of `plan`: jobs by lane, and for each step what it waits for. Refuses what cannot be followed.

    `addresses` are those of all tiers in memory, that from which `plan` computes first.
    """

    def __init__(self, plan: Plan, graph: Graph, machine: Machine, addresses: Mapping[str, Addresses]) -> None:
        self.plan = plan
        self.graph = graph
        self.period = len(plan.steps)
        self.tier = next(iter(addresses))
        self.links: list[Link] = [_link(machine, plan, tuple(addresses), t) for t in plan.transfers]
        self.routes = self._make_routes(addresses)
        spilled = [r.transfer for r in self.routes if not r.inward and not self._homed(r.transfer)]
        self.slots, self.scratch_nbytes = make_slots(graph, spilled)
        self._check_lanes()
        self.waits = self._find_waits()

    def _make_routes(self, addresses: Mapping[str, Addresses]) -> list[Route]:
        sizes: dict[str, int] = {}
        routes: list[Route] = []
        called = (self.graph.operator[s.op] for s in self.plan.steps if s.op in self.graph.operator)
        changed = {s for op in called for s in self.graph.writes(op)}
        for index, (t, link) in enumerate(zip(self.plan.transfers, self.links, strict=True)):
            if t.storage not in self.graph.storage or not 0 <= t.lo < t.hi <= self.graph.storage[t.storage].nbytes:
                raise PlanMismatchError(f"transfer {index} moves [{t.lo}, {t.hi}) of '{t.storage}'; plan again")
            if not 0 <= t.after < self.period or not t.after <= t.before <= t.after + self.period:
                raise PlanMismatchError(
                    f"transfer {index} of '{t.storage}' runs after {t.after} and before {t.before} in a pass of "
                    f"{self.period} steps; plan again"
                )
            if t.target == self.plan.home_tier and self._homed(t) and t.storage not in changed:
                raise PlanMismatchError(
                    f"transfer {index} stores '{t.storage}', a {self.graph.storage[t.storage].kind.value} that no "
                    "step of the plan changes; plan again"
                )
            position = sizes.get(link.lane, 0)
            sizes[link.lane] = position + 1
            source = None if t.origin == self.plan.home_tier else self._source(t, addresses[t.origin])
            place = None if t.target == self.plan.home_tier else self._place(t, addresses[t.target])
            routes.append(Route(index, t, link.lane, position, source, place))
        return routes

    def _homed(self, t: Transfer) -> bool:
        return self.graph.storage[t.storage].homed

    def _source(self, t: Transfer, addresses: Addresses) -> int:
        """Where the bytes of `t` are, as those who say what it waits for see it."""
        held = source_of(self.plan, self.graph, t)
        return addresses.of_transfer(t) if held is None else held.base + t.lo

    def _place(self, t: Transfer, addresses: Addresses) -> int:
        """Where the bytes of `t` go, as those who say what waits for it see it."""
        stays = self.plan.residencies_of.get(t.storage, ())
        held = place_among(stays, t, self.period, homed=self._homed(t))
        return addresses.of_transfer(t) if held is None else held.base + t.lo

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
        for route, chained in zip(self.routes, transfer_waits(self.plan, self.graph), strict=True):
            waits = self._waits_at_instant(route, due.get(route.transfer.after, []))
            for wait in chained:
                waits |= self._wait_for(route, self.routes[wait.index], wait.passes)
            if route.source is None and not self.graph.storage[route.transfer.storage].homed:
                waits |= self._waits_for_stores(route, stores.get(route.transfer.storage, []))
            found.append(waits)
        return found

    def _waits_for_stores(self, route: Route, stores: list[Route]) -> set[Wait]:
        """A load of spilled bytes waits until they are stored."""
        t = route.transfer
        earlier = [o for o in stores if (o.transfer.after, o.index) < (t.after, route.index)]  # as `ir.chains` has it
        before = [o for o in earlier if o.transfer.lo < t.hi and t.lo < o.transfer.hi]
        stored, latest = _last_stored(t, before)
        if stored < t.nbytes:
            raise PlanMismatchError(
                f"transfer {route.index} loads {t.nbytes} bytes of '{t.storage}' from '{t.origin}' at instant "
                f"{t.after}, of which {stored} were stored there before; plan again"
            )
        return {w for other in latest for w in self._wait_for(route, other, 0)}

    def _waits_at_instant(self, route: Route, due: list[Route]) -> set[Wait]:
        """A transfer waits for the store that makes room for it, and a store for the load of what it stores.

        This concerns only what is due at the very instant at which `route` may start: later, a step has waited for it.
        Of what goes to and comes from home; for copies between memories `transfer_waits` tells all.
        """
        t = route.transfer
        found: set[Wait] = set()
        for other in due:
            u = other.transfer
            room = not other.inward and u.origin == t.target and _overlap(other.source, u.nbytes, route.place, t.nbytes)
            if u.storage == t.storage and u.after == t.after and other.index > route.index:
                room = False  # it takes away what this one brings
            loaded_first = (
                not route.inward
                and u.target == t.origin
                and u.storage == t.storage
                and u.after < t.after
                and _overlap(other.place, u.nbytes, route.source, t.nbytes)
            )
            if other is not route and (room or loaded_first):
                found |= self._wait_for(route, other, (u.before - t.after) // self.period)
        return found

    def _wait_for(self, route: Route, other: Route, turns: int) -> set[Wait]:
        if other.lane == route.lane:
            if turns == 0 and other.position > route.position:
                raise PlanMismatchError(
                    f"transfer {route.index} of '{route.transfer.storage}' must wait for transfer {other.index} of "
                    f"'{other.transfer.storage}', which stands behind it on {route.lane}; plan again"
                )
            if other.transfer.link != route.transfer.link:
                return set()  # a lane of several links runs one after another
        return {(other.lane, other.position, turns)}

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

    def jobs(self, tiers: Tiers, scratch: DirectFile | None) -> dict[str, list[Job]]:
        """The jobs of each lane, in the order of the plan."""
        lanes: dict[str, list[Job]] = {}
        for route, link, waits in zip(self.routes, self.links, self.waits, strict=True):
            t = route.transfer
            requests = self.requests(route, link, tiers, scratch)
            ordered = tuple(sorted(waits))
            job = Job(t.storage, t.nbytes, t.after, requests, route.inward, ordered, route.copied, t.link)
            lanes.setdefault(route.lane, []).append(job)
        return lanes

    def exact(self, jobs: dict[str, list[Job]], tiers: Tiers) -> tuple[frozenset[str], dict[int, list[Move]]]:
        """Storages that are not of floating point alone, and by step what moves them.

        Stores come when they may start, loads when they are due; what comes from home by way of another tier comes
        straight from there. With these a pass runs well enough to be timed, whatever else is stale.
        """
        exact = {t.storage for t in self.graph.tensors if t.storage and not t.dtype.startswith(("float", "bfloat"))}
        moves: dict[int, list[Move]] = {}
        for inward in (False, True):
            for route in self.routes:
                t = route.transfer
                if t.storage not in exact or route.inward != inward:
                    continue
                step = (t.before if inward else t.after) % self.period
                if route.source is None or not self.graph.storage[t.storage].homed:
                    moves.setdefault(step, []).extend(jobs[route.lane][route.position].requests)
                elif t.target == self.tier and route.place is not None:
                    to, storage = (t.target, route.place), self.graph.storage[t.storage]
                    moves.setdefault(step, []).append(tiers.load(storage, t.lo, t.hi, to, BOUNCE_NBYTES, None, None))
        return frozenset(exact), moves

    def requests(self, route: Route, link: Link, tiers: Tiers, scratch: DirectFile | None) -> tuple[Move, ...]:
        """What one transfer does, in requests of the link's chunk size; their ends lie on multiples of it in the blob,
        where checksums begin and end."""
        t, source, place = route.transfer, route.source, route.place
        chunk, storage = chunk_nbytes(link), self.graph.storage[t.storage]
        if source is not None and place is not None:
            return tuple(
                tiers.copy((t.origin, source + lo), (t.target, place + lo), hi - lo, t.after, link)
                for lo, hi in cuts(0, t.nbytes, chunk, 0)
            )
        if storage.homed and source is not None:
            return tuple(
                tiers.store_back(storage, lo, hi, (t.origin, source + lo - t.lo), chunk, t.after, link)
                for lo, hi in cuts(t.lo, t.hi, chunk, storage.blob_offset)
            )
        if storage.homed:
            assert place is not None
            return tiers.loads(storage, t.lo, t.hi, (t.target, place), chunk, t.after, link)
        assert scratch is not None
        tier, at = (t.target, place) if source is None else (t.origin, source)
        found: list[Move] = []
        for slot in self.slots[t.storage]:
            for lo, hi in cuts(max(slot.lo, t.lo), min(slot.hi, t.hi), chunk, -slot.lo):
                view = tiers.host(tier, (at or 0) + lo - t.lo, hi - lo)
                run = _load_spilled if route.inward else _spill
                found.append(partial(run, scratch, slot.offset + lo - slot.lo, view, chunk))
        return tuple(found)


def _last_stored(t: Transfer, stores: list[Route]) -> tuple[int, list[Route]]:
    """How many bytes of `t` any of `stores` stores, and those of them that store some of these as the last."""
    edges = sorted({t.lo, t.hi, *(x for o in stores for x in (o.transfer.lo, o.transfer.hi) if t.lo < x < t.hi)})
    stored, latest = 0, dict[int, Route]()
    for lo, hi in pairwise(edges):
        last = next((o for o in reversed(stores) if o.transfer.lo <= lo and hi <= o.transfer.hi), None)
        if last is not None:
            stored += hi - lo
            latest[last.index] = last
    return stored, list(latest.values())


def _overlap(a: int | None, a_nbytes: int, b: int | None, b_nbytes: int) -> bool:
    """Whether two ranges of one arena share bytes; None is none of it."""
    return a is not None and b is not None and a < b + b_nbytes and b < a + a_nbytes


def chunk_nbytes(link: Link | None) -> int:
    """The request size of a link in whole blocks."""
    return max((link.chunk_nbytes if link else BOUNCE_NBYTES) // BLOCK, 1) * BLOCK


def _load_spilled(file: DirectFile, offset: int, view: memoryview, chunk: int, cancelled: Cancelled) -> None:
    file.read_into(view, offset, chunk=chunk, cancelled=cancelled)


def _spill(file: DirectFile, offset: int, view: memoryview, chunk: int, cancelled: Cancelled) -> None:
    file.write_from(view, offset, chunk=chunk, cancelled=cancelled)


def _link(machine: Machine, plan: Plan, tiers: tuple[str, ...], t: Transfer) -> Link:
    known = (*tiers, plan.home_tier)
    if t.origin not in known or t.target not in known or (t.origin, t.target) not in machine.link:
        among = ", ".join(f"'{tier}'" for tier in tiers)
        raise PlanMismatchError(
            f"a transfer of '{t.storage}' goes over {t.link}; this executor moves between '{plan.home_tier}' and "
            f"{among} of machine '{machine.name}'; plan again for it"
        )
    return machine.link[t.origin, t.target]
