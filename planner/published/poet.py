"""POET: Checkmate with paging: a result is kept, made again, or lies in the tier below meanwhile.

Source: Patil et al. 2022 (arXiv 2207.07697), section 4, equations 1 to 7: S_RAM and S_SD say where a result lies when a
stage begins, M_in and M_out what moves in it. The program stands in `solvers.residency.recompute_stages`.

Adapted: POET minimises energy under a deadline, on devices where paging and computing take turns; here the time is
minimised, and links run beside computing within a stage. Otherwise as `checkmate`, with its limits of size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir.plan import Plan
from ..instance import Instance
from ..strategies import Effort, register
from .checkmate import plan_by_stages


@register
@dataclass(frozen=True, slots=True)
class Poet:
    """`exact_steps`: up to how many operators the exact program is solved; `rounded_steps`: the relaxation."""

    name: ClassVar[str] = "poet"
    exact_steps: int = 30
    rounded_steps: int = 100

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the program under the largest budget whose result fits with addresses."""
        return plan_by_stages(instance, effort, self.name, self.exact_steps, self.rounded_steps, paging=True)
