"""`least-traffic`: the plan that moves the fewest bytes, with addresses. See `traffic_choice` for the problem.

Where the optimal choice finds no addresses, the capacity is cut until one does; the bound stays that of the whole
capacity, so "optimal" means that nothing was lost to addresses either.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..ir.errors import InfeasibleError, InputError, TimeLimitError
from ..ir.plan import Plan
from ..ir.sizes import format_size
from ..solvers.result import Status
from .instance import Instance
from .one_way import removable_gaps, require_room
from .place import place
from .realise import realise
from .stays import Decisions, Placed, make_stays
from .strategies import Effort, register
from .traffic_choice import fluid_nbytes, pose, solve_choice
from .traffic_orders import candidate_orders

__all__ = ["LeastTraffic", "Search", "around_the_end", "fluid_nbytes", "least_traffic", "searched"]


def around_the_end(instance: Instance, one_pass: bool) -> list[tuple[int, int]]:
    """The gaps that lead from one pass into the next, if every pass is to stand alone."""
    return [(g.item, g.before) for g in removable_gaps(instance) if one_pass and g.end >= instance.steps]


CUTS = (0.0, 0.003, 0.01, 0.02, 0.04, 0.07, 0.11, 0.16, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0)
"""Parts of the capacity that are given up where operands leave room, one after another, until offsets are found."""

HALVINGS = 3
"""How often the cut that has offsets and the one before it, which has none, are drawn closer."""


@dataclass
class Search:
    """The best decisions that have addresses, over capacities that are cut until packing succeeds."""

    instance: Instance
    effort: Effort
    one_pass: bool = False
    bound: int = 0
    moved: int | None = None
    decisions: Decisions | None = None
    placed: list[Placed] = field(default_factory=list[Placed])
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.effort.time_limit_s - (time.monotonic() - self.began)

    def run(self) -> None:
        """Cuts from none to all, then between the first that has addresses and the one before it."""
        known: tuple[bool, ...] | None = None
        low, high = 0.0, 0.0
        for cut in CUTS:
            # What is left of the time must do for the last cut, which keeps nothing but operands and is quick.
            if 0.0 < cut < 1.0 and self.left_s < self.effort.time_limit_s / 4:
                continue
            chosen = self.choose(cut)
            if chosen is not None and chosen != known and self.accept(chosen):
                high = cut
                break
            known, low = chosen, cut
        for _ in range(HALVINGS if high > 0 else 0):
            middle = (low + high) / 2
            chosen = self.choose(middle) if self.left_s > 0 else None
            if chosen is not None and self.accept(chosen):
                high = middle
            else:
                low = middle

    def choose(self, cut: float) -> tuple[bool, ...] | None:
        """The gaps to leave in when this part of the room is not to be used; without a cut it gives the bound."""
        capacity = self.instance.capacity_nbytes
        choice = pose(
            self.instance, capacity - int(cut * capacity), kept_out=around_the_end(self.instance, self.one_pass)
        )
        time_s = max(0.5, self.left_s / (2 if cut == 0.0 else 6))
        result = solve_choice(choice, time_limit_s=time_s, seed=self.effort.seed, engine=self.instance.engine)
        if result.status is Status.ERROR:
            raise InputError(f"the bytes of '{self.instance.graph.name}' cannot be summed exactly: {result.detail}")
        if cut == 0.0:
            self.bound = int(result.bound or 0)
        return result.solution

    def accept(self, chosen: tuple[bool, ...]) -> bool:
        """Whether addresses are found for a choice; the one that moves least is kept."""
        instance = self.instance
        pairs = zip(removable_gaps(instance), chosen, strict=True)
        evicted = frozenset((gap.item, gap.before) for gap, away in pairs if away)
        decisions = Decisions(evicted, {}, prefetch=True)
        stays = make_stays(instance, evicted)
        packing_s = max(0.5, self.left_s / 6)
        placed = place(instance, stays, decisions, packing_time_s=packing_s, seed=self.effort.seed)
        if placed is None:
            return False
        payload = [instance.graph.storage[item.storage].nbytes for item in instance.items]
        moved = sum(payload[s.item] * (int(s.loads) + int(s.stores)) for s in stays)
        if self.moved is None or moved < self.moved:
            self.moved, self.decisions, self.placed = moved, decisions, placed
        return True


def least_traffic(instance: Instance, effort: Effort) -> tuple[Decisions, int, int, Status]:
    """Decisions with addresses that move the fewest bytes a pass in this order, those bytes, the proven bound in bytes
    of whole-item plans of this order, and OPTIMAL where both are equal. TimeLimitError: no addresses were found."""
    found = searched(instance, effort)
    assert found.decisions is not None and found.moved is not None
    status = Status.OPTIMAL if found.moved <= found.bound else Status.FEASIBLE
    return found.decisions, found.moved, found.bound, status


def searched(instance: Instance, effort: Effort, *, one_pass: bool = False) -> Search:
    """The search, run. `one_pass`: no weight stays for the next pass. TimeLimitError: no addresses were found;
    InfeasibleError: what cannot leave is too much."""
    require_room(instance)
    found = Search(instance, effort, one_pass)
    found.run()
    if found.decisions is None:
        raise TimeLimitError(
            f"no addresses were found inside {format_size(instance.fast.usable_nbytes)} of tier "
            f"'{instance.fast.name}' in {effort.time_limit_s:g} s; the largest working set takes "
            f"{format_size(max(instance.base_nbytes) + instance.workspace_nbytes)}; give it more memory or time"
        )
    return found


def search(
    instance: Instance, effort: Effort, *, one_pass: bool = False
) -> tuple[Search | None, TimeLimitError | InfeasibleError | None]:
    """`searched`, or what it raises."""
    try:
        return searched(instance, effort, one_pass=one_pass), None
    except (TimeLimitError, InfeasibleError) as error:
        return None, error


@register
@dataclass(frozen=True, slots=True)
class LeastTraffic:
    """Fewest bytes over the edge of the fast tier, whatever the time: optimal among plans of whole items in its order,
    where addresses are found for the optimum. `reorder`: try other orders too, and take one that moves less."""

    name: ClassVar[str] = "least-traffic"
    reorder: bool = True

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan that moves the fewest bytes over the orders that were tried. Raises what the program's order raises
        where none has a plan."""
        began = time.monotonic()
        share = replace(effort, time_limit_s=effort.time_limit_s / (2 if self.reorder else 1))
        best, failure = search(instance, share)
        orders = candidate_orders(instance.graph) if self.reorder and (best is None or best.moved) else []
        for order in orders:
            left = effort.time_limit_s - (time.monotonic() - began)
            if left <= 0:
                break
            try:
                other = instance.reordered(order)
                choice = pose(other, other.capacity_nbytes)
                found = solve_choice(choice, time_limit_s=left / 2, seed=effort.seed, engine=instance.engine)
            except InfeasibleError:
                continue  # what arrives first or leaves last makes a working set larger; the program's order stands
            if best is None or (found.bound or 0) < (best.moved or 0):
                better, _ = search(other, replace(effort, time_limit_s=left / 2))
                best = better if best is None or (better and (better.moved or 0) < (best.moved or 0)) else best
        if best is None:
            assert failure is not None, "an order has addresses, or says why not"
            raise failure
        return realise(best.instance, best.placed, self.name)
