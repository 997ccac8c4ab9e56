"""Decisions that must fit: packing that fails is answered by deciding again under a smaller capacity."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.errors import InfeasibleError, TimeLimitError
from ..ir.sizes import format_size
from .instance import Instance
from .place import place
from .stays import Decisions, Placed, live_peak, stays_of

CUTS = (0.0, 0.01, 0.02, 0.04, 0.07, 0.11, 0.16, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0)
"""Parts of the room above the largest working set that are given up, one after another, until offsets are found."""


def fit(
    instance: Instance,
    decide: Callable[[int], Decisions | None],
    *,
    packing_time_s: float,
    seed: int,
    strategy: str,
) -> list[Placed]:
    """Placed stays of the first `decide(capacity)` that can be placed, capacities falling from the instance's own.

    `decide` returns None where it has no answer for a capacity. Raises InfeasibleError when it never has one that could
    fit at any addresses, and TimeLimitError when it had but no addresses were found.
    """
    least = max(instance.base_nbytes, default=0)
    decided = False
    for cut in CUTS:
        decisions = decide(instance.capacity_nbytes - int(cut * (instance.capacity_nbytes - least)))
        if decisions is None:
            continue
        stays = stays_of(instance, decisions)
        if live_peak(instance, stays) > instance.capacity_nbytes:
            continue
        decided = True
        placed = place(instance, stays, decisions, packing_time_s=packing_time_s, seed=seed)
        if placed is not None:
            return placed
    held = format_size(instance.fast.usable_nbytes)
    if not decided:
        raise InfeasibleError(f"strategy '{strategy}' has no plan inside {held} of tier '{instance.fast.name}'")
    raise TimeLimitError(
        f"strategy '{strategy}' found no addresses inside {held} of tier '{instance.fast.name}' in time; the largest "
        f"working set alone is {format_size(least + instance.workspace_nbytes)}; give it more memory or more time"
    )
