"""A graph on two tiers of a machine, in the terms that strategies decide on: steps, uses, gaps, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from ..ir.codec import digest
from ..ir.collecting import without_collecting
from ..ir.errors import InfeasibleError, InputError
from ..ir.graph import Graph, Storage
from ..ir.machine import Link, Machine, Tier, Unit
from ..ir.plan import Plan
from ..ir.sizes import format_size
from ..ir.uses import Uses, storage_uses
from ..solvers.engines import AUTO
from ..solvers.residency.lp import Relaxer
from ..solvers.residency.problem import Gap, ResidencyProblem, ResidencySolution
from ..solvers.result import Result, Status
from .costs import duration_ns


@dataclass(frozen=True, slots=True)
class Item:
    """A storage as strategies see it: the steps that touch it, in order, and the bytes it takes when placed.

    `homed` items have a copy below and are used pass after pass; the others live from their first step (an input from
    the beginning of the pass) to their last (an output to its end). `writes` are the touches that change it: a homed
    item with any must be stored before it is dropped. A storage that is made anew within a pass (recomputation) is an
    item for each time.
    """

    storage: str
    nbytes: int
    homed: bool
    touches: tuple[int, ...]
    writes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemGap:
    """The time between use number `before` of item `item` and the next one; steps as in `solvers` (end may wrap).

    `clean`: what the copy below holds is what the item holds, so that it may be dropped for nothing. An item that is
    written is dirty from its last write of a pass until it is stored, which then holds until the next one.
    """

    item: int
    before: int
    start: int
    end: int
    clean: bool


@dataclass(frozen=True)
class Instance:
    """What every strategy is given. `capacity_nbytes` is what the arena may take: the budget less the workspace.

    `middle` are the tiers between the fast one and the home tier, from above, where a machine needs them: `levels`
    plans those. A strategy sees two tiers. `engine` solves the residency programs: one of `engines.NAMES`.
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

    @property
    def steps(self) -> int:
        """Number of steps of a pass."""
        return len(self.order)

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
            base_nbytes=self.base_nbytes,
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


def round_up(nbytes: int, alignment: int) -> int:
    """The next multiple of `alignment` at or above `nbytes`."""
    return -(-nbytes // alignment) * alignment


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
    *middle, home = _chain_below(graph, machine, fast)
    uses = storage_uses(graph, order)
    first, last = _boundary(graph, len(order))
    items = tuple(
        Item(
            s.id,
            round_up(s.nbytes, home.alignment if s.homed else max(s.alignment, fast.alignment)),
            s.homed,
            touches,
            writes,
        )
        for s in graph.storages
        if s.nbytes > 0 and s.id in uses
        for touches, writes in _lives(s, uses[s.id], order, first.get(s.id, ()), last.get(s.id, ()))
    )
    base = [0] * len(order)
    for item in items:
        for t in item.touches:
            base[t] += item.nbytes
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
        base_nbytes=tuple(base),
        mode=mode,
        middle=tuple(middle),
        engine=engine,
    )
    _require_working_sets(instance)
    return instance


def _lives(
    storage: Storage, uses: Uses, order: tuple[str, ...], first: tuple[int, ...], last: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(touches, writes) of each time that a storage is made; one for most."""
    touches, writes = (*first, *uses.touches, *last), uses.writes
    anew = not storage.homed and not first and len({order[w] for w in writes}) == 1 < len(writes)
    if not anew:
        if touches:
            yield tuple(sorted(set(touches))), writes
        return
    for begin, end in pairwise((*writes, len(order))):
        yield tuple(sorted({t for t in touches if begin <= t < end})), (begin,)


def _boundary(graph: Graph, steps: int) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Inputs are written before the first step and outputs read after the last: they count as used there."""
    if not steps:
        return {}, {}
    return (
        dict.fromkeys(graph.storages_of(graph.inputs), (0,)),
        dict.fromkeys(graph.storages_of(graph.outputs), (steps - 1,)),
    )


def _chain_below(graph: Graph, machine: Machine, fast: Tier) -> tuple[Tier, ...]:
    """The tiers below `fast`, each reached by the fastest link from the one above, down to the first that holds all.

    Where that chain ends too early, the fastest tier linked to `fast` itself that holds all.
    """
    needed = sum(s.nbytes for s in graph.storages if s.homed)
    chain = [fast]
    while below := [k for k in _links_into(machine, chain[-1]) if machine.tier[k.origin] not in chain]:
        chain.append(machine.tier[below[0].origin])
        if chain[-1].usable_nbytes >= needed:
            return tuple(chain[1:])
    linked = [machine.tier[k.origin] for k in _links_into(machine, fast)]
    for tier in linked:
        if tier.usable_nbytes >= needed:
            return (tier,)
    known = {t.name: format_size(t.usable_nbytes) for t in (*linked, *chain[1:])}
    raise InputError(
        f"machine '{machine.name}': the weights take {format_size(needed)}, no tier linked to '{fast.name}' holds "
        f"them ({', '.join(f'{n}: {v}' for n, v in known.items()) or 'there is none'}); give one more: --tier NAME=SIZE"
    )


def _links_into(machine: Machine, tier: Tier) -> list[Link]:
    """Links into a tier, the fastest first."""
    return sorted((k for k in machine.links if k.target == tier.name), key=lambda k: -k.bytes_per_s)


def _require_working_sets(instance: Instance) -> None:
    """An operator's operands and results must fit together: below this no plan of this order exists."""
    if not instance.steps:
        return
    worst = max(range(instance.steps), key=lambda t: instance.base_nbytes[t])
    needed = instance.base_nbytes[worst]
    if needed > instance.capacity_nbytes:
        smallest = needed + instance.workspace_nbytes + instance.fast.reserve_nbytes
        raise InfeasibleError(
            f"op '{instance.order[worst]}' needs {format_size(needed + instance.workspace_nbytes)} in tier "
            f"'{instance.fast.name}', which holds {format_size(instance.fast.usable_nbytes)}; the smallest feasible "
            f"budget is --tier {instance.fast.name}={smallest}",
            smallest_nbytes=smallest,
        )
