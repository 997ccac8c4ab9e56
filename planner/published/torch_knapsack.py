"""PyTorch's `activation_memory_budget`: a minimum cut, and a knapsack of what is dear to make again.

Source: torch/_functorch/partitioners.py of PyTorch 2.13, `choose_saved_values_set`, and
_activation_checkpointing/knapsack.py, `dp_knapsack` (budgets as shares of the bytes that the fastest cut saves, 0: what
is given alone). Three cuts with ever fewer bans are tried; where all save too much, a knapsack of that many bytes holds
the dearest of what stays banned, and the rest may be made again as well.

Adapted: the budget bounds what is saved, not the peak, so that here all budgets from 1 down are tried in steps, and of
those whose plans fit the fastest counts; both of its estimators of time are, operations (its default) and measured
times. `torch_partition` tells what else is different. As in `checkpointing`, weights and states stay, and operators are
called again one by one just before their first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ...ir.plan import Plan
from ..instance import Instance
from ..recompute_choice import Chosen
from ..recompute_orders import Flow
from ..strategies import Effort, register
from .checkpointing import least_computing, recomputable
from .torch_partition import NEVER, Bans, Partition, again

SLOTS = 10_000
"""Into how many parts `dp_knapsack` divides the bytes."""
STEPS = 20
"""Budgets from 1 down to 0 that are tried."""
ESTIMATORS = ("flops", "time")
RUNTIME = Bans()
MORE_AGGRESSIVE = Bans(far_apart=False, long_chains=False, materialized=False)
AGGRESSIVE = Bans(far_apart=False, long_chains=False, materialized=False, unlisted=False)


@register
@dataclass(frozen=True, slots=True)
class TorchKnapsack:
    """`budget`: PyTorch's setting, 0 to 1; None: the one that fits and computes least. `estimators` of time."""

    name: ClassVar[str] = "torch-knapsack"
    budget: float | None = None
    estimators: tuple[str, ...] = ESTIMATORS

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the budget that computes least of those that fit; InfeasibleError where none does."""
        flow = recomputable(instance, self.name)
        budgets = None if self.budget is None else (self.budget,)
        return least_computing(instance, flow, effort, self.name, knapsacks(flow, self.estimators, budgets))


def knapsacks(
    flow: Flow, estimators: Sequence[str] = ESTIMATORS, budgets: Sequence[float] | None = None
) -> Iterator[Chosen]:
    """What PyTorch calls again at each of these budgets, by default from 1 down to 0; each set once.

    Raises ValueError for a budget that is no share, or an estimator of another name.
    """
    if unknown := set(estimators) - set(ESTIMATORS):
        raise ValueError(f"no estimators of time are called {sorted(unknown)}; there are {ESTIMATORS}")
    choice = _Choice(Partition(flow))
    seen: set[Chosen] = set()
    for budget in budgets or [1 - n / STEPS for n in range(STEPS + 1)]:
        if not 0 <= budget <= 1:
            raise ValueError(f"budget {budget} is not between 0 and 1, as PyTorch's is")
        for estimator in estimators:
            chosen = again(choice.partition, choice.saved(budget, estimator))
            if chosen not in seen:
                seen.add(chosen)
                yield chosen


@dataclass
class _Choice:
    """`choose_saved_values_set`, with the cuts that several budgets share remembered."""

    partition: Partition
    cuts: dict[frozenset[str], Chosen] = field(default_factory=dict[frozenset[str], Chosen])

    def saved(self, budget: float, estimator: str) -> Chosen:
        """The values that the backward pass finds."""
        part = self.partition
        given = frozenset(s for s in part.values if s not in part.maker)
        if budget == 0:
            return given
        fastest = self._cut(part.banned(RUNTIME))
        least = nbytes_of(part, given)
        span = nbytes_of(part, fastest) - least
        if budget == 1 or span <= 0:
            return fastest
        for bans in (MORE_AGGRESSIVE, AGGRESSIVE):
            smaller = self._cut(part.banned(bans))
            if (nbytes_of(part, smaller) - least) / span < budget:
                return smaller
        banned = part.banned(AGGRESSIVE)
        choice = sorted(
            (op for op in part.forward if op in banned and op in part.flow.repeatable and part.distance[op] < NEVER),
            key=lambda op: -part.nbytes(op),
        )
        runtimes = [part.flow.duration_of(op) if estimator == "time" else part.counted_flops(op) for op in choice]
        kept = dearest([part.nbytes(op) / span for op in choice], runtimes, budget)
        return self._cut(banned - {op for k, op in enumerate(choice) if k not in kept})

    def _cut(self, banned: frozenset[str]) -> Chosen:
        if banned not in self.cuts:
            self.cuts[banned] = self.partition.saved(banned)
        return self.cuts[banned]


def nbytes_of(partition: Partition, values: Set[str]) -> int:
    """Bytes of these values."""
    return sum(partition.flow.graph.storage[s].nbytes for s in values)


def dearest(memory: Sequence[float], runtimes: Sequence[float], room: float) -> frozenset[int]:
    """Numbers of the items of the largest total runtime that fit `room` together: `dp_knapsack`, memory in slots.

    `memory` and `room` are shares of one quantity. As there, what takes less than half a slot takes none.
    """
    slots = round(room * SLOTS)
    sizes = [round(share * SLOTS) for share in memory]
    best = np.zeros(slots + 1)
    taken: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
    for size, runtime in zip(sizes, runtimes, strict=True):
        new = best.copy()
        if size == 0:
            new += runtime
        elif size <= slots:
            new[size:] = np.maximum(best[size:], best[:-size] + runtime)
        taken.append(np.packbits(new != best))
        best = new
    found: set[int] = set()
    left = slots
    for k in reversed(range(len(sizes))):
        if taken[k][left // 8] >> (7 - left % 8) & 1:
            found.add(k)
            left -= sizes[k]
    return frozenset(found)
