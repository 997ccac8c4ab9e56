"""Plans on three tiers and more: two-tier plans, one below another.

The strategy plans the fast tier over the topmost middle tier, as if that held everything. Its transfers are then the
uses of that tier: a load must find its bytes there, a store makes them there. Which of them rest there, and which are
fetched from below each time, is decided by the residency LP of that tier (`levels_choose`), or by the same policy as
above for caches; addresses are found by the page (`levels_arena`); and the transfers between it and the next tier are
the uses of that one, down to the home tier. How much of a tier must be left to what passes through it is found by
search, and every candidate is scored by the simulator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..ir.errors import TimeLimitError
from ..ir.plan import Plan
from ..ir.simulate import simulate
from ..ir.sizes import format_size
from ..solvers.residency.problem import ResidencySolution
from ..solvers.residency.tiers import TieredSolution
from ..solvers.result import Result
from .instance import Instance
from .levels_arena import Settled, Times, settle
from .levels_bound import solve_instance
from .levels_choose import Away, Level, all_away, away_nbytes, cached, even, nothing_kept
from .levels_lower import Lowered, Move, lower, tightened, times_of
from .levels_pace import windows
from .levels_upper import estimate_s, lean_plans
from .levels_visits import Parcel, holds_of
from .order import StowBest
from .replay import farthest, least_recent
from .stow import Stow
from .strategies import Effort, Strategy

CUTS = (0.02, 0.05, 0.01, 0.1, 0.15, 0.2, 0.3, 0.4)
"""Shares of a middle tier left to what passes through it, tried first."""

SMALLER = (0.0, 0.02, 0.05, 0.1, 0.17, 0.25, 0.35, 0.5, 0.7, 0.9)
"""Parts of a middle tier that a cache gives up, one after another, until its parcels find addresses."""

PACES = (0.15, 0.02)
"""How much faster than the fluid optimum needs it the link of a slowed upper plan is."""

LEAN, LEAN_SHARE = 3, 0.3
"""How many upper plans of the search for lean ones are lowered, and the share of the time for that search."""

UPPER_SHARE, LEAST_SHARE = 0.5, 0.1
"""The share of the time that is left which the strategy itself has for plans of the two topmost tiers; and the share of
the limit that each of them has in any case, as has each lowering twice over."""

ROUNDS = 3
"""How often the windows of the transfers above are taken from the simulation of the best plan, and planned anew."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a middle tier is planned: the share left to what passes through it (1: nothing rests there); whether weights
    are divided evenly; which pages are taken first; whether fills begin ahead of their loads."""

    cut: float = 0.02
    even: bool = True
    oldest: bool = False
    early: bool = True


def plan_levels(strategy: Strategy, instance: Instance, effort: Effort) -> Plan:
    """The plan of `strategy` on an instance with tiers in the middle; on others what the strategy itself plans.

    Raises what the strategy raises, and TimeLimitError where a middle tier finds no addresses for what passes through.
    """
    if not instance.middle:
        return strategy.plan(instance, effort)
    began = time.monotonic()
    if isinstance(strategy, StowBest):
        strategy = Stow()
    top = top_instance(instance)
    relaxed = solve_instance(instance, time_limit_s=effort.time_limit_s / 2)
    policy = POLICIES.get(strategy.name)
    if policy is not None:
        return _by_policy(instance, strategy.plan(top, effort), policy, effort)
    search = _Search(instance, (relaxed.bound or 0.0) / 1e9)
    deadline = began + effort.time_limit_s
    for number, upper in enumerate(_upper_plans(strategy, instance, relaxed, effort, deadline)):
        if search.best is not None and (number >= LEAN or time.monotonic() > deadline):
            break
        left = max(deadline - time.monotonic(), 2 * LEAST_SHARE * effort.time_limit_s)
        search.run(upper, left / max(1, LEAN - number))
    if search.best is None:
        raise _no_addresses(instance, effort)
    return search.best.plan


def _upper_plans(
    strategy: Strategy, instance: Instance, relaxed: Result[TieredSolution], effort: Effort, deadline: float
) -> Iterator[Plan]:
    """Plans of the two topmost tiers, the likeliest best first.

    Where the tiers below are what limits the fluid optimum, the link of the two is taken to be only a little faster
    than that optimum needs it to be: then bytes are dear, and move evenly. `stow` plans are ranked by what the tiers
    below make of them; other strategies plan what they plan, with the link slowed and as it is.
    """
    top = top_instance(instance)
    slower = [s for s in (_slowed(instance, top, relaxed, spare) for spare in PACES) if s is not None]
    if relaxed.solution is not None:
        top.remember(top.capacity_nbytes, _first_side(relaxed, relaxed.solution))
    plans: list[Plan] = []
    if isinstance(strategy, Stow):
        posed = slower[0] if slower else top
        plans = lean_plans(instance, posed, strategy.name, effort, time_share=LEAN_SHARE, number=LEAN)
    first, others = (*slower[-1:], top), slower[:-1]
    time_s = UPPER_SHARE * (deadline - time.monotonic()) / len(first)
    shared = replace(effort, time_limit_s=max(time_s, LEAST_SHARE * effort.time_limit_s))
    plans += [p for p in (_found(strategy, posed, shared) for posed in first) if p is not None]
    yield from sorted(_on(instance, plans), key=lambda plan: estimate_s(instance, plan))
    yield from _on(instance, [p for p in (_found(strategy, posed, shared) for posed in others) if p is not None])
    if not plans:
        yield from _on(instance, [strategy.plan(top, effort)])  # or it says what it lacks


def _on(instance: Instance, plans: list[Plan]) -> list[Plan]:
    """Plans on a slowed machine as those of the machine itself."""
    return [replace(plan, machine=instance.digests[1]) for plan in plans]


def _found(strategy: Strategy, top: Instance, effort: Effort) -> Plan | None:
    """The plan of `strategy`; None where it ran out of time: another one may be found."""
    try:
        return strategy.plan(top, effort)
    except TimeLimitError:
        return None


def _slowed(instance: Instance, top: Instance, relaxed: Result[TieredSolution], spare: float) -> Instance | None:
    """`top` with its link so slow that it needs the time of the fluid optimum of all tiers, or `spare` less, for what
    is loaded there; None where it is no faster than that."""
    if relaxed.solution is None or not relaxed.bound:
        return None
    fast, under = top.fast.name, top.home.name
    pair = ((under, fast), (fast, under))
    absent, gaps = relaxed.solution.sides[0].absent, instance.solver_gaps
    loads = sum(e * gap.nbytes for e, gap in zip(absent, gaps, strict=True))
    factor = (1 + spare) * loads / (float(relaxed.bound) / 1e9) / top.machine.link[under, fast].bytes_per_s
    if not 0 < factor < 1:
        return None
    links = tuple(
        replace(k, bytes_per_s=k.bytes_per_s * factor) if (k.origin, k.target) in pair else k for k in top.machine.links
    )
    return replace(top, machine=replace(top.machine, links=links))


def _first_side(relaxed: Result[TieredSolution], solution: TieredSolution) -> Result[ResidencySolution]:
    return Result(relaxed.status, solution.sides[0], relaxed.objective, relaxed.bound, relaxed.seconds, relaxed.method)


def top_instance(instance: Instance) -> Instance:
    """The two topmost tiers of an instance, the second as the home of everything."""
    return replace(instance, home=instance.middle[0], middle=())


def _no_addresses(instance: Instance, effort: Effort) -> TimeLimitError:
    held = ", ".join(f"{format_size(t.usable_nbytes)} of tier '{t.name}'" for t in instance.middle)
    return TimeLimitError(
        f"no addresses were found inside {held} for what passes through in {effort.time_limit_s:g} s; give it more "
        "memory or time"
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """What a cache does at a middle tier: what is away under a capacity, and whether it fetches ahead."""

    decide: Callable[[Level, int], Away | None]
    early: bool


POLICIES: dict[str, Policy] = {
    "on-demand": Policy(lambda level, _: nothing_kept(level), early=False),
    "lru": Policy(lambda level, nbytes: cached(level, nbytes, least_recent), early=False),
    "belady": Policy(lambda level, nbytes: cached(level, nbytes, farthest), early=False),
    "belady-prefetch": Policy(lambda level, nbytes: cached(level, nbytes, farthest), early=True),
}
"""By strategy: the same policy for the tiers below."""


def _by_policy(instance: Instance, upper: Plan, policy: Policy, effort: Effort) -> Plan:
    def chosen(level: Level, number: int) -> list[Settled] | None:
        tier = instance.middle[number]
        for cut in SMALLER:
            away = policy.decide(level, int(level.capacity_nbytes * (1 - cut)))
            if away is None:
                continue
            settled = _settle(level, away, tier.name, early=policy.early, oldest=True)
            if settled is not None:
                return settled
        return None

    timeline = simulate(upper, instance.graph, instance.machine)
    for moves in windows(instance, upper, tightened(upper, timeline)):
        lowered = lower(instance, upper, moves, times_of(timeline), chosen)
        if lowered is not None:
            return lowered.plan
    raise _no_addresses(instance, effort)


@dataclass
class _Search:
    """Recipes that were tried on the windows at hand and the best plan found there; and the best plan of all."""

    instance: Instance
    bound_s: float
    deadline: float = 0.0
    best: Lowered | None = None
    found: Lowered | None = None
    scores: dict[Recipe, float] = field(default_factory=dict[Recipe, float])
    levels: dict[tuple[Parcel, ...], Level] = field(default_factory=dict[tuple[Parcel, ...], Level])

    @property
    def finished(self) -> bool:
        """As good as the bound says, or out of time with an answer; for a first one all recipes are tried."""
        if self.best is None:
            return False
        return self.best.plan.certificate.simulated_s <= self.bound_s * 1.001 or time.monotonic() > self.deadline

    def run(self, upper: Plan, time_s: float) -> None:
        """Coarse recipes, then finer ones around the best; then again with the windows that the transfers of the best
        plan were seen to need."""
        self.deadline = time.monotonic() + time_s
        timeline = simulate(upper, self.instance.graph, self.instance.machine)
        seen, times = tightened(upper, timeline), times_of(timeline)
        before = float("inf")
        for _ in range(ROUNDS):
            self.found = None
            for moves in windows(self.instance, upper, seen):
                self.scores, self.levels = {}, {}
                for recipe in self._recipes():
                    if self.finished:
                        return
                    self._score(recipe, upper, moves, times)
                if self.found is not None:
                    break
            if self.found is None or min(self.scores.values()) > 0.999 * before:
                return
            before = min(self.scores.values())
            timeline = simulate(self.found.plan, self.instance.graph, self.instance.machine)
            seen, times = tightened(upper, timeline, self.found.source), times_of(timeline)

    def _recipes(self) -> Iterator[Recipe]:
        """What to try next, depending on how what was tried has scored."""
        for cut in CUTS:
            yield Recipe(cut)
            tried = [self.scores[Recipe(c)] for c in CUTS if Recipe(c) in self.scores]
            if len(tried) > 3 and tried[-1] > 1.02 * min(tried):
                break
        if min(self.scores.values()) == float("inf"):  # the shortest stays take the least room
            yield from (Recipe(cut, early=False) for cut in CUTS)
            yield from (Recipe(1.0), Recipe(1.0, early=False))
        best = min(self.scores, key=lambda r: self.scores[r])
        yield replace(best, even=not best.even)
        yield replace(best, oldest=not best.oldest)
        for _ in range(3):
            best = min(self.scores, key=lambda r: self.scores[r])
            near = sorted({0.0, *(r.cut for r in self.scores)})
            at = near.index(best.cut)
            for other in (*near[max(at - 1, 0) : at], *near[at + 1 : at + 2]):
                yield replace(best, cut=(best.cut + other) / 2)

    def _score(self, recipe: Recipe, upper: Plan, moves: Sequence[Move], times: Times) -> None:
        def chosen(level: Level, number: int) -> list[Settled] | None:
            level = self.levels.setdefault(level.parcels, level)
            away = all_away(level)
            if recipe.cut < 1:
                relaxed = level.relaxed(int(recipe.cut * level.capacity_nbytes))
                if relaxed is None:
                    return None
                fractions, times = relaxed
                away = away_nbytes(level, even(level, fractions) if recipe.even else fractions)
                level = replace(level, times=times)
            tier = self.instance.middle[number].name
            return _settle(level, away, tier, early=recipe.early, oldest=recipe.oldest)

        lowered = lower(self.instance, upper, moves, times, chosen)
        seconds = lowered.plan.certificate.simulated_s if lowered else float("inf")
        if lowered is not None and seconds < min(self.scores.values(), default=float("inf")):
            self.found = lowered
        self.scores[recipe] = seconds
        if lowered is not None and (self.best is None or seconds < self.best.plan.certificate.simulated_s):
            self.best = lowered


def _settle(level: Level, away: Away, tier: str, *, early: bool, oldest: bool) -> list[Settled] | None:
    holds = [h for parcel, nbytes in zip(level.parcels, away, strict=True) for h in holds_of(parcel, nbytes)]
    return settle(holds, tier, level.capacity_nbytes, level.alignment, level.times, early=early, oldest=oldest)
