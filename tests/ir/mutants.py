"""Right plans with one, two or three things wrong: what a plan says of places, transfers, steps and its home tier."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan, Residency, Step, Transfer
from tensorstow.ir.simulate import simulate

from .following import CELL


def truthful(plan: Plan, graph: Graph, machine: Machine) -> Plan | None:
    """`plan` with a certificate of its own, so that only what is wrong with its contents is found; None where it can
    have none."""
    arena = dict.fromkeys(plan.arena_nbytes, 0)
    for r in plan.residencies:
        arena[r.tier] = max(arena.get(r.tier, 0), r.offset + r.nbytes)
    moved: dict[str, int] = {}
    for t in plan.transfers:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    peak = {tier: n + plan.workspace_nbytes.get(tier, 0) for tier, n in arena.items()}
    plan = replace(plan, arena_nbytes=arena, capacity_nbytes={})
    try:
        timeline = simulate(plan, graph, machine)
    except (InputError, KeyError, IndexError, ZeroDivisionError):
        return None  # what is misshapen cannot be simulated
    certificate = replace(
        plan.certificate,
        status="feasible",
        simulated_s=timeline.pass_ns / 1e9,
        first_pass_s=timeline.first_pass_ns / 1e9,
        slowed_s=timeline.slowed_ns / 1e9,
        bound_s=0.0,
        peak_nbytes=peak,
        moved_nbytes=moved,
    )
    return replace(plan, certificate=certificate)


def wrong_stays(plan: Plan, rng: random.Random) -> list[Residency]:
    """The residencies with one of them changed, doubled, cut in two or left out, or two of them exchanged."""
    stays = list(plan.residencies)
    at, to = rng.randrange(len(stays)), rng.randrange(len(stays))
    r, other = stays[at], stays[to]
    shift, bytes_on = rng.choice([-2, -1, 1, 2]), CELL * rng.randrange(1, 32)
    cut = rng.randrange(r.start, r.end) if r.end - r.start > 1 else r.start
    addresses = [s.offset for s in stays if s.tier == r.tier] + [plan.arena_nbytes[r.tier]]
    offset = rng.choice(addresses)
    second = replace(r, start=cut % len(plan.steps), end=cut % len(plan.steps) + r.end - cut)
    middle = max(r.lo + CELL, r.hi - bytes_on)
    upper = replace(r, lo=middle, offset=r.offset + middle - r.lo)
    changed = [
        [replace(r, start=r.start + shift)],
        [replace(r, end=r.end + shift)],
        [replace(r, start=r.start + shift, end=r.end + shift)],
        [replace(r, offset=offset)],
        [replace(r, offset=max(0, r.offset + shift * CELL))],
        [replace(r, hi=middle)],
        [upper],
        [replace(r, hi=middle), replace(upper, offset=offset)],
        [replace(r, hi=middle), replace(upper, start=r.start + shift)],
        [replace(r, hi=middle), replace(upper, end=r.end + shift)],
        [r, replace(r, offset=offset)],
        [replace(r, end=cut), replace(second, offset=rng.choice([r.offset, offset]))],
        [replace(r, end=cut)],
        [replace(r, tier=other.tier, offset=other.offset)],
        [replace(r, storage=other.storage, hi=r.lo + min(r.nbytes, other.nbytes))],
        [],
    ]
    if rng.random() < 0.1 and at != to:  # exchanged
        stays[at], stays[to] = replace(r, offset=other.offset), replace(other, offset=r.offset)
        return stays
    return [*stays[:at], *rng.choice(changed), *stays[at + 1 :]]


def wrong_moves(plan: Plan, rng: random.Random, tiers: list[str]) -> list[Transfer]:
    """The transfers with one of them changed, doubled, cut in two, turned round, put elsewhere or left out, or two of
    them exchanged."""
    moves = list(plan.transfers)
    at, to, total = rng.randrange(len(moves)), rng.randrange(len(moves)), len(plan.steps)
    t, other = moves[at], moves[to]
    shift, wide = rng.choice([-2, -1, 1, 2]), rng.randrange(2)
    middle = max(t.lo + CELL, t.hi - CELL * rng.randrange(1, 32))
    changed = [
        [replace(t, after=t.after + shift)],
        [replace(t, before=t.before + shift)],
        [replace(t, after=t.after + shift, before=t.before + shift)],
        [replace(t, after=t.after - 1, before=t.before + wide)],
        [replace(t, before=t.after)],
        [replace(t, after=t.before % total, before=t.before % total)],
        [replace(t, hi=middle)],
        [replace(t, lo=middle)],
        [replace(t, hi=middle), replace(t, lo=middle, after=t.after + shift, before=t.before + shift)],
        [replace(t, lo=middle), replace(t, hi=middle, before=t.before + shift)],
        [t, replace(t, after=t.after + shift, before=t.before + shift)],
        [t, replace(t, origin=t.target, target=t.origin, after=t.before % total, before=t.before + 1)],
        [replace(t, storage=other.storage)],
        [replace(t, origin=rng.choice(tiers))],
        [replace(t, target=rng.choice(tiers))],
        [replace(t, after=other.after, before=other.before)],
        [],
    ]
    rest = [*moves[:at], *moves[at + 1 :]]
    where = rng.random()
    if where < 0.15:
        return [*rest[:to], t, *rest[to:]]
    if where < 0.25:
        return [*rest[: at + 1], t, *rest[at + 1 :]]
    if where < 0.3 and at != to:  # exchanged, each in the window of the other
        moves[at] = replace(t, after=other.after, before=other.before)
        moves[to] = replace(other, after=t.after, before=t.before)
        return moves
    return [*moves[:at], *rng.choice(changed), *moves[at + 1 :]]


def retimed(plan: Plan, steps: list[Step], new: Callable[[int], int]) -> Plan:
    """`plan` with other steps, where instant i of a pass becomes instant `new`(i)."""
    before, total = len(plan.steps), len(steps)

    def at(instant: int) -> int:
        return instant // before * total + new(instant % before)

    return replace(
        plan,
        steps=tuple(steps),
        residencies=tuple(replace(r, start=at(r.start), end=at(r.end)) for r in plan.residencies),
        transfers=tuple(replace(t, after=at(t.after), before=at(t.before)) for t in plan.transfers),
    )


def wrong_steps(plan: Plan, rng: random.Random, units: list[str]) -> Plan:
    """Two steps exchanged, one that comes earlier or later, again, not at all, or elsewhere."""
    steps = list(plan.steps)
    a, b = rng.randrange(len(steps)), rng.randrange(len(steps))
    what = rng.randrange(7)
    if what == 0:
        steps[a], steps[b] = steps[b], steps[a]
    elif what == 1:
        steps[a - 1], steps[a] = steps[a], steps[a - 1]
    elif what == 2:
        steps.insert(b, steps.pop(a))
    elif what == 3:
        steps[a] = replace(steps[a], unit=rng.choice(units))
    elif what == 4:
        steps.insert(b, steps[a])
    elif what == 5:  # again, with everything else as late as before
        steps.insert(b, steps[a])
        return retimed(plan, steps, lambda i: i + (i > b))
    elif len(steps) > 1:
        del steps[a]
        return retimed(plan, steps, lambda i: i - (i > a))
    return replace(plan, steps=tuple(steps))


def mutant(plan: Plan, machine: Machine, rng: random.Random) -> Plan:
    """One thing wrong, sometimes two or three."""
    tiers, units = [t.name for t in machine.tiers], [u.name for u in machine.units]
    for _ in range(rng.choice([1, 1, 2, 3])):
        what = rng.random()
        if what < 0.42 and plan.residencies:
            plan = replace(plan, residencies=tuple(wrong_stays(plan, rng)))
        elif what < 0.80 and plan.transfers:
            plan = replace(plan, transfers=tuple(wrong_moves(plan, rng, tiers)))
        elif what < 0.97:
            plan = wrong_steps(plan, rng, units)
        else:
            plan = replace(plan, home_tier=rng.choice(tiers))
    return plan
