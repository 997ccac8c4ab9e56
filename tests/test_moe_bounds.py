"""Tests of tensorstow/moe_bounds.py, moe_report.py, runtime/module/experts_stats.py: plans that leave experts in the
store, what none of them is below, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tensorstow.ir.program import ExpertCaching, ExpertLayer
from tensorstow.moe_bounds import bounded, compared, reads_hidden
from tensorstow.moe_report import run_texts, steady_nbytes
from tensorstow.planner.compare import compare
from tensorstow.runtime.module.experts_stats import ExpertStats, Noted, seen_in

from .graphs import chain, machine

LAYER = ExpertLayer("0", 8, 2, ("w",), 1000, True)
CACHING = ExpertCaching((LAYER,), 4, False, 0.95, 0, 0.5, "", wait_ns=(1_000_000,), least_nbytes=0.0, traced=True)


def test_a_bound_is_of_any_cache() -> None:
    at = machine(1 << 20, bytes_per_s=1e9)
    bound_s, kind = reads_hidden(0.005, "compute: all", CACHING, at)
    assert bound_s == pytest.approx(0.004)  # pyright: ignore[reportUnknownMemberType]
    assert kind.startswith("compute: all; experts' reads behind it")
    bound_s, kind = reads_hidden(0.005, "compute: all", replace(CACHING, least_nbytes=6e6), at)
    assert bound_s == pytest.approx(0.006)  # pyright: ignore[reportUnknownMemberType]
    assert kind.startswith("experts' reads: what caches of 4 slots")


@pytest.mark.parametrize("least_nbytes", [0.0, 3_500_000.0])
def test_a_comparison_has_the_bounds_of_its_plans(least_nbytes: float) -> None:
    caching = replace(CACHING, least_nbytes=least_nbytes)
    graph, at = chain([64 << 10] * 4, ns=1_000_000), machine(160 << 10, bytes_per_s=1e9)
    plain = compare(graph, at, ("stow", "on-demand"), time_limit_s=2)
    found = compared(plain, caching, at)
    assert found.bound.seconds == pytest.approx(max(plain.bound.seconds - 0.001, least_nbytes / 1e9))  # pyright: ignore[reportUnknownMemberType]
    for before, row in zip(plain.rows, found.rows, strict=True):
        assert before.plan is not None and row.plan is not None and row.bound is not None
        assert row.plan == bounded(before.plan, caching, at) == row.runs[0].plan
        said = row.plan.certificate
        assert row.bound.seconds == row.runs[0].bound.seconds == said.bound_s  # pyright: ignore[reportOptionalMemberAccess]
        assert row.status == said.status
        assert found.gap(row) == pytest.approx(said.simulated_s / found.bound.seconds - 1)  # pyright: ignore[reportUnknownMemberType]
    assert max(bound.seconds for bound in found.bounds) == pytest.approx(found.bound.seconds)  # pyright: ignore[reportUnknownMemberType]


def test_what_passes_were_seen_to_wait() -> None:
    """Two layers, the second called twice in a pass; of three passes the first is not counted."""
    stats, noted = ExpertStats(), list[Noted]()
    noted.append((-1, replace(stats)))
    waits = ((9, 9, 9), (1, 2, 5), (3, 0, 4))
    for row in waits:
        for layer, ns in zip((0, 1, 1), row, strict=True):
            stats.stalled_ns += ns
            stats.hits += 1
            stats.misses += row[0] == 3
            stats.read_nbytes += 100
            noted.append((layer, replace(stats)))
    seen = seen_in(noted, 2, 2)
    assert seen.wait_ns == (3, 5 + 4)
    assert seen.hit_rate == 6 / 9
    assert seen.read_nbytes == 300


FACTS: dict[str, Any] = {
    "hit_rate": 0.81, "predicted_hit_rate": 0.16, "rests_on": "if tokens choose evenly and independently",
    "traced": False, "misses": 3, "ahead": 2, "ahead_used": 1, "read_nbytes": 10.0, "predicted_read_nbytes": 9.0,
    "stalled_s": 0.1, "predicted_wait_s": 0.2, "predicted_at_hit_rate_s": 0.3, "passes": 2,
    "first_pass": {"read_nbytes": 4096, "stalled_s": 0.5},
}  # fmt: skip


def test_what_did_not_hold_is_said() -> None:
    said = " ".join(run_texts(FACTS))
    assert "hit rate 0.81, predicted 0.16" in said
    assert "a pass read 5 bytes" in said
    assert "these did not" in said
    assert "--routing FILE" in said
    assert "the first pass, which began with empty caches, read 4.0 KiB" in said
    assert len(run_texts(FACTS | {"predicted_hit_rate": 0.8})) == 1
    other = run_texts(FACTS | {"traced": True, "rests_on": "in the last 9"})
    assert "the routing was not that in the last" in other[1]
    only = run_texts(FACTS | {"first_pass": None, "passes": 1})
    assert "caches were empty" in only[1] and "--routing" not in only[1]


def test_what_a_pass_reads_is_without_the_first_ones_experts() -> None:
    assert steady_nbytes(None, 300, 3) == 100
    assert steady_nbytes(FACTS | {"first_pass": None}, 300, 3) == 100
    # three passes read 100 bytes of other weights each; experts 4,096 in the first and 10 in the two others
    assert steady_nbytes(FACTS, 300 + 4096 + 10, 3) == 105
