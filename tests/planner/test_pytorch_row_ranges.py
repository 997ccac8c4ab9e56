"""Tests of planner/pytorch/row_ranges.py: which weights are divided, into what, and what a plan of them needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tensorstow.ir.graph import Graph
from tensorstow.planner.build import plan_graph
from tensorstow.planner.pytorch import ModuleLowered, choose_lookups, lower_module, parts, store_link
from tensorstow.planner.pytorch.binding import BLOCK
from tensorstow.planner.pytorch.row_ranges import LEAST_NBYTES, split_like, split_rows
from tensorstow.planner.validate import faults

from ..graphs import machine

ROWS, WIDTH = 9000, 96
IDS = torch.zeros(2, 3, dtype=torch.int64)


class Headed(nn.Module):
    """A table, a small layer, and a head of 3.5 MB: the table itself, or a matrix with a bias; `calls` times."""

    def __init__(self, *, tied: bool, calls: int = 1) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS, bias=not tied)
        self.calls = calls
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.inner(self.table(ids))
        return sum((self.head(x * k) for k in range(self.calls)), torch.zeros(()))


def made(module: nn.Module, budget: int, ids: torch.Tensor = IDS, *, look_up: bool = True) -> ModuleLowered:
    """The parts of a pass with what is divided for a budget."""
    lowered = lower_module(module.eval(), (ids,), {}, name="model")
    at = machine(budget, bytes_per_s=2e9)
    tables = choose_lookups(lowered, at) if look_up else frozenset[str]()
    whole = parts(lowered, at.units[0], looked_up=tables, link=store_link(at))
    return split_rows(whole, lowered, module, budget)


def needs(graph: Graph) -> int:
    """The smallest budget: weights of a part beside the largest workspace."""
    weights = max(sum(graph.storage[s].nbytes for s in graph.reads(o)) for o in graph.operators)
    return weights + max(o.workspace_nbytes for o in graph.operators)


def test_a_head_is_read_in_ranges_that_are_all_its_bytes() -> None:
    for tied in (False, True):
        module = Headed(tied=tied)
        found = made(module, 2 << 20)
        graph, (rows,) = found.graph, found.program.rows
        assert not list(faults(graph, machine(1 << 30)))
        assert rows.module == "head"
        assert sum((graph.tensor[r].shape or (0,))[0] for r in rows.ranges) == ROWS
        assert rows.tensor not in {t for o in graph.operators for t in o.inputs}
        end = 0
        for name in rows.ranges:
            storage = graph.storage[graph.tensor[name].storage or ""]
            assert (storage.blob, storage.blob_offset) == (rows.tensor, end)
            assert storage.blob_offset % BLOCK == 0
            end += storage.nbytes
        assert end == 4 * ROWS * WIDTH
        assert max(graph.tensor[r].nbytes for r in rows.ranges) <= LEAST_NBYTES


def test_what_the_parts_say_of_time_and_work_stays() -> None:
    whole, found = (made(Headed(tied=False), budget, look_up=False).graph for budget in (1 << 30, 2 << 20))
    assert len(found.operators) > len(whole.operators)
    for measure in ("flops", "moved_nbytes", "measured_ns"):
        before, after = (sum(getattr(o, measure) for o in g.operators) for g in (whole, found))
        assert abs(after - before) <= len(found.operators), measure
    assert whole.operators[-1].outputs == found.operators[-1].outputs


def test_the_smallest_budget_is_less_and_a_plan_keeps_to_it() -> None:
    module = Headed(tied=True)
    whole, found = made(module, 1 << 40).graph, made(module, 0).graph
    assert needs(found) < needs(whole) / 2
    at = machine(needs(found) + 2 * BLOCK, bytes_per_s=2e9)
    plan = plan_graph(found, at, time_limit_s=2)
    assert plan.certificate.peak_nbytes["dram"] <= at.tier["dram"].usable_nbytes
    read = sum(n for n in plan.certificate.moved_nbytes.values())
    assert read >= 4 * ROWS * WIDTH - plan.certificate.peak_nbytes["dram"]


def test_another_pass_is_divided_alike() -> None:
    module = Headed(tied=False)
    found = made(module, 2 << 20, look_up=False)
    lowered = lower_module(module, (torch.zeros(5, 9, dtype=torch.int64),), {}, name="model")
    other = split_like(parts(lowered, machine(1 << 30).units[0]), lowered, module, found.program.rows)
    assert other.program.rows == found.program.rows
    assert [o.id for o in other.graph.operators] == [o.id for o in found.graph.operators]


def test_what_has_to_stay_whole() -> None:
    assert not made(Headed(tied=True, calls=2), 2 << 20).program.rows  # each range would be read twice
    assert not made(Headed(tied=True), 2 << 20, look_up=False).program.rows  # the table is in memory anyway
    assert not made(Headed(tied=False), 1 << 30).program.rows  # it is small there

    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
            return 2 * super().forward(input)

    module: Any = Headed(tied=False)
    module.head = Doubled(WIDTH, ROWS)
    assert not made(module, 2 << 20).program.rows


class Squared(nn.Module):
    """Beside a large matrix, products of a value with itself, and of a small weight with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, ROWS)
        self.small = nn.Parameter(torch.ones(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.linear(x, x)
        return self.head(x).sum() + h.sum() + nn.functional.linear(self.small, self.small).sum()


def test_a_product_of_a_value_with_itself_is_not_divided_and_in_nobodys_way() -> None:
    found = made(Squared(), 2 << 20, torch.ones(4, WIDTH), look_up=False)
    assert [r.module for r in found.program.rows] == ["head"]
