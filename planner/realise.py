"""Placed stays to a plan: residencies, transfers in their order, and the certificate from the one simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from heapq import heappop, heappush
from math import lcm

from ..ir.errors import InfeasibleError
from ..ir.plan import Certificate, Plan, Residency, Step, Transfer
from ..ir.simulate import simulate
from ..ir.timeline import Timeline, timed
from .instance import Instance
from .items import round_up
from .stays import Placed

PARTS = 200
"""A transfer that takes longer than a pass over this many holds others up: it may have to move in parts."""

WAITING = 0.001
"""Share of a pass that must be waiting for another order of the transfers to be worth a try."""


def realise(instance: Instance, placed: Sequence[Placed], strategy: str) -> Plan:
    """The plan of `placed`, simulated; its bound is not known yet (0).

    Raises InfeasibleError where something would be stored and no link leads down.
    """
    residencies: list[Residency] = []
    loads: list[Transfer] = []
    stores: list[Transfer] = []
    scratch = 0
    spilled: dict[int, int] = {}
    reloaded: dict[int, int] = {}
    for p in sorted(placed, key=lambda p: (p.stay.first, p.stay.item)):
        item = instance.items[p.stay.item]
        hi = min(p.lo + p.nbytes, instance.graph.storage[item.storage].nbytes)
        if hi <= p.lo:  # nothing but what fills its last block
            continue
        shift = instance.steps if p.start < 0 else 0
        start, end = p.start + shift, p.end + shift
        residencies.append(Residency(item.storage, instance.fast.name, p.lo, hi, p.offset, start, end))
        if p.stay.loads:
            before = p.stay.first + shift
            loads.append(Transfer(item.storage, p.lo, hi, instance.home.name, instance.fast.name, start, before))
        if p.stay.stores:
            after, before = p.stay.written, p.end
            back = after // instance.steps * instance.steps if item.homed else 0
            stores.append(
                Transfer(item.storage, p.lo, hi, instance.fast.name, instance.home.name, after - back, before - back)
            )
            if not item.homed:
                spilled[p.stay.item] = min(after, spilled.get(p.stay.item, after))
        if p.stay.loads and not item.homed:
            reloaded[p.stay.item] = max(p.stay.first, reloaded.get(p.stay.item, 0))
    for item_index, after in sorted(spilled.items()):
        item = instance.items[item_index]
        storage = instance.graph.storage[item.storage]
        at, nbytes = round_up(scratch, lcm(storage.alignment, instance.home.alignment)), storage.nbytes
        residencies.append(Residency(item.storage, instance.home.name, 0, nbytes, at, after, reloaded[item_index]))
        scratch = round_up(at + nbytes, instance.home.alignment)
    if stores and (instance.fast.name, instance.home.name) not in instance.machine.link:
        raise InfeasibleError(
            f"strategy '{strategy}' would store '{stores[0].storage}' ({stores[0].nbytes} bytes), and machine "
            f"'{instance.machine.name}' has no link from tier '{instance.fast.name}' to '{instance.home.name}'; give "
            "it one, or take another strategy"
        )
    loads.sort(key=lambda t: (t.before, t.after))
    stores.sort(key=lambda t: (t.after, t.before))
    reached = max((p.offset + p.nbytes for p in placed), default=0)  # transfers fill whole blocks of the home tier
    return _certify(instance, residencies, _merge(instance, loads, stores), strategy, reached, scratch)


def _merge(instance: Instance, loads: list[Transfer], stores: list[Transfer]) -> tuple[Transfer, ...]:
    """Loads by deadline, stores by start. On a shared channel all by deadline, so that none waits for a later one."""
    links = instance.machine.link
    back = links.get((instance.fast.name, instance.home.name))
    if back is None or back.lane != links[instance.home.name, instance.fast.name].lane:
        return (*stores, *loads)
    return tuple(sorted([*stores, *loads], key=lambda t: (t.before, t.after, t.target == instance.fast.name)))


def _certify(
    instance: Instance,
    residencies: list[Residency],
    transfers: tuple[Transfer, ...],
    strategy: str,
    reached_nbytes: int,
    scratch_nbytes: int,
) -> Plan:
    fast, home = instance.fast.name, instance.home.name
    arena = {fast: reached_nbytes}
    if scratch_nbytes:
        arena[home] = scratch_nbytes
    moved: dict[str, int] = {}
    for t in transfers:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    plan = Plan(
        graph=instance.digests[0],
        machine=instance.digests[1],
        strategy=strategy,
        mode=instance.mode,
        home_tier=home,
        steps=tuple(Step(o, instance.unit.name, d) for o, d in zip(instance.order, instance.durations_ns, strict=True)),
        residencies=tuple(sorted(residencies, key=lambda r: (r.tier, r.start, r.offset, r.storage))),
        transfers=transfers,
        capacity_nbytes={fast: instance.fast.usable_nbytes},
        arena_nbytes=arena,
        workspace_nbytes={fast: instance.workspace_nbytes},
        certificate=Certificate(
            status="feasible",
            simulated_s=0.0,
            first_pass_s=0.0,
            bound_s=0.0,
            bound_kind="",
            peak_nbytes={
                tier: nbytes + (instance.workspace_nbytes if tier == fast else 0) for tier, nbytes in arena.items()
            },
            moved_nbytes=moved,
        ),
    )
    timeline = simulate(plan, instance.graph, instance.machine)
    whole, links = plan, instance.machine.link
    longest = max((links[t.origin, t.target].busy_ns(t.nbytes) for t in transfers), default=0)
    tried: tuple[Timeline, int] | None = None
    for longest_ns in (timeline.pass_ns, timeline.pass_ns // PARTS):
        attempt = timeline, min(longest_ns, longest)
        if timeline.wait_ns > WAITING * timeline.pass_ns and attempt != tried:
            tried = attempt
            other = replace(whole, transfers=_as_available(instance, whole, timeline, longest_ns))
            again = simulate(other, instance.graph, instance.machine)
            if again.pass_ns < timeline.pass_ns * (1 - WAITING):
                plan, timeline = other, again
    return replace(plan, certificate=timed(plan.certificate, timeline))


def _as_available(instance: Instance, plan: Plan, timeline: Timeline, longest_ns: int) -> tuple[Transfer, ...]:
    """The transfers in another order: whenever a lane is free, the one with the nearest deadline among those that may
    start by then, as the instants of `timeline` have it. None stands behind one that may start only after somebody
    waits for it: such a one had the nearer deadline and could start before. What takes longer than `longest_ns` moves
    in parts, between which others may go.
    """
    instants = [0, *(e.end_ns for e in timeline.steps)]
    waiting: dict[str, list[tuple[Transfer, int]]] = {}
    for t in sorted(plan.transfers, key=lambda t: t.after):
        link = instance.machine.link[t.origin, t.target]
        for part in _parts(instance, t, max(1, -(-link.busy_ns(t.nbytes) // max(longest_ns, 1)))):
            waiting.setdefault(link.lane, []).append((part, link.busy_ns(part.nbytes)))
    order: list[Transfer] = []
    # Of two that may start at once the first in the plan counts as earlier: what is stored, before it is loaded again.
    for _, queue in sorted(waiting.items(), key=lambda lane: lane[1][0][0].target != plan.home_tier):
        now, at = 0, 0
        ready: list[tuple[int, int, int]] = []
        while at < len(queue) or ready:
            if not ready:
                now = max(now, instants[queue[at][0].after])
            while at < len(queue) and instants[queue[at][0].after] <= now:
                heappush(ready, (queue[at][0].before, queue[at][0].after, at))
                at += 1
            _, _, index = heappop(ready)
            order.append(queue[index][0])
            now += queue[index][1]
    return tuple(order)


def _parts(instance: Instance, t: Transfer, number: int) -> list[Transfer]:
    """A transfer in about equal parts of whole blocks."""
    unit = instance.block_nbytes
    size = round_up(-(-t.nbytes // number), unit)
    return [replace(t, lo=lo, hi=min(lo + size, t.hi)) for lo in range(t.lo, t.hi, size)]
