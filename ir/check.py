"""The checker of plans: every way in which a plan could be wrong, with its numbers.

It shares nothing with the planners: it derives from the graph alone which bytes must be where at each step.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from math import isfinite

from .chains import covers
from .check_order import check_order
from .codec import digest
from .collecting import without_collecting
from .contents import check_contents
from .errors import InputError
from .graph import Graph, Storage
from .machine import Machine
from .plan import Plan, Residency, Transfer
from .simulate import simulate
from .uses import Uses, boundary_storages, storage_uses
from .violation import Violation
from .windows import Lanes

TIME_TOLERANCE = 1e-6  # relative: seconds in a certificate are rounded nanoseconds
STATUSES = ("optimal", "feasible")


@without_collecting()
def check(plan: Plan, graph: Graph, machine: Machine) -> tuple[Violation, ...]:
    """Every violation of `plan`; empty when the plan is right."""
    misshapen = check_shape(plan, graph, machine)
    if misshapen:  # what follows would trip over names that do not exist
        return misshapen
    found: list[Violation] = []
    uses = storage_uses(graph, [s.op for s in plan.steps])
    found += check_order(plan, graph)
    found += _check_capacity(plan, graph, machine)
    found += _check_overlap(plan)
    moves: dict[str, list[Transfer]] = {}
    for t in plan.transfers:
        moves.setdefault(t.storage, []).append(t)
    lanes = Lanes(plan, graph, machine)
    unused = Uses((), (), ())  # what no step touches may have places and move all the same
    for storage in graph.storages:
        own = moves.get(storage.id, [])
        if storage.nbytes > 0 and (storage.id in uses or own):
            found += _check_storage(plan, graph, machine, storage, uses.get(storage.id, unused), own, lanes)
    found += _check_durations(plan, graph)
    found += _check_time(plan, graph, machine)
    found += _check_claims(plan)
    return tuple(found)


def check_shape(plan: Plan, graph: Graph, machine: Machine) -> tuple[Violation, ...]:
    """What is wrong with a plan by itself: digests, names, ranges, intervals. Only where nothing is can it be simulated
    or drawn."""
    return (*_check_identity(plan, graph, machine), *_check_shape(plan, graph, machine))


def _check_identity(plan: Plan, graph: Graph, machine: Machine) -> Iterator[Violation]:
    for what, stated, actual in (("graph", plan.graph, digest(graph)), ("machine", plan.machine, digest(machine))):
        if stated != actual:
            yield Violation("digest", f"the plan is for {what} {stated[:12]}, given is {what} {actual[:12]}")


def _check_shape(plan: Plan, graph: Graph, machine: Machine) -> Iterator[Violation]:
    """Names that exist, ranges inside their storages, intervals inside the period."""
    total = len(plan.steps)
    tiers = {u.name: u.tier for u in machine.units}
    if plan.home_tier not in machine.tier:
        yield Violation("home", f"the home tier is '{plan.home_tier}', which machine '{machine.name}' does not have")
    for i, step in enumerate(plan.steps):
        if step.op not in graph.operator or step.unit not in tiers or step.duration_ns < 0:
            yield Violation("step", f"step {i} calls '{step.op}' on '{step.unit}' for {step.duration_ns} ns")
        elif tiers[step.unit] == plan.home_tier:  # what is at home there has no address to compute from
            yield Violation("home", f"step {i} computes from '{plan.home_tier}', the home tier")
    stated = (plan.capacity_nbytes, plan.arena_nbytes, plan.workspace_nbytes)
    for what, by_tier in zip(("capacity", "arena", "workspace"), stated, strict=True):
        for tier, nbytes in by_tier.items():
            if tier not in machine.tier or nbytes < 0:
                yield Violation("capacity", f"the {what} of '{tier}' is {nbytes} bytes, of machine '{machine.name}'")
    for r in plan.residencies:
        size = _size(graph, r.storage)
        if r.tier not in machine.tier or not 0 <= r.lo < r.hi <= size or r.offset < 0:
            yield Violation("range", f"'{r.storage}' of {size} bytes has [{r.lo}, {r.hi}) in '{r.tier}' at {r.offset}")
        elif not (0 <= r.start < r.end <= r.start + total and r.start < total):
            yield Violation("interval", f"'{r.storage}' is resident in steps [{r.start}, {r.end}) of {total}")
        elif r.offset % graph.storage[r.storage].alignment and r.lo == 0:
            wanted = graph.storage[r.storage].alignment
            yield Violation("alignment", f"'{r.storage}' lies at {r.offset} of '{r.tier}', not a multiple of {wanted}")
    for t in plan.transfers:
        size = _size(graph, t.storage)
        if (t.origin, t.target) not in machine.link or not 0 <= t.lo < t.hi <= size:
            yield Violation("range", f"transfer of [{t.lo}, {t.hi}) of '{t.storage}' ({size} bytes) over {t.link}")
        elif not (0 <= t.after < total and t.after <= t.before <= t.after + total):
            yield Violation("interval", f"transfer of '{t.storage}' after {t.after}, before {t.before} of {total}")


def _size(graph: Graph, storage: str) -> int:
    return graph.storage[storage].nbytes if storage in graph.storage else -1


def _check_capacity(plan: Plan, graph: Graph, machine: Machine) -> Iterator[Violation]:
    used: dict[str, int] = {}
    for r in plan.residencies:
        used[r.tier] = max(used.get(r.tier, 0), r.offset + r.nbytes)
    for tier, nbytes in used.items():
        arena = plan.arena_nbytes.get(tier, 0)
        if nbytes > arena:
            yield Violation("capacity", f"residencies reach address {nbytes} of '{tier}', whose arena has {arena}")
    workspace: dict[str, int] = {}
    unit_tier = {u.name: u.tier for u in machine.units}
    for unit, op in {(s.unit, s.op) for s in plan.steps}:
        tier = unit_tier[unit]
        workspace[tier] = max(workspace.get(tier, 0), graph.operator[op].workspace_nbytes)
    for tier, nbytes in sorted(workspace.items()):
        stated = plan.workspace_nbytes.get(tier, 0)
        if nbytes > stated:
            text = f"a kernel that computes from '{tier}' needs {nbytes} bytes of workspace there"
            yield Violation("capacity", f"{text}, the plan allows {stated}")
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    for tier in {**plan.capacity_nbytes, **plan.arena_nbytes, plan.home_tier: 0}:
        usable = machine.tier[tier].usable_nbytes if tier in machine.tier else 0
        capacity = plan.capacity_nbytes.get(tier, usable)
        if capacity > usable:
            yield Violation("capacity", f"the plan counts on {capacity} bytes of '{tier}', the machine has {usable}")
        at_home = homed if tier == plan.home_tier else 0
        needed = plan.arena_nbytes.get(tier, 0) + plan.workspace_nbytes.get(tier, 0) + at_home
        if needed > capacity:
            text = f", {at_home} of them at home there" if at_home else ""
            yield Violation("capacity", f"'{tier}' holds {needed} bytes at the peak{text}, its capacity is {capacity}")


def _check_overlap(plan: Plan) -> Iterator[Violation]:
    """No two residencies of a tier share an address at an instant: a sweep over steps with the live ranges sorted."""
    total = len(plan.steps)
    by_tier: dict[str, list[tuple[int, int, Residency]]] = {}
    for r in plan.residencies:
        spans = [(r.start, min(r.end, total))] + ([(0, r.end - total)] if r.end > total else [])
        by_tier.setdefault(r.tier, []).extend((a, b, r) for a, b in spans)
    for tier, spans in by_tier.items():
        events = sorted(
            [(b, 0, i) for i, (_, b, _) in enumerate(spans)] + [(a, 1, i) for i, (a, _, _) in enumerate(spans)]
        )
        live: list[tuple[int, int]] = []
        for step, begins, i in events:
            r = spans[i][2]
            if not begins:
                live.pop(bisect_left(live, (r.offset, i)))
                continue
            at = bisect_left(live, (r.offset, i))
            for _, j in live[max(at - 1, 0) : at + 1]:
                other = spans[j][2]
                if other.offset < r.offset + r.nbytes and r.offset < other.offset + other.nbytes:
                    yield Violation(
                        "overlap",
                        f"from step {step} '{r.storage}' at [{r.offset}, {r.offset + r.nbytes}) and '{other.storage}' "
                        f"at [{other.offset}, {other.offset + other.nbytes}) share addresses of '{tier}'",
                    )
            insort(live, (r.offset, i))


def _check_storage(
    plan: Plan,
    graph: Graph,
    machine: Machine,
    storage: Storage,
    uses: Uses,
    moves: list[Transfer],
    lanes: Lanes,
) -> Iterator[Violation]:
    """Where the bytes of one storage are at each step that needs them, and how they came there."""
    total = len(plan.steps)
    stays = plan.residencies_of.get(storage.id, ())
    tiers = {u.name: u.tier for u in machine.units}
    is_input, is_output = (storage.id in ids for ids in boundary_storages(graph))
    needed = [(step, tiers[plan.steps[step].unit]) for step in uses.touches]
    compute_tier = tiers[plan.steps[0].unit] if plan.steps else machine.units[0].tier
    if is_input and total:
        needed.append((0, compute_tier))
    if is_output and total:
        needed.append((total - 1, compute_tier))
    for step, tier in sorted(set(needed)):
        live = [r for r in stays if r.tier == tier and covers(r, step, total)]
        yield from _check_presence(storage, step, tier, live)
    yield from _check_once(storage, stays, total, plan.home_tier)
    yield from check_contents(plan, graph, storage, uses, moves, tiers, lanes)


def _check_once(storage: Storage, stays: tuple[Residency, ...], total: int, home_tier: str) -> Iterator[Violation]:
    """No byte has two places in a tier at an instant: a transfer could not say which one it means.

    What is spilled to the home tier lies in a file there, always at the same place: it must be gone before it comes.
    """
    for i, r in enumerate(stays):
        for other in stays[:i]:
            together = covers(r, other.start, total) or covers(other, r.start, total)
            if r.tier == home_tier and not storage.homed:
                together = r.start <= other.end and other.start <= r.end
            if together and r.tier == other.tier and r.lo < other.hi and other.lo < r.hi:
                yield Violation(
                    "twice",
                    f"'{storage.id}' is resident in '{r.tier}' at {r.offset} in steps [{r.start}, {r.end}) and at "
                    f"{other.offset} in steps [{other.start}, {other.end})",
                )


def _check_presence(storage: Storage, step: int, tier: str, live: list[Residency]) -> Iterator[Violation]:
    ranges = sorted((r.lo, r.hi) for r in live)
    ends = [0, *(hi for _, hi in ranges)]
    starts = [*(lo for lo, _ in ranges), storage.nbytes]
    for end, start in zip(ends, starts, strict=True):
        if start > end:
            yield Violation("absent", f"step {step} needs bytes [{end}, {start}) of '{storage.id}', not in '{tier}'")
    bases = {r.base for r in live}
    if len(bases) > 1:
        yield Violation("scattered", f"step {step} finds '{storage.id}' in pieces at bases {sorted(bases)} of '{tier}'")


def _check_durations(plan: Plan, graph: Graph) -> Iterator[Violation]:
    """A step takes what was measured of its operator, where that was."""
    for i, step in enumerate(plan.steps):
        measured = graph.operator[step.op].measured_ns
        if measured is not None and step.duration_ns != max(1, measured):
            text = f"step {i} is to take {step.duration_ns} ns, '{step.op}' was measured to take {measured} ns"
            yield Violation("time", text)


def _check_time(plan: Plan, graph: Graph, machine: Machine) -> Iterator[Violation]:
    """The certificate says what the one simulator says."""
    certificate = plan.certificate
    stated_s = (certificate.simulated_s, certificate.first_pass_s, certificate.slowed_s)
    if not all(isfinite(seconds) for seconds in stated_s):
        yield Violation("time", f"the certificate says {', '.join(map(str, stated_s))} s, which are no times")
        return
    try:
        timeline = simulate(plan, graph, machine)
    except InputError as error:
        yield Violation("deadlock", str(error))
        return
    pass_ns = round(certificate.simulated_s * 1e9)
    for what, stated_ns, ns in (
        ("a pass", pass_ns, timeline.pass_ns),
        ("for the first pass", round(certificate.first_pass_s * 1e9), timeline.first_pass_ns),
        ("of slowing down", round(certificate.slowed_s * 1e9), timeline.slowed_ns),
    ):
        if abs(stated_ns - ns) > TIME_TOLERANCE * max(ns, stated_ns) + 1:
            yield Violation("time", f"the certificate says {stated_ns} ns {what}, the simulator {ns} ns")
    for lane, busy in timeline.lane_busy_ns.items():
        if busy > pass_ns * (1 + TIME_TOLERANCE) + 1:
            yield Violation("bandwidth", f"{lane} needs {busy} ns for the bytes of a pass of {pass_ns} ns")


def _check_claims(plan: Plan) -> Iterator[Violation]:
    """The rest of the certificate agrees with itself and with the plan."""
    certificate = plan.certificate
    simulated_s, bound_s = certificate.simulated_s, certificate.bound_s
    if not simulated_s >= bound_s * (1 - TIME_TOLERANCE):
        yield Violation("bound", f"simulated {simulated_s} s is below the bound {bound_s} s")
    if certificate.status not in STATUSES:
        yield Violation("status", f"the certificate says '{certificate.status}', not one of {', '.join(STATUSES)}")
    if certificate.status == "optimal" and simulated_s > bound_s * (1 + TIME_TOLERANCE):
        yield Violation("status", f"the plan is called optimal, but {simulated_s} s are above the bound {bound_s} s")
    moved: dict[str, int] = {}
    for t in plan.transfers:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    for link in sorted(set(moved) | set(certificate.moved_nbytes)):
        if moved.get(link, 0) != certificate.moved_nbytes.get(link, 0):
            stated = certificate.moved_nbytes.get(link, 0)
            yield Violation("moved", f"{link} moves {moved.get(link, 0)} bytes a pass, the certificate says {stated}")
    for tier in {**plan.arena_nbytes, **certificate.peak_nbytes}:
        peak = plan.arena_nbytes.get(tier, 0) + plan.workspace_nbytes.get(tier, 0)
        if certificate.peak_nbytes.get(tier) != peak:
            yield Violation("peak", f"'{tier}' peaks at {peak} bytes, the certificate says {certificate.peak_nbytes}")
