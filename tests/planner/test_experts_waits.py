"""Waits for experts under a link model, and their bound."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from tensorstow.ir.errors import InputError
from tensorstow.planner.experts.stall import LinkModel, stall_rows

from .test_experts import made_up


def test_waits_in_time() -> None:
    trace = made_up(prompts=4)
    rows = {row.schedule: row for row in stall_rows(trace, (4,), LinkModel(0.05, 0.02), warm_tokens=80)}
    assert rows["bound"].stall_ms <= rows["known routes"].stall_ms <= rows["lru on demand"].stall_ms
    assert rows["recall, prefetch by forecast"].net_ms > rows["recall, prefetch by forecast"].stall_ms
    for load_ms, layer_ms in ((0.0, 0.02), (nan, 0.02), (inf, 0.02), (0.05, nan), (0.05, inf), (0.05, -1.0)):
        with pytest.raises(InputError, match="above 0"):
            stall_rows(trace, (4,), LinkModel(load_ms, layer_ms), warm_tokens=0)


def test_waits_of_bytes_are_those_of_experts() -> None:
    """A load's time is of an expert of the mean size; sizes alike are what they are without sizes."""
    trace = made_up(prompts=4)
    sized = replace(trace, sizes=np.full((3, 8), 12_582_912, np.int64))
    plain, rows = (
        {row.schedule: row for row in stall_rows(t, (4 * size,), LinkModel(0.05, 0.02), warm_tokens=80)}
        for t, size in ((trace, 1), (sized, 12_582_912))
    )
    assert rows["bound"].stall_ms > 0
    for schedule, row in rows.items():
        assert row.stall_ms == pytest.approx(plain[schedule].stall_ms, rel=1e-3)  # pyright: ignore[reportUnknownMemberType]
        assert row.complete


def test_a_bound_that_ran_out_of_time_says_so() -> None:
    rows = stall_rows(made_up(prompts=4), (4,), LinkModel(0.05, 0.02), warm_tokens=80, time_limit_s=0.0)
    assert not any(row.complete for row in rows)
    assert all(row.of_bound is None for row in rows)


def test_waits_where_caches_are_empty_before_each_prompt() -> None:
    trace = made_up(prompts=4)
    kept, emptied = (
        {row.schedule: row for row in stall_rows(trace, (8,), LinkModel(0.05, 0.0), warm_tokens=80, cold=cold)}
        for cold in (False, True)
    )
    assert kept["lru on demand"].demanded == 0.0  # all of a layer's experts are there, once they were used
    assert emptied["lru on demand"].demanded > 0
    assert emptied["bound"].stall_ms > kept["bound"].stall_ms
    assert emptied["bound"].stall_ms <= emptied["known routes"].stall_ms * (1 + 1e-9)
