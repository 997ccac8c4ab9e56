"""What every place holds, and when: the part of the checker that follows the bytes of one storage.

Content is told by versions. The writes of a storage are counted; what a step reads is the content after the last write
before it. A transfer carries the content of its source, a residency holds what was last written or moved into it, and
the home tier holds the first content of a homed storage without any residency saying so. Homed storages go on from
pass to pass, the others begin anew in each.

A storage that is made by one operator is made anew each time a plan calls it (recomputation). One that several
operators write, or that lasts from pass to pass, is changed by each of them: there every writer must find what the one
before it left, and none may be called twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from .chains import covers, holds, occurrence, permanent
from .graph import Graph, Storage
from .plan import Plan, Residency, Transfer
from .uses import Uses, boundary_storages


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong: a short kind for programs, a sentence with the numbers for people."""

    kind: str
    message: str


@dataclass(slots=True)
class _Bytes:
    """Bytes [lo, hi) of a storage, which every residency and transfer listed covers wholly.

    `made_anew`: each write makes all of the content. Instants are counted on from pass 0; those below 0 lie before it.
    """

    plan: Plan
    storage: Storage
    uses: Uses
    lo: int
    hi: int
    stays: list[Residency]
    moves: list[Transfer]
    unit_tier: dict[str, str]
    is_input: bool
    made_anew: bool
    visiting: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    total: int = field(init=False)
    into: dict[str, list[tuple[int, Transfer]]] = field(default_factory=dict[str, "list[tuple[int, Transfer]]"])

    def __post_init__(self) -> None:
        """`total` steps; the transfers by target, with their places in `moves`."""
        self.total = len(self.plan.steps)
        for index, t in enumerate(self.moves):
            self.into.setdefault(t.target, []).append((index, t))

    def wanted(self, step: int) -> int | None:
        """The version that `step` finds, counted from pass 0: None where nothing has been written yet."""
        before = bisect_left(self.uses.writes, step)
        if self.storage.homed:
            return before
        return before or (0 if self.is_input else None)

    def held(self, tier: str, instant: int, by: Transfer | None = None) -> int | None:
        """The version in `tier` at `instant`, None where it holds nothing; as a step finds it, or transfer `by`.

        A transfer may count on others that begin before it, as it waits for them (`chains`); a step only on those that
        must be complete.
        """
        latest: tuple[int, int, int | None, Transfer | None] | None = None
        for since, upto in self._turns(tier, instant):
            for event in self._events(tier, since, upto, by):
                if latest is None or event[:2] > latest[:2]:
                    latest = event
            if latest is None and since <= -self.total:  # it has been there for ever
                latest = (since, 0, 0 if self.storage.homed and not self.uses.writes else None, None)
        if latest is None:
            return None
        _, _, number, mover = latest
        return number if mover is None or number is None else self.carried(mover, number)

    def _turns(self, tier: str, instant: int) -> Iterator[tuple[int, int]]:
        """From when what `tier` holds at `instant` has been there."""
        if self.storage.homed and tier == self.plan.home_tier:
            yield instant - max(self.total, instant + self.total), instant
        for r in self.stays:
            if r.tier == tier:
                start = occurrence(r, instant, self.total, homed=self.storage.homed)
                if start is not None:
                    for_ever = permanent(r, self.total) and self.storage.homed
                    yield (-self.total if for_ever else start), instant

    def _events(
        self, tier: str, since: int, upto: int, by: Transfer | None
    ) -> Iterator[tuple[int, int, int | None, Transfer | None]]:
        """(instant, rank, version, None) of what was written into `tier` from instant `since` until `upto`, and
        (instant, rank, turn, transfer) of what was moved there.

        Of events at one instant a transfer in (rank 1) follows a write (rank 0): it could not carry less.
        """
        total, writes = self.total, self.uses.writes
        if self.is_input and since <= 0 <= upto and tier == self._unit_tier_of(0):
            yield 0, 0, 0, None
        own = self.moves.index(by) if by else -1
        for turn in (-1, 0, 1) if self.storage.homed else (0,):
            for number, w in enumerate(writes):
                when = w + 1 + turn * total
                if since <= when - 1 and when <= upto and self._unit_tier_of(w) == tier:
                    yield when, 0, number + 1 + turn * len(writes), None
            for index, t in self.into.get(tier, ()):
                after, before = t.after + turn * total, t.before + turn * total
                when = after if by else before
                if since <= after and (when < upto or (when == upto and (not by or index < own))):
                    yield when, 1, turn, t

    def carried(self, t: Transfer, turn: int) -> int | None:
        """The version that a transfer moves, in the pass `turn` after pass 0."""
        key = (id(t), turn)
        if key in self.visiting:  # transfers that fill one another's sources
            return None
        self.visiting.add(key)
        try:
            after = t.after + turn * self.total
            if self.storage.homed:  # as in the pass before, with the writes of a pass more
                shift = max(0, -(after // self.total))
                version = self.held(t.origin, after + shift * self.total, t)
                return None if version is None else version - shift * len(self.uses.writes)
            return self.held(t.origin, after, t)
        finally:
            self.visiting.discard(key)

    def _unit_tier_of(self, step: int) -> str:
        return self.unit_tier[self.plan.steps[step].unit]


def check_contents(
    plan: Plan, graph: Graph, storage: Storage, uses: Uses, moves: list[Transfer], unit_tier: dict[str, str]
) -> Iterator[Violation]:
    """Every step finds the content it needs, every transfer has a source with content, a place, and leaves it whole."""
    stays = plan.residencies_of.get(storage.id, ())
    makers = [plan.steps[w].op for w in uses.writes]
    is_input = storage.id in boundary_storages(graph)[0]
    made_anew = len(set(makers)) == 1 and not storage.homed and not is_input
    if not made_anew and len(set(makers)) < len(makers):
        twice = next(op for i, op in enumerate(makers) if op in makers[:i])
        yield Violation("recompute", f"'{twice}' is called twice, but '{storage.id}' cannot be made anew by it")
    if _is_plain(plan, graph, storage, uses, stays, moves, unit_tier):
        return
    yield from _check_windows(plan, storage, uses, stays, moves, unit_tier)
    needed = _needed(plan, graph, storage, uses, made_anew=made_anew)
    ranges = [(0, storage.nbytes), *((r.lo, r.hi) for r in stays), *((t.lo, t.hi) for t in moves)]
    cuts = sorted({x for ends in ranges for x in ends})
    said: set[tuple[str, int]] = set()
    for lo, hi in pairwise(cuts):
        part = _Bytes(
            plan,
            storage,
            uses,
            lo,
            hi,
            [r for r in stays if r.lo <= lo and hi <= r.hi],
            [t for t in moves if t.lo <= lo and hi <= t.hi],
            unit_tier,
            is_input,
            made_anew,
        )
        for violation, where in _check_part(part, needed):
            if (violation.kind, where) not in said:
                said.add((violation.kind, where))
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


def _needed(plan: Plan, graph: Graph, storage: Storage, uses: Uses, *, made_anew: bool) -> list[tuple[int, bool]]:
    """(step, at its end) wherever the content matters: where it is read, and where a write must find the one before."""
    matters = set(uses.reads)
    if not made_anew:
        matters.update(uses.writes if storage.homed else uses.writes[1:])
    steps = [(t, False) for t in uses.touches if t in matters]
    if storage.id in boundary_storages(graph)[1] and plan.steps:
        steps.append((len(plan.steps) - 1, True))
    return steps


def _check_part(part: _Bytes, needed: list[tuple[int, bool]]) -> Iterator[tuple[Violation, int]]:
    name, total = part.storage.id, part.total
    for step, at_end in needed:
        instant = step + 1 if at_end else step
        tier = part.unit_tier[part.plan.steps[step].unit]
        if not any(r.tier == tier and covers(r, step, total) for r in part.stays):
            continue  # absent, which is told elsewhere
        wanted, held = part.wanted(instant), part.held(tier, instant)
        if wanted is None and step in part.uses.writes:
            continue
        if wanted is None or held != wanted:
            what = "which nothing fills in time" if held is None else f"whose content is {_age(held, wanted)}"
            yield Violation("unfilled", f"step {step} reads '{name}' [{part.lo}, {part.hi}), {what}"), step
    for number, t in enumerate(part.moves):
        carried, wanted = part.carried(t, 0), part.wanted(t.after)
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


def _check_windows(
    plan: Plan,
    storage: Storage,
    uses: Uses,
    stays: tuple[Residency, ...],
    moves: list[Transfer],
    unit_tier: dict[str, str],
) -> Iterator[Violation]:
    """While a transfer may run, its source and its place are there, and no step writes either."""
    total = len(plan.steps)
    for t in moves:
        window = f"transfer of '{storage.id}' in [{t.after}, {t.before})"
        for tier, kind, text in (
            (t.target, "no-place", f"has no place in '{t.target}'"),
            (t.origin, "no-source", f"outlives it in '{t.origin}'"),
        ):
            at_home = storage.homed and tier == plan.home_tier
            if not at_home and not any(r.tier == tier and holds(r, t, total, homed=storage.homed) for r in stays):
                yield Violation(kind, f"{window} {text}")
        if t.before > total and not storage.homed:
            yield Violation("interval", f"{window} of {total} reaches into the next pass, which begins without it")
        for w in uses.writes:
            writer = unit_tier[plan.steps[w].unit]
            during = t.after <= w < t.before or t.after <= w + total < t.before
            if during and writer in (t.origin, t.target):
                yield Violation("early", f"{window} runs while step {w} writes it in '{writer}'")
    if not storage.homed:
        for r in stays:
            if r.end > total:
                text = f"in steps [{r.start}, {r.end}) of {total}, beyond its pass"
                yield Violation("interval", f"'{storage.id}' is resident in '{r.tier}' {text}")
