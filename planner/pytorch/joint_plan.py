"""Plans of joint graphs that serve tokens first: what only a prompt reads comes part by part, when it is read.

A plan of all parts treats all weights alike, those of an encoder too, though one pass reads these and hundreds do not.
So another is made, of a graph in which a weight that only the prompt reads is scratch: it has a place while its part
and the one before it run, and nothing is moved. Into that place it is loaded then. What is left of the budget keeps as
many of these weights as fit.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.check import check
from ...ir.codec import digest
from ...ir.graph import Graph, Operator, Storage, StorageKind
from ...ir.machine import Machine, TierKind
from ...ir.plan import Plan, Residency, Transfer
from ...ir.simulate import DeadlockError, simulate
from ...ir.timeline import timed
from ..bounds import find_bound
from ..build import judge
from ..costs import duration_ns
from ..instance import make_instance
from ..items import round_up


def can_stream(machine: Machine) -> bool:
    """Whether weights come straight from where they are at home, and the runtime leaves out what is not read."""
    return machine.tier[machine.units[0].tier].kind is TierKind.DRAM and len(machine.tiers) == 2


def with_scratch(joint: Graph, own: frozenset[str], block_nbytes: int) -> Graph:
    """`joint` for a token's pass: storages of `own`, weights that only the prompt reads, are results of the part before
    the one that reads them, in places of whole blocks. Their parts take no time. What several parts read stays."""
    readers: dict[str, int] = {}
    for op in joint.operators:
        for storage in joint.reads(op):
            readers[storage] = readers.get(storage, 0) + 1
    scratch = {s for s in own if readers.get(s) == 1}
    read = [tuple(t for t in op.inputs if joint.tensor[t].storage in scratch) for op in joint.operators]
    operators: list[Operator] = []
    for number, op in enumerate(joint.operators):
        made = (*(read[0] if number == 0 else ()), *(read[number + 1] if number + 1 < len(read) else ()))
        inputs = tuple(t for t in op.inputs if number or t not in read[0])
        taken_ns = op.measured_ns if own.isdisjoint(joint.reads(op)) else 0
        operators.append(replace(op, inputs=inputs, outputs=(*op.outputs, *made), measured_ns=taken_ns))
    return replace(
        joint,
        storages=tuple(_scratch(s, block_nbytes) if s.id in scratch else s for s in joint.storages),
        operators=tuple(operators),
    )


def _scratch(storage: Storage, block_nbytes: int) -> Storage:
    alignment = max(storage.alignment, block_nbytes)
    return Storage(storage.id, round_up(storage.nbytes, block_nbytes), StorageKind.ACTIVATION, alignment)


def with_loads(plan: Plan, scratched: Graph, joint: Graph, machine: Machine, *, time_limit_s: float) -> Plan | None:
    """The plan of `joint` that `plan`, made for `scratched`, is when scratch is loaded; simulated, judged by the bound
    of `joint`, and checked. None where it stores scratch, or where loads would wait for one another."""
    fast, home = machine.units[0].tier, plan.home_tier
    scratch = {s.id for s in scratched.storages if s.homed != joint.storage[s.id].homed}
    if any(t.storage in scratch for t in plan.transfers):
        return None
    kept, arena_nbytes = _kept(plan, scratch, joint, machine)
    stays = tuple(_own_bytes(r, joint) if r.storage in scratch else r for r in plan.residencies)
    uses = {s: number for number, step in enumerate(plan.steps) for s in joint.reads(joint.operator[step.op])}
    loads = [
        Transfer(r.storage, r.lo, r.hi, home, fast, r.start, uses[r.storage])
        for r in stays
        if r.storage in scratch and r.storage not in kept
    ]
    stays = (*(r for r in stays if r.storage not in kept), *kept.values())
    transfers = _merged(plan.transfers, loads)
    unit = {u.name: u for u in machine.units}
    steps = tuple(replace(s, duration_ns=duration_ns(joint.operator[s.op], unit[s.unit])) for s in plan.steps)
    moved: dict[str, int] = {}
    for t in transfers:
        moved[t.link] = moved.get(t.link, 0) + t.nbytes
    arena = {**plan.arena_nbytes, fast: arena_nbytes}
    found = replace(plan, graph=digest(joint), steps=steps, residencies=stays, transfers=transfers, arena_nbytes=arena)
    peak = {tier: nbytes + plan.workspace_nbytes.get(tier, 0) for tier, nbytes in arena.items()}
    found = replace(found, certificate=replace(plan.certificate, bound_s=0.0, peak_nbytes=peak, moved_nbytes=moved))
    return _certified(found, joint, machine, time_limit_s)


def _kept(plan: Plan, scratch: set[str], joint: Graph, machine: Machine) -> tuple[dict[str, Residency], int]:
    """What stays in memory in the room that `plan` has left, and where that ends."""
    fast = machine.units[0].tier
    home = machine.tier[plan.home_tier]
    end = plan.arena_nbytes.get(fast, 0)
    room = plan.capacity_nbytes[fast] - plan.workspace_nbytes.get(fast, 0)
    found: dict[str, Residency] = {}
    for storage in (s for s in joint.storages if s.id in scratch):
        begin = round_up(end, max(storage.alignment, home.alignment, machine.tier[fast].alignment))
        if begin + round_up(storage.nbytes, home.alignment) <= room:
            found[storage.id] = Residency(storage.id, fast, 0, storage.nbytes, begin, 0, len(plan.steps))
            end = begin + round_up(storage.nbytes, home.alignment)
    return found, end


def _own_bytes(r: Residency, joint: Graph) -> Residency:
    """Without what filled up its last block."""
    return replace(r, hi=min(r.hi, joint.storage[r.storage].nbytes))


def _merged(transfers: tuple[Transfer, ...], loads: list[Transfer]) -> tuple[Transfer, ...]:
    """`loads` among `transfers`, each before the first that may begin only after it."""
    found = list(transfers)
    for load in sorted(loads, key=lambda t: t.after):
        at = next((k for k, t in enumerate(found) if t.after > load.after), len(found))
        found.insert(at, load)
    return tuple(found)


def _certified(plan: Plan, joint: Graph, machine: Machine, time_limit_s: float) -> Plan | None:
    try:
        timeline = simulate(plan, joint, machine)
    except DeadlockError:
        return None
    certificate = replace(timed(plan.certificate, timeline), bound_s=0.0, bound_kind="", status="feasible")
    plan = replace(plan, certificate=certificate)
    if check(plan, joint, machine):
        return None
    instance = make_instance(joint, machine, mode=plan.mode)
    bound = find_bound(instance, time_limit_s=time_limit_s)
    return judge(plan, instance, bound, time_limit_s=time_limit_s)[0]
