"""Tests of tensorstow/moe_link.py and moe_forecast.py: the runtime's caches of experts in virtual time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tensorstow.ir.machine import Link
from tensorstow.ir.program import ExpertCaching, ExpertLayer
from tensorstow.moe_forecast import Forecast, forecast
from tensorstow.moe_link import VirtualLink
from tensorstow.moe_passes import Asked, Passes, after_half, drawn_passes, traced_passes
from tensorstow.planner.experts.trace import Trace
from tensorstow.planner.pytorch.experts_time import Pace
from tensorstow.planner.pytorch.generation import Workload
from tensorstow.runtime.module.experts_cache import ExpertCache
from tensorstow.runtime.module.experts_stats import ExpertStats
from tensorstow.solvers.caching.counted import DECAYED, replay_counted

LINK = Link("ssd", "dram", bytes_per_s=1e9)
SIZE = 1_000_000
"""Bytes of an expert: a millisecond of the link."""
MS = 1_000_000


def caching(
    experts: int, top_k: int, slots: int, *, layers: int = 1, ahead: int = 0, fused: bool = True, shared: bool = False
) -> ExpertCaching:
    each = tuple(ExpertLayer(f"{n}", experts, top_k, ("w",), SIZE, fused) for n in range(layers))
    return ExpertCaching(each, slots, shared, 0.95, ahead, 0.0, "")


def pace(layers: int, before_ms: float, each_ms: float, fixed_ms: float = 0.0) -> Pace:
    return Pace((round(before_ms * MS),) * layers, (fixed_ms * MS,) * layers, (each_ms * MS,) * layers)


def replay(choice: ExpertCaching, at: Pace, asked: list[Asked], link: Link = LINK) -> Forecast:
    return forecast(choice, at, link, after_half(asked))


def trace_of(ids: list[list[list[int]]], experts: int) -> Trace:
    found = np.array(ids, np.int32)
    return Trace(found, experts, np.array([0, len(ids)], np.int64), ("",))


def test_reads_share_the_link_and_others_queue() -> None:
    link = VirtualLink(1e9, 0, readers=2)
    one, two, three = (link.read(SIZE) for _ in range(3))
    link.wait(1 * MS)  # half of the first two
    assert (one.done(), three.done()) == (False, False)
    assert not one.cancel()
    link.finish(one)
    assert link.now_ns == pytest.approx(2 * MS)
    assert two.done()
    four = link.read(SIZE)
    five = link.read(SIZE)
    assert five.cancel()
    assert five.done()
    link.finish(four)
    assert link.now_ns == pytest.approx(4 * MS)  # beside the third one, both at half the rate
    link.wait(5 * MS)
    assert link.now_ns == pytest.approx(9 * MS)


def test_latency_is_of_each_read() -> None:
    link = VirtualLink(1e9, 0.5 * MS, readers=1)
    link.finish(link.read(SIZE))
    assert link.now_ns == pytest.approx(1.5 * MS)


def test_what_is_there_is_not_waited_for() -> None:
    passes: list[Asked] = [((0, 1),)] * 8
    found = replay(caching(8, 2, 2), pace(1, 2.0, 0.3, 0.4), passes)
    assert found.hit_rate == 1.0
    assert found.pass_ns == pytest.approx(3 * MS)
    assert found.wait_ns == (0.0,)
    assert found.read_nbytes == found.least_nbytes == 0


def test_what_never_comes_again_is_read_in_full() -> None:
    passes: list[Asked] = [((2 * k, 2 * k + 1),) for k in range(8)]
    found = replay(caching(16, 2, 4), pace(1, 2.0, 0.5), passes)
    assert found.hit_rate == 0.0
    assert found.wait_ns[0] == pytest.approx(2 * MS)  # both reads side by side, then both are computed
    assert found.pass_ns == pytest.approx(5 * MS)
    assert found.read_nbytes == 2 * SIZE
    assert found.least_nbytes == SIZE  # eight in four passes; four of them may lie there before


def test_a_trace_of_one_pass_says_nothing_of_what_must_be_read() -> None:
    """Nothing warms the caches; but when that pass comes again, all that it asks for may lie there."""
    once: list[Asked] = [((0, 1, 2),)]
    assert replay(caching(16, 3, 4), pace(1, 2.0, 0.5), once).least_nbytes == 0
    more = replay(caching(16, 3, 3), pace(1, 2.0, 0.5), [*once, ((3, 4, 5),), ((6, 7, 8),)])
    assert more.least_nbytes == 3 * SIZE / 2  # six in two passes; three of them may lie there before


def test_reads_ahead_are_hidden_behind_what_is_computed() -> None:
    pairs = [((2 * k, 2 * k + 1), (2 * k, 2 * k + 1)) for k in range(6)]  # the second layer follows the first one
    chosen = np.random.default_rng(0).integers(6, size=300).tolist()
    passes: list[Asked] = [pairs[k] for k in chosen]
    alone, ahead = (replay(caching(12, 2, 2, layers=2, ahead=most), pace(2, 4.0, 0.5), passes) for most in (0, 2))
    assert ahead.wait_ns[1] < 0.2 * alone.wait_ns[1]
    assert ahead.pass_ns < alone.pass_ns
    assert ahead.hit_rate > alone.hit_rate


def test_hits_are_those_of_the_policy() -> None:
    rng = np.random.default_rng(1)
    score = rng.gumbel(size=(60, 3, 12)) + 1.5 * rng.gumbel(size=(1, 3, 12))
    trace = Trace(np.argsort(-score)[:, :, :3].astype(np.int32), 12, np.array([0, 60], np.int64), ("",))
    whole = replay_counted(trace.requests(), 5, DECAYED)
    passes = traced_passes(trace, 1)
    assert passes.about == "30 passes after 30"
    found = forecast(caching(12, 3, 5, layers=3), pace(3, 0.1, 0.1), LINK, passes)
    assert found.hit_rate == pytest.approx(whole.hit_rate(slice(30, None)))
    assert 0 < found.least_nbytes <= found.read_nbytes


def test_even_routing_hits_as_often_as_slots_hold() -> None:
    choice = caching(32, 4, 8, layers=4)
    found = forecast(choice, pace(4, 0.1, 0.1), LINK, drawn_passes(choice, 1))
    assert found.hit_rate == pytest.approx(8 / 32, abs=0.02)
    again = forecast(choice, pace(4, 0.1, 0.1), LINK, drawn_passes(choice, 1))
    assert again == found


def test_tokens_of_a_pass_choose_together() -> None:
    trace = trace_of([[[0, 1]], [[1, 2]], [[3, 0]], [[3, -1]], [[5, 6]]], 8)
    assert traced_passes(trace, 2) == Passes((((1, 2, 3, 0),), ((3, 5, 6),)), (False, True))
    assert traced_passes(trace, 9) == Passes((((0, 1, 2, 3, 5, 6),),), (True,))
    (drawn,) = {len(asked[0]) for asked in drawn_passes(caching(4, 4, 4), 3).asked}
    assert drawn == 4


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_sets_that_do_not_fit_are_waited_for_again(fused: bool, shared: bool) -> None:
    passes: list[Asked] = [(tuple(range(6)), tuple(range(6)))] * 6
    choice = caching(8, 6, 2, layers=2, fused=fused, shared=shared)
    found = replay(choice, pace(2, 1.0, 0.1), passes)
    assert found.hit_rate < 0.4
    assert sum(found.wait_ns) >= 0.5 * (1 - found.hit_rate) * 12 * MS
    assert found.loop_ns == pytest.approx((0.6 * MS, 0.6 * MS))
    assert found.pass_ns == pytest.approx(sum(found.wait_ns) + 2 * 1.6 * MS)


def test_a_throttled_link_takes_as_long_as_predicted() -> None:
    """The same cache in real time, over a link on which one read after the other sleeps; what was slept is what the
    forecast is given, for sleeps end late on a busy machine."""
    rng = np.random.default_rng(2)
    passes: list[Asked] = [(tuple(rng.permutation(8)[:2].tolist()),) for _ in range(12)]
    choice, stats, link = caching(8, 2, 4), ExpertStats(), threading.Lock()
    reads: list[float] = []

    def load(expert: int, slot: int) -> None:
        with link:
            began = time.perf_counter()
            time.sleep(0.08)
            reads.append(time.perf_counter() - began)

    with ThreadPoolExecutor(4) as pool:
        cache = ExpertCache(8, 4, load, pool, decay=choice.decay, stats=stats)
        began = 0.0
        for number, (asked,) in enumerate(passes):
            if number == len(passes) // 2:
                began = time.perf_counter()
            cache.begin(asked)
            for expert in sorted(asked):
                cache.need(expert)
            cache.end()
        measured_s = (time.perf_counter() - began) / (len(passes) - len(passes) // 2)
    found = replay(choice, pace(1, 0.0, 0.0), passes, Link("ssd", "dram", SIZE / float(np.mean(reads))))
    assert 0 < found.hit_rate < 0.8
    assert 0.8 < measured_s / (found.pass_ns / 1e9) < 1.5


def test_texts_are_replayed_from_their_prompts_on() -> None:
    rng = np.random.default_rng(4)
    ids = np.argsort(rng.random((50, 1, 8)), axis=2)[:, :, :2].astype(np.int32)
    trace = Trace(ids, 8, np.array([0, 11, 30, 50], np.int64), ("", "", ""))
    work = Workload(batch=1, prompt=4, new=6)  # texts of nine tokens: one in the first prompt, two in each other one
    tokens, prompts = traced_passes(trace, 1, work), traced_passes(trace, 4, work)
    assert tokens.asked == prompts.asked
    assert len(tokens.asked) == 5 * 6
    assert set(tokens.asked[6][0]) == set(ids[11:15].flat)
    assert set(tokens.asked[-1][0]) == set(ids[47].flat)
    assert tokens.counted == (False,) * 6 + (False, *[True] * 5) * 4  # the first text warms up
    assert prompts.counted == (False,) * 6 + (True, *[False] * 5) * 4
    assert tokens.about == "20 passes between 10 others"
    assert traced_passes(trace, 3, work) == traced_passes(trace, 3)  # no pass of such a text
    long = Workload(batch=1, prompt=4, new=60)
    assert traced_passes(trace, 1, long) == traced_passes(trace, 1)
    drawn = drawn_passes(caching(8, 2, 4), 1, work)
    assert [len(asked[0]) for asked in drawn.asked[1:6]] == [2] * 5
    assert len(drawn.asked[0][0]) > 2


def test_what_a_prompt_leaves_is_what_a_token_finds() -> None:
    """Every prompt asks for all experts, then tokens ask for the same two: their first pass misses, the others hit."""
    prompt, token = (tuple(range(8)),), ((2, 3),)
    row: list[Asked] = [prompt, token, token, token]
    passes = Passes(tuple(row * 3), (False,) * 4 + (False, True, True, True) * 2)
    found = forecast(caching(8, 2, 2), pace(1, 2.0, 0.5), LINK, passes)
    assert found.hit_rate == pytest.approx(2 / 3)
    assert found.least_nbytes == 0  # what a prompt leaves might have been these two
    assert found.wait_ns[0] == pytest.approx(2 * MS / 3)
    only = replay(caching(8, 2, 2), pace(1, 2.0, 0.5), [token] * 12)
    assert only.hit_rate == 1.0
