"""Stays to addresses: where each stay lies.

Offsets and prefetch are decided together, because an address that is free early is what lets a load start early. What
never leaves lies at the bottom, densely. For the rest there are three ways:

- by timetable: the links' timetable tells when each load should begin and each store is done; under these intervals
  everything is packed into the room at once, and then grows into what is free around it;
- at once, where the other way takes too long: by a timetable of the loads alone; stores then last as long as what lies
  beside them lets them, which is found by one sweep over the pass (`solvers.sweeps`);
- by turns: activations are packed as low as they go, which leaves the loads one wide region, and loads find their
  addresses one after another, where they can start early enough (`spread`). Where one finds none, everything is packed
  under the shortest intervals that are possible at all (loads that block, stores that block): that answers whether the
  decisions fit, and loads move on from there.

Ranges of one item that some step uses together are one body: they keep their distance wherever it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from ..solvers.packing.problem import Body, Box, PackingProblem
from ..solvers.packing.solve import pack
from ..solvers.result import Status
from .instance import Instance
from .items import round_up
from .spread import finish, spread, stretch
from .stays import Decisions, Placed, Stay, bodies_of
from .timetable import begin_loads, is_reserved, pending_stores, reserve, timetable

PENDING_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.4)
"""Shares of the room up to which what waits to be stored may fill it, tried in turn until the loads find room, too."""

DOUBTFUL = 2
"""After so many shares in vain: whether the loads find room at all, where stores block what comes after them."""

SOON_SHARE = 0.2
"""The part of the time for offsets in which what is made is packed as low as it goes."""

MANY_BODIES, SHARE_OF_MANY = 4_000, 0.85
"""Above so many an attempt takes a second and more, and the most never packs: one share has to do."""

MEETINGS = 30_000_000
"""Loads, times what lives beside one in the mean, above which they are not placed in turn: about half a minute."""

SHARE_AT_ONCE = 0.7
"""The same where everything is packed together: pending stores that make the load level leave first fit no way out. In
a training step of 10,000 operators it reaches 0.5% above the load with this share, and 6% with 0.85."""


def place(
    instance: Instance, stays: Sequence[Stay], decisions: Decisions, *, packing_time_s: float, seed: int = 0
) -> list[Placed] | None:
    """Addresses and intervals for `stays` inside the instance's capacity, or None where none were found in time."""
    bodies = bodies_of(instance, stays)
    bottom, placed = _place_always(instance, stays, bodies)
    if bottom > instance.capacity_nbytes:
        return None
    moving = [[_piece(stays[s]) for s in body] for body in bodies if not all(stays[s].always for s in body)]
    room = _Room(instance, bottom, packing_time_s, seed)
    way = _by_timetable if decisions.timed else _at_once if too_many(instance, stays, decisions) else _by_turns
    found = way(room, moving, decisions)
    return None if found is None else placed + found


class _Room:
    """The addresses from `bottom` up to the capacity, and how long to look for offsets in it."""

    def __init__(self, instance: Instance, bottom: int, time_s: float, seed: int) -> None:
        self.instance, self.bottom, self.time_s, self.seed = instance, bottom, time_s, seed
        self.nbytes = instance.capacity_nbytes - bottom
        self.earnest = 1.0

    def pack(
        self,
        bodies: Sequence[Sequence[Placed]],
        *,
        room: int | None,
        share: float = 1.0,
        fixed: Mapping[int, int] | None = None,
    ) -> bool:
        """Give every body an address, within `room` bytes or (None) as low as can be found; False: none were found.

        `fixed`: base addresses of some bodies, by index.
        """
        wanted = tuple(_body(self.instance, b, self.bottom, (fixed or {}).get(i)) for i, b in enumerate(bodies))
        offsets = _solve(PackingProblem(wanted, capacity=room), self.time_s * share, self.seed)
        if offsets is None:
            return False
        for body, offset in zip(bodies, offsets, strict=True):
            for piece in body:
                piece.offset = offset + self.bottom + piece.lo
        return True

    def hold(self, bodies: Sequence[Sequence[Placed]]) -> bool:
        """Give every body an address inside the room, as low as is found soon. What does not fit then is searched for
        in earnest: mostly that is what is live at a tight step, which no first fit packs and exact search does. Each
        such search has half of the time that the one before it had."""
        if not self.pack(bodies, room=None, share=SOON_SHARE):
            return False
        highest = max((p.offset + p.nbytes for body in bodies for p in body), default=0)
        if highest <= self.instance.capacity_nbytes:
            return True
        share, self.earnest = self.earnest, self.earnest / 2
        return self.pack(bodies, room=self.nbytes, share=share)


def _by_timetable(room: _Room, bodies: list[list[Placed]], decisions: Decisions) -> list[Placed] | None:
    pieces = _all_of(bodies)
    if decisions.prefetch:
        timetable(room.instance, pieces, decisions, room.nbytes)
    if not room.pack(bodies, room=room.nbytes):
        return None
    if decisions.prefetch:
        stretch(room.instance, pieces, room.bottom)
    return pieces


def too_many(instance: Instance, stays: Sequence[Stay], decisions: Decisions) -> bool:
    """Whether to place loads in turn, each beside all that lives then, would take minutes."""
    loads = sum(s.loads for s in stays)
    lasting = sum(s.last + 1 - s.first for s in stays if not s.always)
    return decisions.prefetch and loads * lasting > MEETINGS * instance.steps


def _at_once(room: _Room, bodies: list[list[Placed]], decisions: Decisions) -> list[Placed] | None:
    """By a timetable of the loads alone, then what is stored keeps its place as long as others leave it: in n log n.
    Where that does not pack, with the shortest intervals."""
    for share in (SHARE_AT_ONCE, 0.0):
        pieces = _all_of(bodies)
        _shorten(pieces)
        if share:
            begin_loads(room.instance, pieces, decisions)
            pending_stores(room.instance, pieces, decisions, int(share * room.nbytes))
            begin_loads(room.instance, pieces, decisions)
        if room.pack(bodies, room=room.nbytes):
            finish(room.instance, pieces, room.bottom, decisions)
            return pieces
    return None


def _by_turns(room: _Room, bodies: list[list[Placed]], decisions: Decisions) -> list[Placed] | None:
    held = [body for body in bodies if len(body) > 1 or not body[0].stay.loads or is_reserved(body[0], decisions)]
    fixed: dict[int, int] = {}

    def tried(share: float) -> list[Placed] | None:
        pieces = _all_of(bodies)
        _shorten(pieces)
        if share:
            pending_stores(room.instance, pieces, decisions, int(share * room.nbytes))
            reserve(room.instance, pieces, decisions)
        if not room.hold(held):
            return None
        fixed.update((id(body), body[0].offset - body[0].lo) for body in held)
        landed = decisions.prefetch and spread(room.instance, pieces, room.bottom, decisions)
        return [replace(p) for p in pieces] if landed else None  # the next attempt has the same pieces

    shares = _shares(bodies, decisions)
    found = tried(shares[0]) if decisions.reserved else _with_most_pending(tried, shares)
    if found is not None or decisions.reserved:
        return found
    pieces = _all_of(bodies)
    _shorten(pieces)
    around = {i: fixed[id(body)] for i, body in enumerate(bodies) if id(body) in fixed}
    packed = bool(around) and room.pack(bodies, room=room.nbytes, share=0.5, fixed=around)
    if not packed and not room.pack(bodies, room=room.nbytes):
        return None
    if decisions.prefetch:
        spread(room.instance, pieces, room.bottom, decisions)
    return pieces


def _with_most_pending(tried: Callable[[float], list[Placed] | None], shares: Sequence[float]) -> list[Placed] | None:
    """What is found with the first of `shares` that gives anything, or with none of them; where that gives nothing, no
    share does."""
    blocking: list[Placed] | None = None
    for number, share in enumerate(shares):
        if number == DOUBTFUL:
            blocking = tried(0.0)
            if blocking is None:
                return None
        found = tried(share)
        if found is not None:
            return found
    return blocking


def _shares(bodies: Sequence[Sequence[Placed]], decisions: Decisions) -> tuple[float, ...]:
    """The `PENDING_SHARES` that are worth a try."""
    if not decisions.prefetch:
        return (0.0,)
    if not decisions.reserved and not any(p.stay.stores for body in bodies for p in body):
        return (0.0,)
    return PENDING_SHARES if len(bodies) <= MANY_BODIES else (SHARE_OF_MANY,)


def _all_of(bodies: Sequence[Sequence[Placed]]) -> list[Placed]:
    """The pieces as the bodies have them: those that came in parts at another attempt are whole again."""
    return [p for body in bodies for p in body]


def _shorten(pieces: Sequence[Placed]) -> None:
    """Give every piece the shortest interval, and no address."""
    for p in pieces:
        p.offset, p.start, p.end = -1, p.stay.first, p.stay.last + 1


def _place_always(
    instance: Instance, stays: Sequence[Stay], bodies: Sequence[Sequence[int]]
) -> tuple[int, list[Placed]]:
    """What never leaves, from address 0 up."""
    placed: list[Placed] = []
    address = 0
    for body in bodies:
        if not all(stays[s].always for s in body):
            continue
        base = round_up(address, instance.alignment_of(stays[body[0]].item))
        placed += [Placed(stays[s], base + stays[s].lo, 0, instance.steps) for s in body]
        address = base + max(stays[s].hi for s in body)
    return round_up(address, instance.block_nbytes) if placed else 0, placed


def _piece(stay: Stay) -> Placed:
    """A stay with the shortest interval; offset -1 until it is known."""
    return Placed(stay, -1, stay.first, stay.last + 1)


@lru_cache(maxsize=8)
def _solve(problem: PackingProblem, time_limit_s: float, seed: int) -> tuple[int, ...] | None:
    """`pack`, remembered: candidates that differ in their loads alone share the packing of the activations."""
    result = pack(problem, time_limit_s=time_limit_s, seed=seed)
    if result.status not in (Status.OPTIMAL, Status.FEASIBLE) or result.solution is None:
        return None
    return result.solution.offsets


def _body(instance: Instance, pieces: Sequence[Placed], bottom: int, fixed: int | None) -> Body:
    steps = instance.steps
    boxes: list[Box] = []
    for p in pieces:
        boxes.append(Box(p.start % steps, min(p.start % steps + p.end - p.start, steps), p.lo, p.lo + p.nbytes))
        if p.start % steps + p.end - p.start > steps:
            boxes.append(Box(0, p.start % steps + p.end - p.start - steps, p.lo, p.lo + p.nbytes))
    at = None if fixed is None else fixed - bottom
    return Body(tuple(boxes), alignment=instance.alignment_of(pieces[0].stay.item), fixed=at)
