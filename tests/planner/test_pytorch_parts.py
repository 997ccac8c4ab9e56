"""Parts of a pass: what begins one, what it reads, how long it takes, what it needs beside the weights; and plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import StorageKind
from tensorstow.ir.program import Lookup
from tensorstow.planner.build import plan_graph
from tensorstow.planner.costs import duration_ns
from tensorstow.planner.pytorch import (
    choose_lookups,
    live_nbytes,
    parts,
    placed_weights,
    tables,
)

from ..graphs import machine
from ..modules import Borrowing, Cache, Cached, Decoder, InPlace, Mlp, ResNet
from .parts_cases import UNIT, check, lower, weights_of

IDS = torch.zeros(2, 7, dtype=torch.int64)


def test_a_part_begins_where_a_weight_is_read_that_was_not() -> None:
    lowered = lower(Decoder(), IDS)
    made = parts(lowered, UNIT)
    check(lowered, made)
    expected = ["table"]
    for i in range(2):
        expected += [f"attentions.{i}.qkv", f"attentions.{i}.out", f"mlps.{i}.gate", f"mlps.{i}.up", f"mlps.{i}.down"]
    assert [o.id for o in made.graph.operators] == [*expected, "head"]
    assert (
        weights_of(made.graph.operators[0], made.graph)
        == weights_of(made.graph.operators[-1], made.graph)
        == ["table.weight"]
    )
    tied = next(p for p in made.program.parameters if p.tensor == "table.weight")
    assert tied.names == ("table.weight", "head.weight")
    assert made.program.calls["mlps.0.up"] == "mlps.0.up"
    durations = [duration_ns(o, UNIT) for o in lowered.graph.operators]
    assert sum(o.measured_ns or 0 for o in made.graph.operators) == sum(durations)
    assert sum(o.flops for o in made.graph.operators) == sum(o.flops for o in lowered.graph.operators)


def test_weights_of_a_child_that_is_never_called() -> None:
    lowered = lower(Borrowing(), torch.zeros(3, 64))
    made = parts(lowered, UNIT)
    check(lowered, made)
    assert [(o.id, tuple(weights_of(o, made.graph))) for o in made.graph.operators] == [
        ("model", ("child.weight",)),
        ("other", ("other.weight",)),
        ("model#2", ("child.weight",)),
    ]
    assert made.program.calls == {"model": "", "other": "other", "model#2": ""}


@pytest.mark.parametrize("strategy", ["stow-order", "least-traffic"])
def test_no_strategy_changes_the_order_of_parts(strategy: str) -> None:
    made = parts(lower(Decoder(rows=1024), IDS), UNIT)
    plan = plan_graph(made.graph, machine(1 << 20), strategy=strategy, time_limit_s=5)
    assert [s.op for s in plan.steps] == [o.id for o in made.graph.operators]


def test_measured_times_of_operators_are_those_of_the_parts() -> None:
    lowered = lower(Mlp(), torch.zeros(3, 64))
    timed = tuple(replace(o, measured_ns=1000 + i) for i, o in enumerate(lowered.graph.operators))
    made = parts(replace(lowered, graph=replace(lowered.graph, operators=timed)), UNIT)
    # gate and silu, up and the product, down
    assert [o.id for o in lowered.graph.operators] == ["linear", "silu", "linear_1", "mul", "linear_2"]
    assert [o.measured_ns for o in made.graph.operators] == [2001, 2005, 1004]


def test_small_parameters_stay_and_large_buffers_do_not() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.large = nn.Linear(256, 256)
            self.spare = nn.Linear(256, 256)
            self.register_buffer("small", torch.zeros(256))
            self.register_buffer("table", torch.zeros(2048, 256))
            self.register_buffer("state", torch.zeros(2048, 256))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.get_buffer("state").add_(1)
            return self.large(x) + self.get_buffer("small") + self.get_buffer("table")[0]

    lowered = lower(Buffered(), torch.zeros(3, 256))
    assert list(placed_weights(lowered)) == ["large.weight", "spare.weight", "table"]
    made = parts(lowered, UNIT)
    assert made.graph.storage["table"].kind is StorageKind.CONSTANT
    assert {s for o in made.graph.operators for s in made.graph.reads(o)} == {"large.weight", "table"}
    kept = 2 * 1024 + 1024 + 2048 * 1024
    assert min(o.workspace_nbytes for o in made.graph.operators) >= kept
    peak = max(live_nbytes(lowered))
    assert max(o.workspace_nbytes for o in made.graph.operators) == kept + peak


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Decoder, (IDS,)),
        (ResNet, (torch.zeros(2, 3, 64, 64),)),
        (InPlace, (torch.zeros(3, 64),)),
        (Cached, (torch.zeros(1, 1, 64), Cache(torch.zeros(1, 50, 64)))),
    ],
)
def test_live_bytes_by_brute_force(make: Callable[[], nn.Module], inputs: tuple[Any, ...]) -> None:
    """Byte for byte against a replay that holds sets of storages; and never less than what operators touch."""
    lowered = lower(make(), *inputs)
    graph = lowered.graph
    total = len(graph.operators)
    first = {s.id: 0 if s.kind is StorageKind.INPUT else total for s in graph.storages if not s.homed}
    for i in reversed(range(total)):
        first |= {
            s: i for s in graph.writes(graph.operators[i]) if s in first and graph.storage[s].kind.value != "input"
        }
    for i, nbytes in enumerate(live_nbytes(lowered)):
        held = {s for s in first if first[s] <= i <= lowered.last.get(s, total)}
        assert nbytes == sum(graph.storage[s].nbytes for s in held)
        touched = {s for s in graph.touches(graph.operators[i]) if s in first}
        assert touched <= held
    made = parts(lowered, UNIT)
    check(lowered, made)


def test_tables_are_looked_up_where_rows_are_faster_than_the_whole() -> None:
    lowered = lower(Decoder(rows=4096), IDS)
    assert tables(lowered) == {"table.weight": ("embedding",)}
    assert not list(choose_lookups(lowered, machine(1 << 30)))
    small = machine(1 << 20)
    assert choose_lookups(lowered, small) == {"table.weight"}
    (link,) = [k for k in small.links if k.target == "dram"]
    slow = replace(small, links=tuple(replace(k, latency_s=1.0) for k in small.links))
    assert not list(choose_lookups(lowered, slow))
    made = parts(lowered, UNIT, looked_up=frozenset({"table.weight"}), link=link)
    check(lowered, made)
    assert made.program.lookups == {"table": Lookup("table.weight", 4096, 256)}
    assert made.program.calls["table"] == "table"
    rows, *rest, head = made.graph.operators
    assert weights_of(rows, made.graph) == []
    assert weights_of(head, made.graph) == ["table.weight"]
    assert rows.measured_ns is not None
    assert rows.measured_ns >= 14 * link.transfer_ns(256)
    assert all("table.weight" not in o.inputs for o in rest)
    with pytest.raises(InputError, match="over which link"):
        parts(lowered, UNIT, looked_up=frozenset({"table.weight"}))


def test_plans_of_parts() -> None:
    lowered = lower(Decoder(layers=3), IDS)
    made = parts(lowered, UNIT)
    workspace = max(o.workspace_nbytes for o in made.graph.operators)
    weights = sum(s.nbytes for s in made.graph.storages)
    largest = max(s.nbytes for s in made.graph.storages)
    for capacity in (weights, weights // 2, 2 * largest):
        small = machine(workspace + capacity, alignment=64)
        plan = plan_graph(made.graph, small, time_limit_s=5)  # which checks the plan
        assert [s.op for s in plan.steps] == [o.id for o in made.graph.operators]
        assert plan.certificate.simulated_s >= plan.certificate.bound_s * (1 - 1e-9)
