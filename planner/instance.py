"""A graph on two tiers of a machine, in the terms that strategies decide on: steps, uses, gaps, bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import lcm

from ..ir.codec import digest
from ..ir.collecting import without_collecting
from ..ir.errors import InfeasibleError
from ..ir.graph import Graph, Storage
from ..ir.machine import Machine, Tier, Unit
from ..ir.plan import Plan
from ..ir.sizes import format_size
from ..solvers.engines import AUTO
from ..solvers.residency.lp import Relaxer
from ..solvers.residency.problem import Gap, ResidencyProblem, ResidencySolution
from ..solvers.result import Result, Status
from .below import chain_below
from .costs import duration_ns
from .items import Item, ItemGap, beside, extent, items_of, round_up


@dataclass(frozen=True)
class Instance:
    """What every strategy is given. `capacity_nbytes` is what the arena may take: the budget less the workspace.

    `middle` are the tiers between the fast one and the home tier, from above, where a machine needs them: `levels`
    plans those. A strategy sees two tiers. `engine` solves the residency programs: one of `engines.NAMES`.

    `padded`: places are taken in whole blocks, of the home tier for what is at home and of the fast tier for the rest,
    so that loads stream straight into them; `base_nbytes`, the operands and results of each step, count that padding.
    Where that alone is more than there is room for, or all that would never have to leave if it were not, items take
    their own bytes: what does not come in blocks is copied. No bound counts padding.
    """

    graph: Graph
    machine: Machine
    order: tuple[str, ...]
    unit: Unit
    fast: Tier
    home: Tier
    capacity_nbytes: int
    workspace_nbytes: int
    durations_ns: tuple[int, ...]
    items: tuple[Item, ...]
    base_nbytes: tuple[int, ...]
    mode: str
    middle: tuple[Tier, ...] = ()
    engine: str = AUTO
    padded: bool = True

    @property
    def steps(self) -> int:
        """Number of steps of a pass."""
        return len(self.order)

    @cached_property
    def operand_nbytes(self) -> tuple[int, ...]:
        """Bytes of the operands and results of each step without padding: every plan of the order holds these."""
        return tuple(sum(s.nbytes for s in together) for together in self._together)

    @cached_property
    def extents_nbytes(self) -> tuple[int, ...]:
        """Bytes of the least range of addresses for the operands and results of each step (`items.extent`)."""
        return tuple(map(extent, self._together))

    @property
    def smallest_budget(self) -> int:
        """Bytes of the fast tier for the largest working set, each storage in whole alignments as places are chosen,
        for the workspace and for the reserve."""
        least = self.fast.alignment
        sets = (sum(round_up(s.nbytes, lcm(s.alignment, least)) for s in together) for together in self._together)
        return max(sets, default=0) + self.workspace_nbytes + self.fast.reserve_nbytes

    @cached_property
    def _together(self) -> list[list[Storage]]:
        """The storages that each step touches."""
        found: list[list[Storage]] = [[] for _ in range(self.steps)]
        for item in self.items:
            for t in item.touches:
                found[t].append(self.graph.storage[item.storage])
        return found

    def alignment_of(self, item: int) -> int:
        """What the address of an item is a multiple of. What is at home streams straight from the blocks of its tier,
        where places are padded; what is spilled may lie anywhere, as its working sets must fit to the byte: the runtime
        copies it where blocks do not match."""
        found = self.items[item]
        own = lcm(self.graph.storage[found.storage].alignment, self.fast.alignment)
        return lcm(own, self.home.alignment) if found.homed and self.padded else own

    @cached_property
    def block_nbytes(self) -> int:
        """The unit of addresses that serves every item, and of the parts of items."""
        own = {self.graph.storage[i.storage].alignment for i in self.items}
        return lcm(*own, self.fast.alignment, self.home.alignment if self.padded else 1)

    @cached_property
    def gaps(self) -> tuple[ItemGap, ...]:
        """Every pause of at least one step between consecutive uses of an item; an item's last one wraps if homed."""
        return tuple(g for g in self._pauses if g.end > g.start + 1)

    def reordered(self, order: tuple[str, ...]) -> Instance:
        """The same graph on the same tiers, posed in another order of its operators. Raises InfeasibleError as
        `make_instance`."""
        posed = make_instance(self.graph, self.machine, mode=self.mode, order=order, engine=self.engine)
        return replace(posed, home=self.home, middle=self.middle)

    def relax(self, capacity_nbytes: int, *, time_limit_s: float) -> Result[ResidencySolution]:
        """The residency LP under a capacity that may be smaller than the instance's own; solved once for each, or
        again where time ran out and there is more now.

        With tiers in the middle: over the topmost of them, as if it held everything.
        """
        found, given_s = self._relaxed.get(capacity_nbytes, (None, 0.0))
        late = found is not None and found.status != Status.OPTIMAL and found.seconds >= given_s
        if found is None or (late and time_limit_s > given_s):
            with without_collecting():
                found = self._relaxer.solve(capacity_nbytes, time_limit_s=time_limit_s)
            self._relaxed[capacity_nbytes] = found, time_limit_s
        return found

    def remember(self, capacity_nbytes: int, result: Result[ResidencySolution]) -> None:
        """Let `relax` answer `result` for this capacity: that of a larger problem of which this one is a part."""
        self._relaxed[capacity_nbytes] = result, float("inf")

    @cached_property
    def digests(self) -> tuple[str, str]:
        """Digests of the graph and of the machine."""
        return digest(self.graph), digest(self.machine)

    @cached_property
    def _relaxed(self) -> dict[int, tuple[Result[ResidencySolution], float]]:
        return {}  # with the time limit that each was given

    @cached_property
    def _relaxer(self) -> Relaxer:
        return Relaxer(self.residency_problem(self.capacity_nbytes), engine=self.engine)

    def __getstate__(self) -> dict[str, object]:
        """What is copied to another process: all but the solver at work."""
        return {name: value for name, value in self.__dict__.items() if name != "_relaxer"}

    def residency_problem(self, capacity_nbytes: int) -> ResidencyProblem:
        """The problem that `relax` solves. Its gaps are `solver_gaps`: those of `gaps` first."""
        below = self.middle[0] if self.middle else self.home
        load = self.machine.link[below.name, self.fast.name]
        store = self.machine.link.get((self.fast.name, below.name))
        return ResidencyProblem(
            durations_ns=self.durations_ns,
            base_nbytes=self.operand_nbytes,
            gaps=self.solver_gaps,
            capacity_nbytes=capacity_nbytes,
            load_bytes_per_s=load.bytes_per_s,
            store_bytes_per_s=store.bytes_per_s if store else load.bytes_per_s / 1e6,
            periodic=True,
            shared_channel=store is not None and store.lane == load.lane,
        )

    @property
    def solver_gaps(self) -> tuple[Gap, ...]:
        """The gaps for a solver: those of `gaps`, then pauses in which nothing can leave but some of it be stored."""
        own = tuple(Gap(g.item, self._payload(g.item), g.start, g.end, g.clean, self._written(g)) for g in self.gaps)
        return own + self._pauses_of_none()

    def _payload(self, item: int) -> int:
        """Bytes of an item without the padding of its place: no plan moves fewer."""
        return self.graph.storage[self.items[item].storage].nbytes

    def _pauses_of_none(self) -> tuple[Gap, ...]:
        """Adjacent uses of what is dirty, after the gaps proper: nothing can leave there, but it may be stored
        meanwhile, and the bound must allow for that."""
        pauses = (g for g in self._pauses if g.end == g.start + 1 and not g.clean)
        return tuple(Gap(g.item, self._payload(g.item), g.start, g.end, False, self._written(g)) for g in pauses)

    def _written(self, gap: ItemGap) -> bool:
        """Whether the item is written for the last time in a pass at the step where the gap begins."""
        writes = self.items[gap.item].writes
        return bool(writes) and gap.start == writes[-1]

    @cached_property
    def _pauses(self) -> tuple[ItemGap, ...]:
        """Every pair of consecutive uses of an item; an item's last one wraps if it is homed."""
        found: list[ItemGap] = []
        for i, item in enumerate(self.items):
            ends = item.touches + ((item.touches[0] + self.steps,) if item.homed else ())
            clean = item.homed and not item.writes
            found += [ItemGap(i, n, a, b, clean) for n, (a, b) in enumerate(pairwise(ends))]
        return tuple(found)

    @cached_property
    def spill_nbytes(self) -> int | None:
        """Bytes that the home tier has left beside the weights, for what is spilled; None where it is taken to hold
        everything, as tiers in the middle are."""
        left = self.home.usable_nbytes - sum(s.nbytes for s in self.graph.storages if s.homed)
        return left if left >= 0 else None

    def spills_too_much(self, plan: Plan) -> bool:
        """Whether `plan` puts more into the home tier than it has left."""
        return self.spill_nbytes is not None and plan.arena_nbytes.get(self.home.name, 0) > self.spill_nbytes

    def peak_of_all(self) -> int:
        """Bytes that a pass holds at most when nothing ever leaves: the weights and the live rest."""
        homed = sum(i.nbytes for i in self.items if i.homed)
        change = [0] * (self.steps + 1)
        for item in self.items:
            if not item.homed:
                change[item.touches[0]] += item.nbytes
                change[item.touches[-1] + 1] -= item.nbytes
        live = peak = 0
        for delta in change:
            live += delta
            peak = max(peak, live)
        return homed + peak


@without_collecting()
def make_instance(
    graph: Graph,
    machine: Machine,
    *,
    mode: str = "inference",
    order: tuple[str, ...] | None = None,
    engine: str = AUTO,
) -> Instance:
    """Pose `graph` on `machine`: its first unit's tier, and below it the fastest chain of links to a tier that holds
    every weight; mostly that is one link.

    Raises InfeasibleError when an operator's operands and results alone exceed the tier, and InputError when no tier
    that links lead from can hold the weights.
    """
    order = order or tuple(op.id for op in graph.operators)
    unit = machine.units[0]
    fast = machine.tier[unit.tier]
    *middle, home = chain_below(graph, machine, fast)
    items = items_of(graph, order, home.alignment, fast.alignment)
    workspace = max((graph.operator[o].workspace_nbytes for o in order), default=0)
    instance = Instance(
        graph=graph,
        machine=machine,
        order=order,
        unit=unit,
        fast=fast,
        home=home,
        capacity_nbytes=fast.usable_nbytes - workspace,
        workspace_nbytes=workspace,
        durations_ns=tuple(duration_ns(graph.operator[o], unit) for o in order),
        items=items,
        base_nbytes=beside(items, len(order)),
        mode=mode,
        middle=tuple(middle),
        engine=engine,
    )
    if instance.peak_of_all() <= instance.capacity_nbytes:
        return instance
    bare = items_of(graph, order)
    bare = replace(instance, items=bare, base_nbytes=beside(bare, len(order)), padded=False)
    streams = bare.peak_of_all() > instance.capacity_nbytes  # else nothing is loaded in a pass, with blocks or without
    if streams and max(instance.base_nbytes) <= instance.capacity_nbytes:
        return instance
    _require_working_sets(bare)
    return bare


def _require_working_sets(instance: Instance) -> None:
    """An operator's operands and results must fit together: below this no plan of this order exists. The budget that
    the error names has them in whole alignments, as places are chosen."""
    needed = max(instance.extents_nbytes, default=0)
    if needed <= instance.capacity_nbytes:
        return
    worst = instance.extents_nbytes.index(needed)
    smallest = instance.smallest_budget
    raise InfeasibleError(
        f"op '{instance.order[worst]}' needs {format_size(needed + instance.workspace_nbytes)} in tier "
        f"'{instance.fast.name}', which holds {format_size(instance.fast.usable_nbytes)}; the smallest feasible "
        f"budget is --tier {instance.fast.name}={smallest}",
        smallest_nbytes=smallest,
    )
