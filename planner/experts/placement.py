"""Which expert lives in which tier, fetched or computed where it lies, beside what else wants the bytes.

An expert in the tier of the main unit costs nothing more. In another tier it costs, for each use, its transfer to the
main unit, or its computation by a unit of that tier. Other claims (a KV cache, activations) take bytes of one tier, or
have a price in each tier that may hold them, and are weighed in the same knapsack.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...ir.errors import InfeasibleError, InputError, TimeLimitError
from ...ir.machine import Machine, Unit
from ...ir.sizes import format_size
from ...solvers.caching.knapsack import Placement, place
from ...solvers.caching.problem import Ints
from ...solvers.result import Status


@dataclass(frozen=True, slots=True)
class Claim:
    """Something else that wants bytes: `nbytes`, and its cost in ns per token in each tier that may hold it."""

    name: str
    nbytes: int
    cost_ns: dict[str, float]


@dataclass(frozen=True, slots=True)
class Home:
    """Where an expert or claim lives: `tier`, and the `unit` that computes it there, None where the main unit does."""

    tier: str
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """The outcome. `experts` in the order of layers and experts; `claims` by name; `nbytes` used by tier.

    `cost_ns` is what a token waits, transfers and slower computation one after the other; no placement costs less than
    `bound_ns`.
    """

    experts: tuple[Home, ...]
    claims: dict[str, Home]
    nbytes: dict[str, int]
    cost_ns: float
    bound_ns: float
    seconds: float

    @property
    def gap(self) -> float:
        """How far above the bound the placement is."""
        return self.cost_ns / self.bound_ns - 1 if self.bound_ns > 0 else 0.0


def place_experts(
    machine: Machine,
    sizes: Ints,
    uses: NDArray[np.float64],
    *,
    unit: str | None = None,
    claims: tuple[Claim, ...] = (),
    flops: NDArray[np.float64] | None = None,
    dtype: str = "bfloat16",
    time_limit_s: float = 10.0,
) -> Placed:
    """Place experts of `sizes` bytes, int64 [layers, experts], each used `uses` times a token (float64, same shape).

    `unit` computes what is fetched; the machine's first by default. `flops` are those of one use, by default two for
    each parameter of two bytes: one token's product with its matrices. Raises InputError for a unit, tier or shape that
    does not match, InfeasibleError where the tiers together hold too little, TimeLimitError without an answer in time.
    """
    if sizes.shape != uses.shape:
        raise InputError(f"sizes {sizes.shape} and uses {uses.shape} must both be [layers, experts]")
    main = _unit(machine, unit)
    work = sizes.astype(np.float64) if flops is None else flops
    homes = _homes(machine, main)
    tiers = [t.name for t in machine.tiers]
    flat, often, each = sizes.ravel(), uses.ravel(), work.ravel()
    options = np.stack([often * _use_ns(machine, main, home, flat, each, dtype) for home in homes], axis=1)
    costs = np.full((len(flat) + len(claims), max(len(homes), len(tiers))), np.inf)
    costs[: len(flat), : len(homes)] = options
    nbytes = np.zeros((*costs.shape, len(tiers)), dtype=np.int64)
    for i, home in enumerate(homes):
        nbytes[: len(flat), i, tiers.index(home.tier)] = flat
    for n, claim in enumerate(claims):
        _claim(costs[len(flat) + n], nbytes[len(flat) + n], claim, tiers)
    capacity = np.array([t.usable_nbytes for t in machine.tiers], dtype=np.int64)
    result = place(Placement(costs, nbytes, capacity), time_limit_s=time_limit_s)
    if result.status is Status.INFEASIBLE:
        _refuse(machine, int(flat.sum()) + sum(c.nbytes for c in claims), result.detail)
    if result.solution is None or result.objective is None or result.bound is None:
        raise TimeLimitError(
            f"no placement of {len(flat)} experts was found in {time_limit_s} s: {result.detail}; allow more time, or "
            "give a tier more"
        )
    used = Placement(costs, nbytes, capacity).used(result.solution)
    chosen = result.solution.tolist()
    return Placed(
        tuple(homes[c] for c in chosen[: len(flat)]),
        {claim.name: Home(tiers[c]) for claim, c in zip(claims, chosen[len(flat) :], strict=True)},
        {name: int(n) for name, n in zip(tiers, used, strict=True)},
        float(result.objective),
        float(result.bound),
        result.seconds,
    )


def _unit(machine: Machine, name: str | None) -> Unit:
    if name is None:
        return machine.units[0]
    for unit in machine.units:
        if unit.name == name:
            return unit
    raise InputError(
        f"machine '{machine.name}' has no unit '{name}'; it has {', '.join(u.name for u in machine.units)}"
    )


def _homes(machine: Machine, main: Unit) -> tuple[Home, ...]:
    """Tiers from which the main unit can be fed, and those whose own unit can compute."""
    found: list[Home] = []
    for tier in machine.tiers:
        try:
            machine.path(tier.name, main.tier)
        except InputError:
            continue
        found.append(Home(tier.name))
    beside = (u for u in machine.units if u.tier != main.tier)
    return tuple(found) + tuple(Home(u.tier, u.name) for u in beside)


def _use_ns(
    machine: Machine, main: Unit, home: Home, sizes: Ints, flops: NDArray[np.float64], dtype: str
) -> NDArray[np.float64]:
    """What a use costs beyond computing in the main unit's own tier, in ns for each expert."""
    base = _compute_ns(main, sizes, flops, dtype)
    if home.unit is not None:
        return np.maximum(0.0, _compute_ns(_unit(machine, home.unit), sizes, flops, dtype) - base)
    links = [machine.link[pair] for pair in machine.path(home.tier, main.tier)]
    if not links:
        return np.zeros(len(sizes))
    # Chunks pass through all links at the pace of the slowest.
    slowest = min(link.bytes_per_s for link in links)
    return sum(link.latency_s for link in links) * 1e9 + sizes / slowest * 1e9


def _compute_ns(unit: Unit, sizes: Ints, flops: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Reading the weights or the arithmetic, whichever takes longer, and a launch."""
    rates = dict(unit.flops_per_s)
    rate = rates.get(dtype) or max(rates.values())
    return 1e9 * (np.maximum(sizes / unit.bytes_per_s, flops / rate) + unit.launch_s)


def _claim(costs: NDArray[np.float64], nbytes: Ints, claim: Claim, tiers: list[str]) -> None:
    """Fill in the row of a claim: option i is tier i."""
    unknown = [name for name in claim.cost_ns if name not in tiers]
    if unknown or not claim.cost_ns:
        raise InputError(f"'{claim.name}' may lie in {unknown or 'no tier'}; the machine has {', '.join(tiers)}")
    for name, cost in claim.cost_ns.items():
        costs[tiers.index(name)] = cost
        nbytes[tiers.index(name), tiers.index(name)] = claim.nbytes


def _refuse(machine: Machine, needed: int, detail: str) -> None:
    held = sum(t.usable_nbytes for t in machine.tiers)
    raise InfeasibleError(
        f"experts and claims take {format_size(needed)}, and the tiers of '{machine.name}' hold {format_size(held)} "
        f"({detail}); give a tier more",
        smallest_nbytes=needed if needed > held else None,
    )
