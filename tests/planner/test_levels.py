"""Plans on three and four tiers: every one passes the checker, none is below the bound, caches are comparable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, InputError, TimeLimitError
from tensorstow.ir.graph import Graph
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.plan import Plan, Transfer
from tensorstow.planner.instance import Instance, make_instance
from tensorstow.planner.levels import plan_levels, top_instance
from tensorstow.planner.levels_arena import Times, settle
from tensorstow.planner.levels_bound import tiered_bound
from tensorstow.planner.levels_pace import crowded, paced
from tensorstow.planner.levels_upper import estimate_s, lean_plans
from tensorstow.planner.levels_visits import Hold, holds_of, parcels_of
from tensorstow.planner.stow import Stow
from tensorstow.planner.strategies import Effort, Strategy, strategies

from ..graphs import KIB, chain, training

STOW, *BASELINES = strategies(["stow", "on-demand", "lru", "belady", "belady-prefetch"])
ON_DEMAND, _, BELADY, BELADY_PREFETCH = BASELINES


def tower(*tiers: tuple[str, int], rates: tuple[float, ...], channel: str | None = None) -> Machine:
    """Tiers from the fast one down, by name and capacity, the last with blocks of 4 KiB; links both ways."""
    kinds = {"hbm": TierKind.HBM, "dram": TierKind.DRAM, "cxl": TierKind.DRAM, "ssd": TierKind.SSD}
    names = [name for name, _ in tiers]
    links: list[Link] = []
    for upper, lower, rate in zip(names, names[1:], rates, strict=False):
        links += [Link(lower, upper, rate, channel=channel), Link(upper, lower, rate, channel=channel)]
    return Machine(
        name="tower",
        tiers=tuple(Tier(n, kinds[n], c, alignment=4096 if n == names[-1] else 64) for n, c in tiers),
        links=tuple(links),
        units=(Unit("gpu", names[0], (("float32", 1e12),), 1e12),),
    )


def three(graph: Graph, fast: float, middle: float, up: float, below: float, channel: str | None = None) -> Machine:
    """Capacities as shares of what is homed, rates as shares of those that move all of it in the time of computing."""
    homed = sum(s.nbytes for s in graph.storages if s.homed)
    rate = homed / (sum(o.measured_ns or 0 for o in graph.operators) / 1e9)
    sizes = ("hbm", int(fast * homed)), ("dram", int(middle * homed)), ("ssd", 1 << 40)
    return tower(*sizes, rates=(up * rate, below * rate), channel=channel)


def planned(strategy: Strategy, instance: Instance, seconds: float = 4.0) -> Plan:
    plan = plan_levels(strategy, instance, Effort(seconds))
    assert not check(plan, instance.graph, instance.machine)
    assert plan.home_tier == instance.home.name
    bound = tiered_bound(instance, 30.0)
    assert bound is not None
    assert plan.certificate.simulated_s >= bound[0] * (1 - 1e-6)
    return plan


STREAMED = chain([256 * KIB] * 24, ns=10_000)


def test_the_home_is_where_the_chain_of_links_reaches_a_tier_that_holds_everything() -> None:
    small = make_instance(STREAMED, three(STREAMED, 0.4, 0.5, 1.0, 1.0))
    assert (small.home.name, [t.name for t in small.middle]) == ("ssd", ["dram"])
    large = make_instance(STREAMED, three(STREAMED, 0.4, 1.1, 1.0, 1.0))
    assert (large.home.name, large.middle) == ("dram", ())
    nowhere = three(STREAMED, 0.4, 0.5, 1.0, 1.0).with_capacity({"ssd": 1 << 20})
    with pytest.raises(InputError, match=r"weights take 6\.0 MiB, no tier linked to 'hbm' holds"):
        make_instance(STREAMED, nowhere)


def test_a_middle_tier_that_is_not_needed_changes_nothing() -> None:
    instance = make_instance(STREAMED, three(STREAMED, 0.4, 1.1, 2.0, 1.0))
    plan = plan_levels(ON_DEMAND, instance, Effort(2.0))
    assert plan == ON_DEMAND.plan(instance, Effort(2.0))


@pytest.mark.parametrize("strategy", BASELINES, ids=lambda s: s.name)
def test_caches_keep_their_policy_at_each_level(strategy: Strategy) -> None:
    instance = make_instance(STREAMED, three(STREAMED, 0.4, 0.5, 2.0, 1.0))
    plan = planned(strategy, instance)
    moved = plan.certificate.moved_nbytes
    assert moved["ssd->dram"] <= moved["dram->hbm"]
    if strategy.name in ("on-demand", "lru"):  # a cyclic pass defeats both
        assert moved["ssd->dram"] == moved["dram->hbm"] == 24 * 256 * KIB
    else:
        assert moved["ssd->dram"] < 0.5 * moved["dram->hbm"]


def test_ours_is_no_slower_than_the_caches_and_near_the_bound_where_the_links_suffice() -> None:
    instance = make_instance(STREAMED, three(STREAMED, 0.4, 0.5, 2.0, 1.0))
    ours = planned(STOW, instance)
    for strategy in BASELINES:
        assert ours.certificate.simulated_s <= planned(strategy, instance).certificate.simulated_s
    bound = tiered_bound(instance, 30.0)
    assert bound is not None
    assert bound[1].startswith("residency LP on 3 tiers: any plan of this operator order on hbm, dram, ssd")


def test_what_rests_in_the_middle_is_not_fetched_and_the_rest_comes_by_two_links() -> None:
    instance = make_instance(STREAMED, three(STREAMED, 0.4, 0.5, 2.0, 1.0))
    plan = planned(STOW, instance)
    moved = plan.certificate.moved_nbytes
    assert set(moved) == {"dram->hbm", "ssd->dram"}
    for_ever = [r for r in plan.residencies if r.tier == "dram" and r.end - r.start == instance.steps]
    assert moved["dram->hbm"] == moved["ssd->dram"] + sum(r.nbytes for r in for_ever)
    assert plan.certificate.peak_nbytes["dram"] <= instance.machine.tier["dram"].usable_nbytes


def test_a_shared_channel_and_four_tiers() -> None:
    instance = make_instance(STREAMED, three(STREAMED, 0.4, 0.5, 3.0, 3.0, channel="bus"))
    planned(BELADY, instance)
    planned(STOW, instance, 2.0)
    sizes = ("hbm", 10 * 256 * KIB), ("dram", 8 * 256 * KIB), ("cxl", 6 * 256 * KIB), ("ssd", 1 << 40)
    four = make_instance(STREAMED, tower(*sizes, rates=(60e9, 40e9, 20e9)))
    assert [t.name for t in four.middle] == ["dram", "cxl"]
    for strategy in (ON_DEMAND, BELADY_PREFETCH, STOW):
        plan = planned(strategy, four, 2.0)
        assert set(plan.certificate.moved_nbytes) >= {"dram->hbm", "cxl->dram", "ssd->cxl"}


TRAINING = training([64 * KIB] * 8, activation=64 * KIB, ns=10_000)


def test_training_updates_and_spills_through_the_middle() -> None:
    """Weights and optimizer states are written each pass; they and the spills go down as far as there is no room."""
    instance = make_instance(TRAINING, three(TRAINING, 0.55, 0.6, 4.0, 4.0))
    plan = planned(STOW, instance, 2.0)
    assert plan.certificate.moved_nbytes["hbm->dram"] > 0
    smaller = make_instance(TRAINING, three(TRAINING, 0.55, 0.35, 4.0, 4.0))
    plan = planned(STOW, smaller, 2.0)
    assert plan.certificate.moved_nbytes["dram->ssd"] > 0


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 0.8), st.floats(0.2, 0.7), st.floats(0.3, 4.0), st.floats(0.2, 2.0))
def test_any_machine_gives_a_right_plan_or_says_why_not(
    seed: int, fast: float, middle: float, up: float, below: float
) -> None:
    sizes = [(1 + (seed >> i) % 5) * 16 * KIB for i in range(10)]
    graph = chain(sizes, ns=5000, skip=seed % 2)
    try:
        instance = make_instance(graph, three(graph, fast, middle, up, below))
        if not instance.middle:
            return
        for strategy in (BELADY, STOW):
            planned(strategy, instance, 1.0)
    except (InfeasibleError, TimeLimitError) as error:
        assert "tier" in str(error)


def loads(*windows: tuple[int, int], storage: str = "w0", nbytes: int = 100) -> list[Transfer]:
    return [Transfer(storage, 0, nbytes, "dram", "hbm", a, b) for a, b in windows]


def test_stays_follow_from_what_is_away() -> None:
    graph = chain([100] * 4)
    (parcel,) = parcels_of(graph, loads((1, 2), (5, 7)), "dram", 10)
    assert [(p.start, p.end, p.clean, p.dead) for p in parcel.pauses] == [(2, 5, True, False), (7, 11, True, False)]
    (whole,) = holds_of(parcel, [0, 0])
    assert whole.always
    kinds = [(h.lo, h.hi, h.start, h.end, h.fill_before, h.drain_after) for h in holds_of(parcel, [0, 100])]
    assert kinds == [(0, 100, 1, 7, 2, None)]
    split = [(h.lo, h.hi, h.start, h.end, h.always) for h in holds_of(parcel, [64, 0])]
    assert split == [(0, 64, 5, 12, False), (64, 100, 0, 10, True)]


def test_stays_of_what_is_written_end_with_a_drain_unless_it_is_overwritten() -> None:
    graph = chain([100] * 4)
    down = Transfer("w0", 0, 100, "hbm", "dram", 5, 6)
    (parcel,) = parcels_of(graph, [*loads((1, 2)), down], "dram", 10)
    assert [(p.start, p.end, p.clean, p.dead) for p in parcel.pauses] == [(2, 5, True, True), (6, 11, False, False)]
    kept = [(h.start, h.end, h.fill_before, h.drain_after) for h in holds_of(parcel, [0, 0])]
    assert kept == [(5, 12, None, None)]
    away = [(h.start, h.end, h.fill_before, h.drain_after) for h in holds_of(parcel, [0, 100])]
    assert sorted(away) == [(1, 2, 2, None), (5, 6, None, 6)]


def hold(name: str, nbytes: int, start: int, end: int, **changes: int | bool | None) -> Hold:
    own: dict[str, int | bool | None] = {"fill_before": end, "drain_after": None, "always": False}
    own |= {"earliest": start - 5, "latest": end + 5} | changes
    return Hold(name, 0, nbytes, True, start, end, **own)  # type: ignore[arg-type]  # pyright: ignore


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=12))
def test_addresses_never_overlap(rows: list[tuple[int, int, int]]) -> None:
    holds = [hold(f"w{i}", nbytes, a, a + length) for i, (nbytes, a, length) in enumerate(rows)]
    times = Times(tuple(range(0, 110, 10)), 0.01, 0.01)
    settled = settle(holds, "dram", 16_000, 64, times, early=True, oldest=False)
    if settled is None:
        live = max(sum(h.nbytes + 4 * 64 for h in holds if (t - h.start) % 10 < h.end - h.start) for t in range(10))
        assert live > 16_000 / 3
        return
    assert sorted(s.hold.storage for s in settled) == sorted(h.storage for h in holds)
    taken: set[tuple[int, int]] = set()
    for s in settled:
        assert sum(r.nbytes for r in s.residencies) == s.hold.nbytes
        assert s.start % 10 <= s.hold.start or s.start < s.hold.start
        for r in s.residencies:
            assert r.offset + r.nbytes <= 16_000
            own = {(t % 10, page) for t in range(r.start, r.end) for page in range(r.offset, r.offset + r.nbytes)}
            assert not taken & own
            taken |= own


def test_a_region_that_what_is_small_takes_whole_has_no_addresses_for_the_rest() -> None:
    """Small holds get a region of their own; where that is all there is, the answer is None, not an error."""
    times = Times(tuple(range(9)), 0.001, 0.001)
    room = 1 << 20
    page = room // 1024
    sizes = [7 * page] * 200 + [16 * page]
    holds = [Hold(f"s{k}", 0, n, True, 0, 4, 0, None, False, -4, 8) for k, n in enumerate(sizes)]
    assert settle(holds, "dram", room, 64, times, early=False, oldest=False) is None


def test_where_the_slowest_link_limits_upper_plans_are_ranked_by_what_they_load() -> None:
    """`lean_plans` come best first by an estimate that no plan on all tiers with their loads is below."""
    graph = chain([192 * KIB, 64 * KIB, 320 * KIB] * 12, ns=10_000)
    instance = make_instance(graph, three(graph, 0.3, 0.4, 2.0, 0.2))
    top = top_instance(instance)
    found = lean_plans(instance, top, "stow", Effort(4.0), time_share=0.5, number=3)
    estimates = [estimate_s(instance, plan) for plan in found]
    assert found
    assert estimates == sorted(estimates)
    plan = planned(STOW, instance, 6.0)
    assert estimate_s(instance, plan) == plan.certificate.simulated_s


def test_a_strategy_that_finds_no_plan_on_the_slowed_link_may_find_one_on_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The search over the slowed link runs out of time, the one over the whole link does not."""
    instance = make_instance(STREAMED, three(STREAMED, 0.3, 0.4, 2.0, 0.2))
    whole, calls = type(BELADY).plan, list[float]()

    def plan(self: Strategy, top: Instance, effort: Effort) -> Plan:
        rate = top.machine.link["dram", "hbm"].bytes_per_s
        calls.append(rate)
        if rate == min(calls):
            raise TimeLimitError("no addresses were found")
        return whole(BELADY, top, effort)

    def none_found(*given: object, **named: object) -> list[Plan]:
        del given, named
        return []

    monkeypatch.setattr(Stow, "plan", plan)
    monkeypatch.setattr("tensorstow.planner.levels.lean_plans", none_found)
    assert planned(STOW, instance)
    assert len(set(calls)) > 1


def test_what_is_made_goes_through_a_middle_tier_that_holds_less_than_one_step_moves() -> None:
    """Activations wait for the backward pass at the bottom; while a step waits, more passes than the middle holds."""
    graph = training([12 * KIB] * 8, activation=64 * KIB, ns=2000)
    sizes = ("hbm", 440 * KIB), ("dram", 160 * KIB), ("ssd", 1 << 40)
    instance = make_instance(graph, tower(*sizes, rates=(16.0e9, 4.0e9)), mode="training")
    assert instance.peak_of_all() > instance.capacity_nbytes + 160 * KIB
    plan = planned(STOW, instance, 6.0)
    assert plan.arena_nbytes["dram"] <= 160 * KIB
    assert plan.arena_nbytes["ssd"] > 160 * KIB


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 12), st.integers(1, 40)), max_size=8), st.integers(1, 40))
def test_paced_transfers_keep_their_windows_and_the_room(jobs: list[tuple[int, int, int]], room: int) -> None:
    steps = 12
    wide = [Transfer(f"s{i}", 0, 64 * n, "dram", "hbm", a, min(a + w, a + steps)) for i, (a, w, n) in enumerate(jobs)]
    parts = paced(wide, wide, steps, 64 * room, 64)
    if parts is None:
        assert crowded(wide, steps, 64 * room)
        return
    assert not crowded([t for t, _ in parts], steps, 64 * room)
    for i, whole in enumerate(wide):
        own = sorted((t for t, source in parts if source == i), key=lambda t: t.lo)
        assert [t.lo for t in own] == [whole.lo, *(t.hi for t in own[:-1])]
        assert own[-1].hi == whole.hi
        for t in own:
            after = t.after if t.after >= whole.after else t.after + steps
            assert after + t.before - t.after <= whole.before
            assert t.before <= t.after + 1
