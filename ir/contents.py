"""What every step and every transfer of one storage finds: the part of the checker that follows its bytes.

Content is told by versions (`follow`). A storage that is made by one operator is made anew each time a plan calls it
(recomputation). One that several operators write, or that lasts from pass to pass, is changed by each of them: there
every writer must find what the one before it left, and none may be called twice (`check_order`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from .chains import covers, occurrence, permanent
from .follow import Bytes, routes_of
from .graph import Graph, Storage
from .plan import Plan, Residency, Transfer
from .uses import Uses, boundary_storages
from .violation import Violation
from .windows import Lanes, check_races, check_windows


def check_contents(
    plan: Plan,
    graph: Graph,
    storage: Storage,
    uses: Uses,
    moves: list[Transfer],
    unit_tier: dict[str, str],
    lanes: Lanes,
) -> Iterator[Violation]:
    """Every step finds the content it needs, every transfer has a source with content, a place, and leaves it whole."""
    stays = plan.residencies_of.get(storage.id, ())
    is_input = storage.id in boundary_storages(graph)[0]
    makers = {plan.steps[w].op for w in uses.writes}
    made_anew = len(makers) == 1 and not storage.homed and not is_input
    if _is_plain(plan, graph, storage, uses, stays, moves, unit_tier):
        return
    yield from check_windows(plan, storage, uses, stays, moves, unit_tier)
    first_counts = storage.homed or is_input  # what there is before the first write of a pass
    changes = () if made_anew else uses.writes if first_counts else uses.writes[1:]
    needed = _needed(plan, graph, storage, uses, changes)
    ranges = [(0, storage.nbytes), *((r.lo, r.hi) for r in stays), *((t.lo, t.hi) for t in moves)]
    cuts = sorted({x for ends in ranges for x in ends})
    routes = routes_of(plan, storage, stays, moves)
    said: set[tuple[str, int]] = set()
    for lo, hi in pairwise(cuts):
        part = Bytes(
            plan,
            storage,
            uses,
            lo,
            hi,
            [r for r in stays if r.lo <= lo and hi <= r.hi],
            [r for r in routes if r.transfer.lo <= lo and hi <= r.transfer.hi],
            unit_tier,
            is_input,
            made_anew,
        )
        for violation, where in _check_part(part, needed):
            if (violation.kind, where) not in said:
                said.add((violation.kind, where))
                yield violation
        for violation in check_races(part, lanes) if moves else ():
            if (violation.message, 0) not in said:
                said.add((violation.message, 0))
                yield violation


def _is_plain(
    plan: Plan,
    graph: Graph,
    storage: Storage,
    uses: Uses,
    stays: tuple[Residency, ...],
    moves: list[Transfer],
    unit_tier: dict[str, str],
) -> bool:
    """Whether one look is enough, as for most storages of a large graph: all of it has one place, in which it is made
    and stays until its last use; or it is never written, and comes there from home before its first use or never
    leaves. What this does not cover is looked at by versions."""
    total = len(plan.steps)
    if len(stays) != 1 or len(moves) > 1:
        return False
    (r,) = stays
    if r.lo > 0 or r.hi < storage.nbytes or any(unit_tier[plan.steps[t].unit] != r.tier for t in uses.touches):
        return False
    inputs, outputs = boundary_storages(graph)
    if not storage.homed:
        begins = 0 if storage.id in inputs else min(uses.writes, default=-1)
        ends = total if storage.id in outputs else max(uses.touches, default=total) + 1
        first = min((0, *uses.touches) if storage.id in inputs else uses.touches, default=-1)
        return not moves and begins >= 0 and r.start <= begins == first and ends <= r.end <= total
    if uses.writes or storage.id in inputs or storage.id in outputs:
        return False
    if permanent(r, total):
        return not moves
    if len(moves) != 1 or moves[0].origin != plan.home_tier or moves[0].target != r.tier:
        return False
    (t,) = moves
    start = occurrence(r, t.after, total, homed=True)
    if start is None or t.lo > 0 or t.hi < storage.nbytes or t.before > start + r.end - r.start:
        return False
    # The turn of the residency that the transfer fills: every use of a pass lies in it, and not before it is full.
    return all(
        t.before <= use < start + r.end - r.start for use in (u + _turns_on(u, start, total) for u in uses.touches)
    )


def _turns_on(step: int, start: int, total: int) -> int:
    """Steps of whole passes by which `step` comes to lie in [start, start + total)."""
    return -((step - start) // total) * total


def _needed(plan: Plan, graph: Graph, storage: Storage, uses: Uses, changes: tuple[int, ...]) -> list[tuple[int, bool]]:
    """(step, at its end) wherever the content matters: where it is read, and at `changes`, where a write must find the
    one before."""
    matters = {*uses.reads, *changes}
    steps = [(t, False) for t in uses.touches if t in matters]
    if storage.id in boundary_storages(graph)[1] and plan.steps:
        steps.append((len(plan.steps) - 1, True))
    return steps


def _check_part(part: Bytes, needed: list[tuple[int, bool]]) -> Iterator[tuple[Violation, int]]:
    name, total = part.storage.id, part.total
    for step, at_end in needed:
        tier = part.unit_tier_of(0 if at_end else step)  # a pass gives its results where it takes what is given
        if not any(r.tier == tier and covers(r, step, total) for r in part.stays):
            continue  # absent, which is told elsewhere
        wanted = part.wanted(step + at_end)
        held = part.found(step, tier, at_end=at_end)
        if wanted is None and step in part.uses.writes:
            continue
        if wanted is None or held != wanted:
            what = "which nothing fills in time" if held is None else f"whose content is {_age(held, wanted)}"
            yield Violation("unfilled", f"step {step} reads '{name}' [{part.lo}, {part.hi}), {what}"), step
    for number, route in enumerate(part.routes):
        t = route.transfer
        carried, wanted = part.carried(number, 0), part.wanted(t.after)
        if wanted is None or carried is None:
            yield (
                Violation("no-source", f"'{name}' leaves '{t.origin}' at {t.after}, where nothing put it"),
                -number - 1,
            )
        elif carried != wanted:
            text = f"'{name}' leaves '{t.origin}' at {t.after}, where its content is {_age(carried, wanted)}"
            yield Violation("no-source", text), -number - 1


def _age(held: int, wanted: int | None) -> str:
    return "not yet made" if wanted is None else f"{wanted - held} writes old"
