"""Baselines: what loaders and caches do today, realised by the same placement, simulator and runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ..ir.errors import InfeasibleError, TimeLimitError
from ..ir.plan import Plan
from ..ir.sizes import format_size
from .fit import fit
from .instance import Instance
from .place import place
from .realise import realise
from .replay import farthest, least_recent, replay_cache
from .stays import Decisions, make_stays
from .strategies import Effort, register


@register
@dataclass(frozen=True, slots=True)
class Resident:
    """Everything stays in the fast tier, as frameworks do by default; infeasible where it does not fit."""

    name: ClassVar[str] = "resident"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan without any transfer. Raises TimeLimitError where all would fit, but no addresses are found for it:
        alignment and the order of lives may ask for more than what lives at once."""
        nothing = Decisions(frozenset(), {}, prefetch=False)
        needed = instance.peak_of_all()
        needed_total = format_size(needed + instance.workspace_nbytes)
        held = format_size(instance.fast.usable_nbytes)
        if needed > instance.capacity_nbytes:
            smallest = needed + instance.workspace_nbytes + instance.fast.reserve_nbytes
            raise InfeasibleError(
                f"all of '{instance.graph.name}' takes {needed_total} in tier '{instance.fast.name}', which holds "
                f"{held}; give it --tier {instance.fast.name}={smallest} or another strategy",
                smallest_nbytes=smallest,
            )
        stays = make_stays(instance, nothing.evicted)
        placed = place(instance, stays, nothing, packing_time_s=effort.time_limit_s, seed=effort.seed)
        if placed is None:
            raise TimeLimitError(
                f"strategy 'resident' found no addresses for the {needed_total} of '{instance.graph.name}' inside "
                f"{held} of tier '{instance.fast.name}'; give it more memory or another strategy"
            )
        return realise(instance, placed, self.name)


@register
@dataclass(frozen=True, slots=True)
class OnDemand:
    """Every weight is loaded when its operator is next, and dropped after it: a loader that waits."""

    name: ClassVar[str] = "on-demand"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan that keeps no weight."""
        evicted = frozenset((g.item, g.before) for g in instance.gaps if g.clean)
        return _fitted(instance, effort, self.name, lambda _: Decisions(evicted, {}, prefetch=False))


@register
@dataclass(frozen=True, slots=True)
class Lru:
    """A cache of weights that evicts the least recently used; loads wait for the operator before."""

    name: ClassVar[str] = "lru"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cache's steady state."""
        return _fitted(instance, effort, self.name, lambda c: replay_cache(instance, c, least_recent, prefetch=False))


@register
@dataclass(frozen=True, slots=True)
class Belady:
    """A cache of weights that evicts the one whose next use is farthest (Belady 1966); loads wait."""

    name: ClassVar[str] = "belady"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cache's steady state."""
        return _fitted(instance, effort, self.name, lambda c: replay_cache(instance, c, farthest, prefetch=False))


@register
@dataclass(frozen=True, slots=True)
class BeladyPrefetch:
    """Belady's evictions, with every load started as early as addresses allow."""

    name: ClassVar[str] = "belady-prefetch"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cache's steady state."""
        return _fitted(instance, effort, self.name, lambda c: replay_cache(instance, c, farthest, prefetch=True))


def _fitted(instance: Instance, effort: Effort, name: str, decide: Callable[[int], Decisions | None]) -> Plan:
    placed = fit(instance, decide, packing_time_s=effort.time_limit_s / 4, seed=effort.seed, strategy=name)
    return realise(instance, placed, name)
