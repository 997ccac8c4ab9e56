"""Stays to addresses: where each stay lies.

Offsets and prefetch are decided together, because an address that is free early is what lets a load start early:

1. what never leaves lies at the bottom, densely;
2. activations are packed as low above it as they go, which leaves the loads one wide region;
3. loads find their addresses one after another, where they can start early enough (see `spread`);
4. where one finds none, everything is packed together under the shortest intervals that are possible at all (loads that
   block, stores that block): that answers whether the decisions fit, and loads move on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..solvers.packing.problem import Body, Box, PackingProblem
from ..solvers.packing.solve import pack
from ..solvers.result import Status
from .instance import Instance, round_up
from .spread import spread
from .stays import Decisions, Placed, Stay


def place(
    instance: Instance, stays: Sequence[Stay], decisions: Decisions, *, packing_time_s: float, seed: int = 0
) -> list[Placed] | None:
    """Addresses and intervals for `stays` inside the instance's capacity, or None where none were found in time."""
    bottom, placed = _place_always(instance, stays, decisions)
    dynamic = [s for s in stays if not s.always]
    if bottom > instance.capacity_nbytes:
        return None
    pieces = [_piece(instance, s, decisions, placed) for s in dynamic]
    made = [i for i, p in enumerate(pieces) if not p.stay.loads]
    low = _pack(instance, [pieces[i] for i in made], bottom, None, packing_time_s / 5, seed)
    fixed = dict(zip(made, low or (), strict=False))
    if low is not None and decisions.prefetch:
        for i, offset in fixed.items():
            pieces[i].offset = offset
        if _inside(instance, pieces) and spread(instance, pieces, bottom, decisions):
            return placed + pieces
        pieces = [_piece(instance, s, decisions, placed) for s in dynamic]
    offsets = _pack_all(instance, pieces, fixed, bottom, packing_time_s, seed)
    if offsets is None:
        return None
    for piece, offset in zip(pieces, offsets, strict=True):
        piece.offset = offset
    if decisions.prefetch:
        spread(instance, pieces, bottom, decisions)
    return placed + pieces


def _inside(instance: Instance, pieces: Sequence[Placed]) -> bool:
    """Whether what has an address ends within the capacity, and no two of them that have fixed ones collide."""
    known = [p for p in pieces if p.offset >= 0]
    if any(p.offset + p.nbytes > instance.capacity_nbytes for p in known):
        return False
    partly = [p for p in known if p.lo]
    return not any(_collide(instance.steps, p, q) for p in partly for q in known if p is not q)


def _collide(steps: int, p: Placed, q: Placed) -> bool:
    together = (p.start - q.start) % steps < q.end - q.start or (q.start - p.start) % steps < p.end - p.start
    return together and p.offset < q.offset + q.nbytes and q.offset < p.offset + p.nbytes


def _place_always(instance: Instance, stays: Sequence[Stay], decisions: Decisions) -> tuple[int, list[Placed]]:
    """What never leaves, and the parts that never leave of what does, from address 0 up; partly kept items last, so
    that their other bytes can follow theirs."""
    placed: list[Placed] = []
    address = 0
    for stay in (s for s in stays if s.always):
        nbytes = instance.items[stay.item].nbytes
        placed.append(Placed(stay, 0, nbytes, address, 0, instance.steps))
        address += nbytes
    for item, nbytes in decisions.kept_nbytes.items():
        address = round_up(address, instance.home.alignment)
        placed.append(Placed(Stay(item, 0, instance.steps - 1, always=True), 0, nbytes, address, 0, instance.steps))
        address += nbytes
    return address, placed


def _piece(instance: Instance, stay: Stay, decisions: Decisions, kept: list[Placed]) -> Placed:
    """The part of a stay that comes and goes, with the shortest interval; offset -1 until it is known."""
    lo = decisions.kept_nbytes.get(stay.item, 0)
    nbytes = instance.items[stay.item].nbytes - lo
    offset = next((p.offset + lo for p in kept if lo and p.stay.item == stay.item), -1)
    return Placed(stay, lo, nbytes, offset, stay.first, stay.last + 1)


def _alignment(instance: Instance, piece: Placed) -> int:
    """Weights stream straight from the blocks of their tier; what is spilled may lie anywhere, as its working sets
    leave no room for padding."""
    item = instance.items[piece.stay.item]
    own = max(instance.graph.storage[item.storage].alignment, instance.fast.alignment)
    return max(own, instance.home.alignment) if item.homed else own


def _pack_all(
    instance: Instance, pieces: list[Placed], fixed: dict[int, int], bottom: int, time_limit_s: float, seed: int
) -> list[int] | None:
    """Offsets under the shortest intervals: around the activations where they lie already, else everything anew."""
    room = instance.capacity_nbytes - bottom
    if fixed:
        around = _pack(instance, pieces, bottom, room, time_limit_s / 2, seed, fixed)
        if around is not None:
            return around
    return _pack(instance, pieces, bottom, room, time_limit_s, seed)


def _pack(
    instance: Instance,
    pieces: Sequence[Placed],
    bottom: int,
    room: int | None,
    time_limit_s: float,
    seed: int,
    fixed: dict[int, int] | None = None,
) -> list[int] | None:
    """Offsets of `pieces` above `bottom`, within `room` bytes or (None) as low as can be found; None: none found."""
    bodies = tuple(_body(instance, p, bottom, (fixed or {}).get(i)) for i, p in enumerate(pieces))
    return _solve(PackingProblem(bodies, capacity=room), bottom, time_limit_s, seed)


@lru_cache(maxsize=8)
def _solve(problem: PackingProblem, bottom: int, time_limit_s: float, seed: int) -> list[int] | None:
    """`pack`, remembered: candidates that differ in their loads alone share the packing of the activations."""
    result = pack(problem, time_limit_s=time_limit_s, seed=seed)
    if result.status not in (Status.OPTIMAL, Status.FEASIBLE) or result.solution is None:
        return None
    return [o + bottom for o in result.solution.offsets]


def _body(instance: Instance, piece: Placed, bottom: int, fixed: int | None) -> Body:
    at = fixed if fixed is not None else piece.offset if piece.offset >= 0 else None
    steps = instance.steps
    boxes = (Box(piece.start, min(piece.end, steps), 0, piece.nbytes),)
    if piece.end > steps:
        boxes += (Box(0, piece.end - steps, 0, piece.nbytes),)
    return Body(boxes, alignment=_alignment(instance, piece), fixed=None if at is None else at - bottom)
