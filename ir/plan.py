"""A plan: what lives where, from which step to which, and what moves when. Data only.

Time is counted in steps. Step t is the t-th operator call of a pass; the instant t is the moment before it starts,
when step t-1 is complete. Intervals of steps are half-open. A plan is periodic: passes follow one another, and
instant t + T (T the number of steps) is instant t of the next pass. So an interval may reach past T, and a weight
that is never dropped has a residency [0, T).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Step:
    """One operator call on `unit`, `duration_ns` as predicted."""

    op: str
    unit: str
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Residency:
    """Bytes [`lo`, `hi`) of `storage` occupy addresses [`offset`, `offset + hi - lo`) of `tier` in steps [start, end).

    0 <= start < T and start < end <= start + T. The address range belongs to the storage from instant `start`, when a
    transfer or an operator may begin to fill it, until instant `end`, when a transfer out of it must be complete.
    """

    storage: str
    tier: str
    lo: int
    hi: int
    offset: int
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Length of the range."""
        return self.hi - self.lo

    @property
    def base(self) -> int:
        """Address that byte 0 of the storage has, or would have; equal for all ranges of a storage used together."""
        return self.offset - self.lo


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes [`lo`, `hi`) of `storage` move from tier `origin` to tier `target`.

    The transfer may start at instant `after` and must be complete at instant `before`: step `before` waits for it.
    0 <= after < T and after <= before <= after + T. Transfers of one lane run in the order of the plan.
    """

    storage: str
    lo: int
    hi: int
    origin: str
    target: str
    after: int
    before: int

    @property
    def nbytes(self) -> int:
        """Length of the range."""
        return self.hi - self.lo

    @property
    def link(self) -> str:
        """'origin->target'."""
        return f"{self.origin}->{self.target}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is promised of a plan, and what is proven.

    `simulated_s` is the time of one pass in the steady state by the one simulator; `first_pass_s` that of the first
    one, the fill of the resident set included; `slowed_s`, a part of the former, is what computing takes longer because
    links move bytes meanwhile. No plan of the class that `bound_kind` names is faster than `bound_s`. `peak_nbytes` is
    per tier what the plan ever holds there; `moved_nbytes` per link what one pass moves.
    """

    status: str
    simulated_s: float
    first_pass_s: float
    bound_s: float
    bound_kind: str
    peak_nbytes: dict[str, int] = field(default_factory=dict[str, int])
    moved_nbytes: dict[str, int] = field(default_factory=dict[str, int])
    slowed_s: float = 0.0

    @property
    def gap(self) -> float:
        """How far above the bound the plan is: simulated / bound - 1."""
        return self.simulated_s / self.bound_s - 1.0 if self.bound_s > 0 else 0.0


@dataclass(frozen=True)
class Plan:
    """Order, residencies and transfers of one graph on one machine.

    `home_tier` holds a clean copy of every homed storage at all times, without residencies saying so; spilled storages
    have residencies there. `capacity_nbytes` is the budget per tier; `arena_nbytes` the addresses used of it;
    `workspace_nbytes` what the largest kernel allocates beside the arena, also inside the budget. `transfers` stand in
    the order in which their lanes run them.
    """

    graph: str
    machine: str
    strategy: str
    mode: str
    home_tier: str
    steps: tuple[Step, ...]
    residencies: tuple[Residency, ...]
    transfers: tuple[Transfer, ...]
    capacity_nbytes: dict[str, int]
    arena_nbytes: dict[str, int]
    workspace_nbytes: dict[str, int]
    certificate: Certificate

    @cached_property
    def residencies_of(self) -> dict[str, tuple[Residency, ...]]:
        """Residencies by storage id."""
        found: dict[str, list[Residency]] = {}
        for r in self.residencies:
            found.setdefault(r.storage, []).append(r)
        return {s: tuple(rs) for s, rs in found.items()}
