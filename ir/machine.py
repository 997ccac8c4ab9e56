"""A machine: tiers of memory, the links between them, and the units that compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from math import ceil

from .errors import InputError

ROUNDING_NS = 1e-6
"""What a quotient of floats may be off by, in nanoseconds: it must not round 500 up to 501."""


class TierKind(str, Enum):
    """What a tier is made of."""

    SRAM = "sram"
    HBM = "hbm"
    DRAM = "dram"
    SSD = "ssd"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory of `capacity_nbytes`, of which `reserve_nbytes` (measured) are not to be planned.

    Offsets and lengths of what is placed in it are multiples of `alignment` bytes. `source` says where the
    figures come from.
    """

    name: str
    kind: TierKind
    capacity_nbytes: int
    reserve_nbytes: int = 0
    alignment: int = 64
    source: str = ""

    @property
    def usable_nbytes(self) -> int:
        """Bytes that a plan may fill."""
        return self.capacity_nbytes - self.reserve_nbytes


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two tiers: a transfer of n bytes takes `latency_s + n / bytes_per_s`, and only the latter
    where it stands behind another one: requests overlap, so the latency of all but the first is hidden.

    `chunk_nbytes` is the request size that reaches this rate. Links that name the same `channel` take turns. While this
    link moves bytes, what computes takes `1 + contention` times as long: a processor that fills its own memory lends
    cores and bandwidth to it, a device with a copy engine does not.
    """

    origin: str
    target: str
    bytes_per_s: float
    latency_s: float = 0.0
    chunk_nbytes: int = 4 << 20
    channel: str | None = None
    source: str = ""
    contention: float = 0.0

    @property
    def name(self) -> str:
        """'origin->target', as outputs print it."""
        return f"{self.origin}->{self.target}"

    @property
    def lane(self) -> str:
        """The queue its transfers stand in: its channel, or itself."""
        return self.channel or self.name

    def busy_ns(self, nbytes: int) -> int:
        """Nanoseconds that a transfer of `nbytes` occupies the link, rounded up: no plan is timed below its bound."""
        return ceil(1e9 * nbytes / self.bytes_per_s - ROUNDING_NS)

    def transfer_ns(self, nbytes: int) -> int:
        """Nanoseconds of a transfer of `nbytes` that finds the link idle."""
        return round(1e9 * (self.latency_s + nbytes / self.bytes_per_s))


@dataclass(frozen=True, slots=True)
class Rate:
    """Measured speed of a class of operators in one arithmetic: both figures where both were measured."""

    cost_class: str
    dtype: str
    flops_per_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True)
class Unit:
    """What computes: reads and writes `tier`, `flops_per_s` by dtype, `bytes_per_s`, `launch_s` per operator.

    `rates` refine the peak figures by operator class where the machine was measured.
    """

    name: str
    tier: str
    flops_per_s: tuple[tuple[str, float], ...]
    bytes_per_s: float
    launch_s: float = 0.0
    rates: tuple[Rate, ...] = ()
    threads: int = 0
    source: str = ""

    @cached_property
    def rate(self) -> dict[tuple[str, str], Rate]:
        """Measured rates by (cost class, dtype)."""
        return {(r.cost_class, r.dtype): r for r in self.rates}


@dataclass(frozen=True)
class Machine:
    """Tiers, links and units. `fingerprint` identifies the box that was measured, None for a published profile."""

    name: str
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    units: tuple[Unit, ...]
    fingerprint: str | None = None
    measured: str = ""

    @cached_property
    def tier(self) -> dict[str, Tier]:
        """Tiers by name."""
        return {t.name: t for t in self.tiers}

    @cached_property
    def link(self) -> dict[tuple[str, str], Link]:
        """Links by (origin, target)."""
        return {(link.origin, link.target): link for link in self.links}

    def path(self, origin: str, target: str) -> tuple[tuple[str, str], ...]:
        """The links, as (origin, target), by which bytes come from one tier to another: the fewest, the fastest first.

        Raises InputError where no links lead there.
        """
        reached: dict[str, tuple[tuple[str, str], ...]] = {origin: ()}
        frontier = [origin]
        links = sorted(self.links, key=lambda k: -k.bytes_per_s)
        while frontier and target not in reached:
            steps = [(k.origin, k.target) for tier in frontier for k in links if k.origin == tier]
            frontier = []
            for hop in steps:
                if hop[1] not in reached:
                    reached[hop[1]] = (*reached[hop[0]], hop)
                    frontier.append(hop[1])
        if target not in reached:
            raise InputError(f"machine '{self.name}': no links lead from tier '{origin}' to tier '{target}'")
        return reached[target]

    def with_capacity(self, capacities: dict[str, int]) -> Machine:
        """This machine with other tier capacities, in bytes; a reserve larger than the new capacity is an error."""
        for name, nbytes in capacities.items():
            if name not in self.tier:
                raise InputError(f"machine '{self.name}' has no tier '{name}'; its tiers: {', '.join(self.tier)}")
            if nbytes <= self.tier[name].reserve_nbytes:
                raise InputError(
                    f"tier '{name}' of {nbytes} bytes is not larger than its reserve of "
                    f"{self.tier[name].reserve_nbytes} bytes; give it more"
                )
        tiers = tuple(replace(t, capacity_nbytes=capacities.get(t.name, t.capacity_nbytes)) for t in self.tiers)
        return replace(self, tiers=tiers)
