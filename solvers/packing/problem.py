"""Offsets for bodies that live for a while: the problem and its solution, in integers. Dynamic storage allocation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """Relative addresses [`lo`, `hi`) of a body, occupied at times [`start`, `end`).

    Addresses in bytes, times in any integer unit. A box without bytes or without time is allowed and occupies nothing.
    """

    start: int
    end: int
    lo: int
    hi: int

    @property
    def empty(self) -> bool:
        """Whether it occupies nothing."""
        return self.start == self.end or self.lo == self.hi


@dataclass(frozen=True, slots=True)
class Body:
    """Boxes that share one base offset: box [lo, hi) lies at addresses [base + lo, base + hi).

    The base is a multiple of `alignment` and 0 or above; `fixed` prescribes it. Boxes of one body never conflict with
    one another: they are the same bytes.
    """

    boxes: tuple[Box, ...]
    alignment: int = 1
    fixed: int | None = None


@dataclass(frozen=True, slots=True)
class PackingProblem:
    """Place `bodies` so that no two occupy the same address at the same time, with the least peak.

    With a `capacity` (bytes) any packing that stays within it is as good as another. `ids` name the bodies in
    messages; without them a body is called by its index.

    Raises:
        ValueError: a box with negative length, time or address, an alignment below 1, ids that do not match.
    """

    bodies: tuple[Body, ...]
    capacity: int | None = None
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ids and len(self.ids) != len(self.bodies):
            raise ValueError(f"{len(self.ids)} ids for {len(self.bodies)} bodies; give one each, or none")
        seen: set[str] = set()
        for name in self.ids:
            if name in seen:
                raise ValueError(f"id {name!r} names two bodies; ids must differ")
            seen.add(name)
        for index, body in enumerate(self.bodies):
            if body.alignment < 1:
                raise ValueError(f"body {self.name(index)}: alignment {body.alignment} is below 1")
            if body.fixed is not None and body.fixed < 0:
                raise ValueError(f"body {self.name(index)}: fixed offset {body.fixed} is below 0")
            for box in body.boxes:
                if box.end < box.start:
                    raise ValueError(f"body {self.name(index)}: ends at {box.end}, before its start {box.start}")
                if not 0 <= box.lo <= box.hi:
                    raise ValueError(f"body {self.name(index)}: addresses [{box.lo}, {box.hi}) are not 0 <= lo <= hi")

    def name(self, index: int) -> str:
        """Id of a body for messages."""
        return repr(self.ids[index]) if self.ids else str(index)


@dataclass(frozen=True, slots=True)
class Packing:
    """The base `offsets` of the bodies in their order, and the `peak`: the highest address in use (bytes)."""

    offsets: tuple[int, ...]
    peak: int


def peak_of(problem: PackingProblem, offsets: tuple[int, ...]) -> int:
    """Highest address that any box reaches under these base offsets."""
    return max(
        (offsets[i] + b.hi for i, body in enumerate(problem.bodies) for b in body.boxes if not b.empty), default=0
    )
