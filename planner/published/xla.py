"""XLA's memory space assignment (MSA) on our instances: the alternate memory is the fast tier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import InfeasibleError, TimeLimitError
from ...ir.plan import Plan
from ..instance import Instance
from ..one_way import removable_gaps
from ..place import place
from ..stays import Decisions, make_stays
from ..strategies import Effort, register
from .assignment import Assignment
from .common import Proposal, plan_of
from .intervals import Ratios


@register
@dataclass(frozen=True, slots=True)
class XlaMsa:
    """Memory space assignment of the XLA compiler (openxla/xla, xla/service/memory_space_assignment: algorithm.cc,
    cost_analysis.cc, prefetch_interval_picker.cc), re-implemented.

    Buffers are taken once each, in the order of memory-boundedness: the time that operators bound by memory would save
    by having the buffer in the alternate memory, over the square root of its size (`GetMemoryBoundedness`). For each
    use segment, in turn (`AllocateSegment`): keep the buffer where it is, without a copy; or else evict it, if it has
    no copy below, and prefetch it at the interval that the picker offers first and for which the copy bandwidth and a
    chunk of the heap are free, the chunk that is free for the most later uses; or else leave it in the default memory.
    A buffer that cannot be assigned so is uncommitted and tried again (`max_retries`), then left in the default memory.

    Adapted:
    - Operators cannot read the default memory here. An operand without a prefetch interval is loaded while the operator
      waits; a result without a chunk does not exist. So each use's place is reserved first and freed when the buffer's
      own turn comes, as MSA does for buffers that are coloured to the alternate memory. What an operand in the default
      memory costs is the time of its copy, which is what boundedness counts; no time is credited against the shortest
      prefetch, as a waiting operator is not a slower one.
    - Passes repeat. A prefetch for a first use may begin in the pass before (MSA: cross-program prefetch, there for the
      one best buffer, here for all). Whether a weight may also stay all round, as a value that a loop does not change,
      is tried both ways (`around`), and the faster plan counts.
    - The addresses and copy times are MSA's own. If some buffer found none, the decisions are packed again by our
      placement (MSA: the best-fit repacker); the faster of both counts if both exist.

    `around`: None tries both, False never keeps a weight over the end of the pass, True prefers to.
    """

    name: ClassVar[str] = "xla-msa"
    least_overlap: float = 0.8
    preferred_overlap: float = 1.5
    most_overlap: float = 10.0
    max_retries: int = 1
    around: bool | None = None

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the assignment. Raises InfeasibleError or TimeLimitError where none could be placed."""
        reserved = reserve(instance, effort)
        best, failure = None, None
        for around in (True, False) if self.around is None else (self.around,):
            try:
                plan = plan_of(instance, effort, self.name, self._proposer(instance, reserved, around=around))
            except (InfeasibleError, TimeLimitError) as error:
                failure = error
                continue
            if best is None or plan.certificate.simulated_s < best.certificate.simulated_s:
                best = plan
        if best is None:
            assert failure is not None
            raise failure
        return best

    def _proposer(
        self, instance: Instance, reserved: dict[tuple[int, int], int], *, around: bool
    ) -> Callable[[int], Proposal]:
        ratios = Ratios(self.least_overlap, self.preferred_overlap, self.most_overlap)

        def propose(capacity_nbytes: int) -> Proposal:
            return Assignment(instance, ratios, capacity_nbytes, reserved, around=around).run(self.max_retries)

        return propose


def reserve(instance: Instance, effort: Effort) -> dict[tuple[int, int], int]:
    """An address for every (item, first step) if nothing is ever kept; those that were found."""
    evicted = frozenset((g.item, g.before) for g in removable_gaps(instance))
    alone = Decisions(evicted, prefetch=False)
    stays = make_stays(instance, evicted)
    placed = place(instance, stays, alone, packing_time_s=effort.time_limit_s / 8, seed=effort.seed)
    return {(p.stay.item, p.stay.first): p.offset for p in placed or ()}
