from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.machine import Link
from tensorstow.planner.build import plan_graph
from tensorstow.planner.pytorch import lower_module, parts
from tensorstow.planner.pytorch.flash import SparseLayer, flash_cost, windowed
from tensorstow.planner.pytorch.sparse import (
    FeedForward,
    find_feed_forwards,
    sparse_cost,
    sparse_memory_nbytes,
    windowed_rows,
    without_rows,
)

from ..graphs import machine

LINK = Link("ssd", "dram", 1e9, latency_s=1e-5)
ACTIVE = st.lists(st.frozensets(st.integers(0, 19)), max_size=12)


class Layer(nn.Module):
    """A feed-forward layer in many forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 24)
        self.up = nn.Linear(8, 24)
        self.down = nn.Linear(24, 8)
        self.form = form

    def forward(self, x: torch.Tensor) -> Any:
        form = self.form
        if form == "plain":
            return self.down(F.dropout(torch.relu(self.up(x).view(-1, 24)), 0.5, self.training))
        if form == "squared":
            return self.down(torch.relu(self.up(x)) ** 2)
        if form == "gelu":
            return self.down(F.gelu(self.up(x)))
        if form == "shifted":
            return self.down(torch.relu(self.up(x)) + 1)
        if form == "twice":
            return self.down(torch.relu(self.up(self.down(torch.relu(self.up(x))))))
        if form == "up first":
            up = self.up(x)
            return self.down(up * torch.relu(self.gate(x)))
        gate = torch.relu(self.gate(x))
        if form == "times itself":
            gate = gate * gate
        if form == "other input":
            return self.down(gate * self.up(x + 1))
        up = self.up(x)
        product = up * gate if form == "the other way" else gate * up
        result = self.down(product)
        if form == "up is read":
            return result, up
        if form == "product is read":
            return result, product
        return result


PLAIN = FeedForward("down", "up", None, False, 24, 8, 4)
GATED = FeedForward("down", "up", "gate", False, 24, 8, 4)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("plain", PLAIN),
        ("squared", FeedForward("down", "up", None, True, 24, 8, 4)),
        ("gelu", None),
        ("shifted", None),
        ("twice", None),
        ("gated", GATED),
        ("times itself", FeedForward("down", "up", "gate", True, 24, 8, 4)),
        ("the other way", GATED),
        ("up first", PLAIN),
        ("other input", PLAIN),
        ("up is read", PLAIN),
        ("product is read", PLAIN),
    ],
)
def test_layers_are_found_in_what_they_compute(form: str, expected: FeedForward | None) -> None:
    lowered = lower_module(Layer(form).eval(), (torch.randn(2, 3, 8),), {}, name="layer")
    assert find_feed_forwards(lowered) == (() if expected is None else (expected,))


def test_tied_weights_are_left_alone() -> None:
    layers = nn.Sequential(Layer("plain"), Layer("plain"), Layer("plain")).eval()
    first: Any = layers[0]
    second: Any = layers[1]
    second.down.weight = first.down.weight
    lowered = lower_module(layers, (torch.randn(3, 8),), {}, name="layers")
    assert [f.down for f in find_feed_forwards(lowered)] == ["2.down"]


class Large(nn.Module):
    """One layer whose weights are placed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(128, 512, bias=False)
        self.up = nn.Linear(128, 512, bias=False)
        self.down = nn.Linear(512, 128, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.gate(x)) * self.up(x))


def test_plans_leave_out_what_is_read_by_row() -> None:
    """The rest has a plan in less memory than the three matrices take; rows stay in the store."""
    lowered = lower_module(Large().eval(), (torch.randn(1, 128),), {}, name="large")
    at = machine(2 * (256 << 10))
    whole = parts(lowered, at.units[0])
    sites = find_feed_forwards(lowered)
    less, kept = without_rows(whole, sites)
    assert kept == sites and kept[0].by_row == ("down", "up")
    assert less.program is whole.program and less.graph.storages == whole.graph.storages
    weights = [tuple(t for t in o.inputs if less.graph.tensor[t].storage) for o in less.graph.operators]
    assert weights == [("gate.weight",), (), ()]
    plan = plan_graph(less.graph, at, time_limit_s=2)
    assert {r.storage for r in plan.residencies} == {"gate.weight"}
    small = lower_module(nn.Sequential(Layer("plain")).eval(), (torch.randn(3, 8),), {}, name="small")
    missing = FeedForward("0.nothing", "0.up", None, False, 24, 8, 4)
    assert without_rows(parts(small, at.units[0]), [missing])[1] == ()


@given(ACTIVE, st.integers(0, 4), st.integers(0, 20))
def test_a_window_is_the_longest_that_fits(active: list[frozenset[int]], window: int, rows: int) -> None:
    """By brute force over the lengths; with room for all, the window of the paper. What was let go is not there."""
    for t, step in enumerate(windowed_rows(active, window, rows)):
        assert step.loaded == active[t] - _held(active, t, window, rows)
    assert windowed_rows(active, window, 20) == windowed(active, window)


def _held(active: list[frozenset[int]], t: int, window: int, rows: int) -> frozenset[int]:
    """Calls t - k to t - 1 for the largest k such that each such suffix, ended earlier, fitted as well."""
    best = 0
    for k in range(1, min(window, t) + 1):
        ends = range(t - k + 1, t + 1)
        if all(len(frozenset[int]().union(*active[t - k : e])) <= rows for e in ends):
            best = k
    return frozenset[int]().union(*active[t - best : t])


@given(ACTIVE, st.integers(0, 3), st.sampled_from([True, False]), st.permutations(range(20)))
def test_with_room_it_costs_what_the_paper_says(
    active: list[frozenset[int]], window: int, bundled: bool, order: list[int]
) -> None:
    layer = SparseLayer(20, 1000, 4, 2, bundled)
    assert sparse_cost(layer, active, LINK, window=window, rows=20) == flash_cost(layer, active, LINK, window=window)
    place = [order.index(n) for n in range(20)]
    found = sparse_cost(layer, active, LINK, window=window, rows=20, place=place)
    assert found == flash_cost(layer, active, LINK, window=window, order=order)
    reads = [sparse_cost(layer, active, LINK, window=3, rows=r).needed_nbytes for r in (0, 20)]
    assert all(a >= b for a, b in pairwise(reads))


def test_memory_grows_by_rows_not_by_layers() -> None:
    mib = 1 << 20
    site = FeedForward("down", "up", "gate", False, 8192, 2048, 4)
    one, many = (sparse_memory_nbytes([site] * n, rows=512) for n in (1, 24))
    assert one > 2 * 8192 * 2048 * 4
    assert many - one == 23 * (512 * site.layer().neuron_nbytes + 8192 * (29 + 5))
    assert sparse_memory_nbytes([site] * 24, rows=0) - 2 * 64 * mib < 20 * mib
    assert sparse_memory_nbytes([], rows=5) == 0
    with pytest.raises(InputError, match="window of 1 calls and -1 rows"):
        windowed_rows([], 1, -1)
