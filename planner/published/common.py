"""What the published strategies share: use blocks, alignment, copy times, and the step from decisions to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...ir.errors import InfeasibleError, TimeLimitError
from ...ir.machine import Link
from ...ir.plan import Plan
from ..fit import fit
from ..instance import Instance
from ..one_way import removable_gaps
from ..place import place
from ..realise import realise
from ..stays import Decisions, Placed, Stay, make_stays
from ..strategies import Effort

Proposal = tuple[Decisions, "list[Placed] | None"]
"""What leaves when, and the addresses and intervals of the method itself where it found all of them."""


def load_link(instance: Instance) -> Link:
    """The link that fills the fast tier."""
    return instance.machine.link[instance.home.name, instance.fast.name]


def use_blocks(instance: Instance) -> list[Stay]:
    """Every item cut at every gap in which it could leave: the stays of a machine that keeps nothing."""
    return make_stays(instance, frozenset((g.item, g.before) for g in removable_gaps(instance)))


def payload_nbytes(instance: Instance, item: int) -> int:
    """Bytes that a copy of the item moves."""
    return instance.graph.storage[instance.items[item].storage].nbytes


def plan_of(instance: Instance, effort: Effort, name: str, propose: Callable[[int], Proposal | None]) -> Plan:
    """The plan of `propose(capacity_nbytes)`.

    A method that chose all its addresses is realised with them. Its decisions are also placed by our own placement,
    which may start loads earlier, and the fastest plan counts, so that no method suffers for its allocator. Where it
    has no addresses of its own, the capacity it is told falls until ours finds some, as for every baseline. Raises
    InfeasibleError and TimeLimitError as `fit` does.
    """
    proposal = propose(instance.capacity_nbytes)
    own = proposal[1] if proposal is not None else None
    if proposal is not None and own is not None:
        plans = [realise(instance, own, name)]
        for decisions in ways(proposal[0]):
            stays = make_stays(instance, decisions.evicted)
            placed = place(instance, stays, decisions, packing_time_s=effort.time_limit_s / 8, seed=effort.seed)
            plans += [] if placed is None else [realise(instance, placed, name)]
        return min(plans, key=lambda p: p.certificate.simulated_s)
    known = {instance.capacity_nbytes: proposal}

    def decide(capacity_nbytes: int) -> Decisions | None:
        if capacity_nbytes not in known:
            known[capacity_nbytes] = propose(capacity_nbytes)
        told = known[capacity_nbytes]
        return told[0] if told is not None else None

    return fitted(instance, effort, name, decide)


def ways(decisions: Decisions) -> tuple[Decisions, ...]:
    """The same decisions for each of the two ways in which our placement finds addresses for what moves."""
    return (decisions, replace(decisions, timed=True)) if decisions.prefetch else (decisions,)


def fitted(
    instance: Instance,
    effort: Effort,
    name: str,
    decide: Callable[[int], Decisions | None],
    adjust: Callable[[list[Placed]], None] = lambda _: None,
) -> Plan:
    """The faster of what `fit` finds in both ways, its pieces changed by `adjust`; raises what `fit` raises."""
    plans: list[Plan] = []
    failure: InfeasibleError | TimeLimitError | None = None
    for timed in (False, True):

        def decided(capacity_nbytes: int, timed: bool = timed) -> Decisions | None:
            decisions = decide(capacity_nbytes)
            return None if decisions is None else ways(decisions)[-1 if timed else 0]

        try:
            placed = fit(instance, decided, packing_time_s=effort.time_limit_s / 8, seed=effort.seed, strategy=name)
        except (InfeasibleError, TimeLimitError) as error:
            failure = failure or error
            continue
        adjust(placed)
        plans.append(realise(instance, placed, name))
    if failure is not None and not plans:
        raise failure
    return min(plans, key=lambda p: p.certificate.simulated_s)
