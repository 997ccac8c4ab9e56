"""Summaries of events against numbers worked out by hand."""

from __future__ import annotations

from tensorstow.runtime.profile import busy_ns, summarise
from tensorstow.runtime.trace import Event


def test_medians_over_passes_and_rates_over_busy_time() -> None:
    passes = [
        [Event("cpu", "a", 0, ns), Event("in", "w", 0, 1000, 4000), Event("in", "w", 500, 1500, 2000)]
        for ns in (30, 10, 20)
    ]
    found = summarise(passes, {"cpu"})
    assert found.operator_ns == {"a": 20}
    assert found.lane_bytes_per_s == {"in": 6000 / 1500e-9}


def test_time_that_overlaps_counts_once() -> None:
    events = [Event("in", "", 0, 10, 1), Event("in", "", 5, 8, 1), Event("in", "", 20, 25, 1)]
    assert busy_ns(events) == 15
    assert busy_ns([]) == 0
