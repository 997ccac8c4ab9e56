"""The residency problem of an instance on all of its tiers, and what it proves."""

from __future__ import annotations

from ..ir.errors import InfeasibleError
from ..solvers.engines import linear_engine
from ..solvers.residency.tiers import TieredProblem, TieredSolution, TierLink, solve_tiers
from ..solvers.result import Result
from .instance import Instance

BOUND_KIND = "residency LP on {tiers} tiers: any plan of this operator order on {names}, any store times, any caching"


def tiered_problem(instance: Instance) -> TieredProblem:
    """The instance's order on its fast tier, its middle ones and its home, with every link of the machine among them.

    The home tier has no limit there: what it holds at home is not counted. A machine with links between other tiers
    than these offers ways that the problem does not know; a plan that keeps to the instance's tiers does not use them.
    """
    tiers = (instance.fast, *instance.middle, instance.home)
    index = {t.name: k for k, t in enumerate(tiers)}
    links = tuple(
        TierLink(index[k.origin], index[k.target], k.bytes_per_s, k.channel)
        for k in instance.machine.links
        if k.origin in index and k.target in index
    )
    return TieredProblem(
        durations_ns=instance.durations_ns,
        base_nbytes=instance.operand_nbytes,
        gaps=instance.solver_gaps,
        capacities_nbytes=(instance.capacity_nbytes, *(t.usable_nbytes for t in instance.middle), None),
        links=links,
        periodic=True,
    )


def solve_instance(instance: Instance, *, time_limit_s: float) -> Result[TieredSolution]:
    """The LP of `tiered_problem`. Raises InfeasibleError where it is infeasible, with the reason."""
    engine = linear_engine(instance.engine)
    result = solve_tiers(tiered_problem(instance), time_limit_s=time_limit_s, engine=engine)
    if result.status.value == "infeasible":
        names = ", ".join(t.name for t in (instance.fast, *instance.middle, instance.home))
        raise InfeasibleError(f"'{instance.graph.name}' does not run on tiers {names}: {result.detail}")
    return result


def tiered_bound(instance: Instance, time_limit_s: float) -> tuple[float, str] | None:
    """Seconds that no plan of the instance's order on its tiers is below, and for which plans that holds; None where
    time ran out before anything was proven."""
    result = solve_instance(instance, time_limit_s=time_limit_s)
    if result.bound is None:
        return None
    tiers = (instance.fast, *instance.middle, instance.home)
    return float(result.bound) / 1e9, BOUND_KIND.format(tiers=len(tiers), names=", ".join(t.name for t in tiers))
