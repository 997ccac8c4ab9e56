"""From a plan on two tiers to one on more: its transfers in parts that the tiers below serve, and theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import lcm

from ..ir.chains import holds as covers
from ..ir.machine import Tier
from ..ir.plan import Plan, Residency, Transfer
from ..ir.simulate import DeadlockError, simulate
from ..ir.timeline import Timeline, timed
from .instance import Instance
from .items import round_up
from .levels_arena import Settled, Times
from .levels_choose import Level, whole_times
from .levels_visits import parcels_of

CHUNKS = 512
"""A fill is divided into transfers of about this part of the tier: a load may begin when its first part has come."""

Settle = Callable[[Level, int], "list[Settled] | None"]
"""From a level, and its number from 0, to its addresses; None where none were found."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A simulated plan on all tiers. `source`: for each of its transfers the one of the upper plan that it is a part
    of, by index; -1 for those further down."""

    plan: Plan
    source: tuple[int, ...]


Move = tuple[Transfer, int]
"""A transfer, and the index of the upper plan's that it is a part of, or -1."""


def lower(instance: Instance, upper: Plan, windows: Sequence[Move], times: Times, settle: Settle) -> Lowered | None:
    """`upper`, whose home is the topmost middle tier, on all tiers; `windows` are its transfers, perhaps shortened or
    in parts.

    None where `settle` finds no addresses, or what it found runs into a deadlock.
    """
    steps = instance.steps
    residencies = [r for r in upper.residencies if r.tier == instance.fast.name]
    arena = {instance.fast.name: upper.arena_nbytes[instance.fast.name]}
    moves: list[Move] = list(windows)
    done: list[list[Move]] = []
    below = (*instance.middle[1:], instance.home)
    for number, (tier, under) in enumerate(zip(instance.middle, below, strict=True)):
        level = _level(instance, [t for t, _ in moves], tier, under, times)
        settled = settle(level, number)
        if settled is None:
            return None
        places = [r for s in settled for r in s.residencies]
        arena[tier.name] = max((r.offset + r.nbytes for r in places), default=0)
        residencies += places
        further = _moves_below(instance, settled, tier, under)
        done.append(_cut(instance, moves, tier.name, places, further, steps))
        moves = [(t, -1) for t in further]
    done.append(moves)
    spilled, scratch = _spilled(instance, [t for t, _ in moves])
    residencies += spilled
    if scratch:
        arena[instance.home.name] = scratch
    ordered = _ordered(instance, done)
    return _simulated(instance, upper, residencies, ordered, arena)


def _level(instance: Instance, transfers: Sequence[Transfer], tier: Tier, under: Tier, times: Times) -> Level:
    links = instance.machine.link
    load, store = links[under.name, tier.name], links.get((tier.name, under.name))
    return Level(
        parcels=tuple(parcels_of(instance.graph, transfers, tier.name, instance.steps)),
        capacity_nbytes=tier.usable_nbytes,
        alignment=lcm(tier.alignment, under.alignment, *{s.alignment for s in instance.graph.storages}),
        times=replace(
            times,
            load_ns_per_byte=1e9 / load.bytes_per_s,
            store_ns_per_byte=1e9 / store.bytes_per_s if store else 0.0,
        ),
        load_bytes_per_s=load.bytes_per_s,
        store_bytes_per_s=store.bytes_per_s if store else 0.0,
        shared_channel=store is not None and store.lane == load.lane,
    )


def _moves_below(instance: Instance, settled: Sequence[Settled], tier: Tier, under: Tier) -> list[Transfer]:
    """Fills and drains of what does not stay for ever, in parts."""
    chunk = max(instance.machine.link[under.name, tier.name].chunk_nbytes, tier.usable_nbytes // CHUNKS)
    found: list[Transfer] = []
    for s in settled:
        for r in s.residencies:
            for lo in range(r.lo, r.hi, chunk):
                hi = min(lo + chunk, r.hi)
                if s.hold.fill_before is not None:
                    found.append(Transfer(r.storage, lo, hi, under.name, tier.name, s.start, s.hold.fill_before))
                if s.hold.drain_after is not None:
                    after, before = s.hold.drain_after, s.end
                    back = after // instance.steps * instance.steps if s.hold.homed else 0
                    found.append(Transfer(r.storage, lo, hi, tier.name, under.name, after - back, before - back))
    return found


def _cut(
    instance: Instance,
    moves: Sequence[Move],
    tier: str,
    places: Sequence[Residency],
    further: Sequence[Transfer],
    steps: int,
) -> list[Move]:
    """The moves to and from `tier` in parts that each lie in one place there, and that one fill brings."""
    places_of: dict[str, list[Residency]] = {}
    for r in places:
        places_of.setdefault(r.storage, []).append(r)
    parts_of: dict[str, set[int]] = {}
    for f in further:
        if f.target == tier:
            parts_of.setdefault(f.storage, set()).update((f.lo, f.hi))
    found: list[Move] = []
    for t, source in moves:
        homed = instance.graph.storage[t.storage].homed
        ends = {t.lo, t.hi}
        for r in places_of.get(t.storage, ()):
            lo, hi = max(r.lo, t.lo), min(r.hi, t.hi)
            if lo < hi and covers(r, replace(t, lo=lo, hi=hi), steps, homed=homed):
                passing = r.end - r.start < steps and t.origin == tier
                ends |= {lo, hi} | ({x for x in parts_of.get(t.storage, ()) if lo < x < hi} if passing else set())
        cuts = sorted(ends)
        found += [(replace(t, lo=a, hi=b), source) for a, b in pairwise(cuts)]
    return found


def _spilled(instance: Instance, moves: Sequence[Transfer]) -> tuple[list[Residency], int]:
    """Places in the home tier of what was made in a pass and went down to it, and the bytes that they take."""
    home, found, address = instance.home, list[Residency](), 0
    by_storage: dict[str, list[Transfer]] = {}
    for t in moves:
        if not instance.graph.storage[t.storage].homed:
            by_storage.setdefault(t.storage, []).append(t)
    for storage, own in sorted(by_storage.items()):
        down = [t for t in own if t.target == home.name]
        lo, hi = min(t.lo for t in down), max(t.hi for t in down)
        start = min(t.after for t in down)
        end = max(start + 1, *(t.before for t in own))
        address = round_up(address, lcm(home.alignment, instance.graph.storage[storage].alignment))
        found.append(Residency(storage, home.name, lo, hi, address, start, end))
        address = round_up(address + hi - lo, home.alignment)
    return found, address


def _ordered(instance: Instance, done: Sequence[Sequence[Move]]) -> list[Move]:
    """What goes down by its start, upper levels first; what comes up by its deadline, lower levels first. Where both
    share a lane all by deadline, so that none waits behind a later one."""
    link = instance.machine.link
    rank = {t.name: k for k, t in enumerate((instance.fast, *instance.middle, instance.home))}
    tagged = [(t, source, level, rank[t.target] > rank[t.origin]) for level, ms in enumerate(done) for t, source in ms]
    lanes = {(link[t.origin, t.target].lane, down) for t, _, _, down in tagged}
    if len({lane for lane, _ in lanes}) < len(lanes):
        tagged.sort(key=lambda m: (m[0].before, m[0].after, not m[3], m[2] if m[3] else -m[2]))
    else:
        down = sorted((m for m in tagged if m[3]), key=lambda m: (m[0].after, m[2], m[0].before))
        up = sorted((m for m in tagged if not m[3]), key=lambda m: (m[0].before, m[0].after, -m[2]))
        tagged = [*down, *up]
    return [(t, source) for t, source, _, _ in tagged]


def _simulated(
    instance: Instance, upper: Plan, residencies: list[Residency], moves: Sequence[Move], arena: dict[str, int]
) -> Lowered | None:
    moved: dict[str, int] = {}
    for t, _ in moves:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    plan = replace(
        upper,
        home_tier=instance.home.name,
        residencies=tuple(sorted(residencies, key=lambda r: (r.tier, r.start, r.offset, r.storage))),
        transfers=tuple(t for t, _ in moves),
        capacity_nbytes=upper.capacity_nbytes | {t.name: t.usable_nbytes for t in instance.middle},
        arena_nbytes=arena,
    )
    try:
        timeline = simulate(plan, instance.graph, instance.machine)
    except DeadlockError:
        return None
    certificate = replace(
        timed(upper.certificate, timeline),
        bound_s=0.0,
        peak_nbytes={tier: nbytes + plan.workspace_nbytes.get(tier, 0) for tier, nbytes in arena.items()},
        moved_nbytes=moved,
    )
    return Lowered(replace(plan, certificate=certificate), tuple(source for _, source in moves))


def times_of(timeline: Timeline) -> Times:
    """The instants of a pass as simulated, without rates yet."""
    # A pass ends when what must be complete at its end is; that may be after its last step.
    instants = [s.start_ns - s.wait_ns for s in timeline.steps] + [max(timeline.steps[-1].end_ns, timeline.pass_ns)]
    return Times(whole_times(instants), 0.0, 0.0)


def tightened(upper: Plan, timeline: Timeline, source: Sequence[int] | None = None) -> tuple[Transfer, ...]:
    """The transfers of `upper` with windows no longer than they need: from the last instant before they were seen to
    start until the first one after they were seen to be complete.

    `timeline` is that of `upper`, or of a plan whose transfer i is a part of number `source`[i] of `upper`.
    """
    times = times_of(timeline)
    pass_ns = max(times.instants_ns[-1], 1)
    seen: dict[int, tuple[int, int]] = {}
    for event in timeline.transfers:
        index = event.index if source is None else source[event.index]
        if index >= 0:
            t = upper.transfers[index]
            back = (event.start_ns - times.instants_ns[t.after]) // pass_ns * pass_ns
            first = min(max(t.after, times.before(event.start_ns - back)), t.before)
            last = max(first, min(t.before, times.after(event.end_ns - back)))
            known = seen.get(index, (first, last))
            seen[index] = min(known[0], first), max(known[1], last)
    return tuple(_within(t, *seen.get(i, (t.after, t.before)), times.steps) for i, t in enumerate(upper.transfers))


def _within(t: Transfer, after: int, before: int, steps: int) -> Transfer:
    back = after // steps * steps
    return replace(t, after=after - back, before=before - back)
