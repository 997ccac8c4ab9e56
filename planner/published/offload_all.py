"""Offload everything: the common default of offloading runtimes, with prefetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.plan import Plan
from ..instance import Instance
from ..one_way import removable_gaps
from ..stays import Decisions
from ..strategies import Effort, register
from .common import plan_of


@register
@dataclass(frozen=True, slots=True)
class OffloadEverything:
    """Every tensor leaves the fast tier after each use and is fetched again before the next one.

    This is what ZeRO-Infinity (Rajbhandari et al., arXiv 2104.07857, section 5) does with parameters and activation
    checkpoints when both are offloaded, and the upper end of vDNN's `vDNN_all` (Rhu et al., arXiv 1602.08124, section
    III): weights are dropped and loaded again, what an operator made is stored once and loaded. Loads start as early as
    addresses allow, the largest prefetch window that either could have. Between adjacent steps nothing leaves, as
    there is no time in which it could be absent. Without a link back only clean copies leave.

    `prefetch`: False makes every load wait for the operator before, as loaders do.
    """

    name: ClassVar[str] = "offload-everything"
    prefetch: bool = True

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan that keeps nothing over any gap."""
        evicted = frozenset((g.item, g.before) for g in removable_gaps(instance))
        decisions = Decisions(evicted, prefetch=self.prefetch)

        def propose(capacity_nbytes: int) -> tuple[Decisions, None] | None:  # less room changes nothing here
            return (decisions, None) if capacity_nbytes == instance.capacity_nbytes else None

        return plan_of(instance, effort, self.name, propose)
