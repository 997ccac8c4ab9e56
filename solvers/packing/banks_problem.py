"""Several memories: the problem, its solution and their checker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .disjoint import verify_packing
from .problem import Packing, PackingProblem


@dataclass(frozen=True, slots=True)
class BanksProblem:
    """`bodies.bodies[i]` goes to one of the banks `allowed[i]` (empty `allowed`: any). A capacity of None is no limit.

    Fixed offsets hold in whichever bank the body goes to.

    Raises:
        ValueError: no bank, a negative capacity, a capacity for all at once, a body without a bank, an unknown bank.
    """

    bodies: PackingProblem
    capacities: tuple[int | None, ...]
    allowed: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.capacities:
            raise ValueError("there are no banks; give at least one capacity (None for no limit)")
        if self.bodies.capacity is not None:
            raise ValueError(f"the bodies have a capacity of {self.bodies.capacity} of their own; give it to the banks")
        if any(capacity is not None and capacity < 0 for capacity in self.capacities):
            raise ValueError(f"capacities {self.capacities} are not all 0 or more")
        if self.allowed and len(self.allowed) != len(self.bodies.bodies):
            raise ValueError(
                f"{len(self.allowed)} choices of banks for {len(self.bodies.bodies)} bodies; give one each"
            )
        for i, banks in enumerate(self.allowed):
            if not banks or not all(0 <= b < len(self.capacities) for b in banks):
                raise ValueError(
                    f"body {self.bodies.name(i)} may go to banks {banks}, there are {len(self.capacities)}, from 0"
                )

    def choices(self, body: int) -> tuple[int, ...]:
        """The banks that a body may go to."""
        return self.allowed[body] if self.allowed else tuple(range(len(self.capacities)))


@dataclass(frozen=True, slots=True)
class BanksPacking:
    """For each body its bank and its offset there; for each bank its peak."""

    banks: tuple[int, ...]
    offsets: tuple[int, ...]
    peaks: tuple[int, ...]


def check_banks(problem: BanksProblem, packing: BanksPacking) -> tuple[str, ...]:
    """Every violation; empty when the packing is right. Each bank is checked by itself (`verify_packing`)."""
    found: list[str] = []
    for i, bank in enumerate(packing.banks):
        if bank not in problem.choices(i):
            found.append(f"body {problem.bodies.name(i)} is in bank {bank}, it may go to {problem.choices(i)}")
    for bank, peak in enumerate(packing.peaks):
        members = [i for i, b in enumerate(packing.banks) if b == bank]
        part = members_of(problem, members, problem.capacities[bank])
        wrong = verify_packing(part, Packing(tuple(packing.offsets[i] for i in members), peak))
        found += [f"bank {bank}: {line}" for line in wrong]
    return tuple(found)


def members_of(problem: BanksProblem, members: Sequence[int], capacity: int | None) -> PackingProblem:
    """The problem of one bank with these bodies."""
    ids = tuple(problem.bodies.ids[i] for i in members) if problem.bodies.ids else ()
    return PackingProblem(tuple(problem.bodies.bodies[i] for i in members), capacity, ids)
