"""Recomputation without any transfer, as frameworks offer it: what is not given up stays in the fast tier.

- `checkpoint-sqrt`: Chen, Xu, Zhang, Guestrin 2016, 'Training Deep Nets with Sublinear Memory Cost' (arXiv 1604.06174),
  section 4: the net is cut into segments (section 4.2: about the square root of its length for n equal layers), the
  results at their ends are kept, all within a segment is made again when the backward pass comes to it. Their search
  over budgets (section 4.3, Algorithm 3) is a search over the number of segments here: of those that fit the one that
  computes least.
- `checkpoint-mincut`: the idea of PyTorch's `min_cut_rematerialization_partition` (torch/_functorch/partitioners.py):
  of what the forward pass makes, save the cheapest cut in bytes; products, convolutions and attention are never made
  again. Where that is too much, `activation_memory_budget` lifts that ban from the results that save most bytes for
  their time (a knapsack, filled greedily), as few as needed.

Adapted: operators may be repeated one by one, not as one block, so that each is called just before its first use. Both
concern values before the turn (`recompute_orders`); weights, gradients and optimizer states stay, and where the machine
cannot hold them and the largest segment, they have no plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import InfeasibleError, NotApplicableError, TimeLimitError
from ...ir.plan import Plan
from ...ir.sizes import format_size
from ..instance import Instance
from ..recompute_bound import flow_of
from ..recompute_choice import Chosen, checkpoints, price_cut
from ..recompute_orders import Flow, recompute_order
from ..recompute_resident import resident_plan
from ..strategies import Effort, register

INTENSIVE = ("matmul", "matvec", "gemm", "conv", "attention")
"""What cost classes begin with that PyTorch's partitioner bans from recomputation (`compute_intensive_ops`)."""
SATURATED = 1e6
"""A price of memory, in nanoseconds per byte, beside which no recomputation costs anything: bytes alone are cut."""


@register
@dataclass(frozen=True, slots=True)
class CheckpointSqrt:
    """Segments of Chen et al. 2016. `segments`: how many (0: the number that fits and computes least)."""

    name: ClassVar[str] = "checkpoint-sqrt"
    segments: int = 0

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the segmentation that computes least of those that fit; also none at all, if that fits."""
        flow = recomputable(instance, self.name)
        return least_computing(instance, flow, effort, self.name, segmentations(flow, self.segments))


@register
@dataclass(frozen=True, slots=True)
class CheckpointMinCut:
    """PyTorch's minimum cut, its ban lifted as far as the memory needs it."""

    name: ClassVar[str] = "checkpoint-mincut"

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the cut with the shortest list of intensive operators that fits."""
        flow = recomputable(instance, self.name)
        return least_computing(instance, flow, effort, self.name, minimum_cuts(flow))


def segmentations(flow: Flow, count: int = 0) -> Iterator[Chosen]:
    """What checkpoints around `count` segments give up; 0: nothing, and what those around any number do."""
    awaited = sum(flow.awaited(s) for s in flow.maker)
    if not count:
        yield frozenset()
    for number in [count] if count else range(1, max(2, awaited) + 1):
        yield frozenset().union(*checkpoints(flow, number))


def minimum_cuts(flow: Flow) -> Iterator[Chosen]:
    """Nothing, and what the least bytes to save leave to be made again, the ban lifted step by step."""
    allowed, banned = free_and_banned(flow)
    yield frozenset()
    for k in ladder(len(banned)):
        yield price_cut(flow, SATURATED, only=allowed | set(banned[:k]))


def free_and_banned(flow: Flow) -> tuple[frozenset[str], list[str]]:
    """Operators that are made again without much thought, and the intensive ones by the bytes saved per nanosecond."""
    own = [op for op in flow.order[: flow.turn] if op in flow.repeatable]
    banned = [op for op in own if flow.graph.operator[op].cost_class.lower().startswith(INTENSIVE)]

    def worth(op: str) -> float:
        nbytes = sum(flow.graph.storage[s].nbytes for s in flow.writes[op])
        return nbytes / max(1, flow.duration_of(op))

    return frozenset(own) - frozenset(banned), sorted(banned, key=lambda op: (-worth(op), flow.step[op]))


def ladder(length: int) -> list[int]:
    """0, the sixteenths of `length`, and `length`."""
    return sorted({length * k // 16 for k in range(17)})


def recomputable(instance: Instance, name: str) -> Flow:
    """The instance's flow; NotApplicableError where nothing waits at its turn that could be made again."""
    if len(set(instance.order)) < instance.steps:
        raise NotApplicableError(f"strategy '{name}' starts from an order in which no operator is repeated")
    flow = flow_of(instance)
    if not any(flow.awaited(s) for s in flow.maker):
        raise NotApplicableError(
            f"strategy '{name}' is for graphs with values that wait for a later use, as in training; in "
            f"'{instance.graph.name}' none does that could be made again"
        )
    return flow


def least_computing(instance: Instance, flow: Flow, effort: Effort, name: str, candidates: Iterable[Chosen]) -> Plan:
    """The plan without transfers of the first candidate, by computing time, for which addresses are found.

    Raises InfeasibleError where none fits even without addresses, and TimeLimitError where none were found in time.
    """
    began = time.monotonic()
    posed: dict[tuple[str, ...], Instance] = {}
    for chosen in candidates:
        order = recompute_order(flow, chosen)
        if order not in posed:
            posed[order] = instance.reordered(order)
        if time.monotonic() - began > effort.time_limit_s / 2:
            break
    fitting = [x for x in posed.values() if x.peak_of_all() <= instance.capacity_nbytes]
    if not fitting:
        raise too_small(instance, name, min(x.peak_of_all() for x in posed.values()))
    for x in sorted(fitting, key=lambda x: (sum(x.durations_ns), x.peak_of_all())):
        left = effort.time_limit_s - (time.monotonic() - began)
        plan = resident_plan(x, name, packing_time_s=max(0.1, left / 4), seed=effort.seed)
        if plan is not None:
            return plan
        if left <= 0:
            break
    raise TimeLimitError(
        f"strategy '{name}' found no addresses inside {format_size(instance.fast.usable_nbytes)} of tier "
        f"'{instance.fast.name}' in {effort.time_limit_s:g} s; give it more memory or more time"
    )


def too_small(instance: Instance, name: str, least_nbytes: int) -> InfeasibleError:
    """What a strategy says that moves no weights, and holds at least so many bytes at once."""
    smallest = least_nbytes + instance.workspace_nbytes + instance.fast.reserve_nbytes
    held, needed = format_size(instance.fast.usable_nbytes), format_size(least_nbytes + instance.workspace_nbytes)
    return InfeasibleError(
        f"strategy '{name}' keeps weights and states, and holds at least {needed} of '{instance.graph.name}' in tier "
        f"'{instance.fast.name}', which holds {held}; give it --tier {instance.fast.name}={smallest} or another one",
        smallest_nbytes=smallest,
    )
