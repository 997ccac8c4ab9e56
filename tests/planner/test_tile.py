"""Splitting and lookups for a budget: what is cut, what stays whole, and that the results are the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tensorstow.executors import open_executor
from tensorstow.hosts import get_machine
from tensorstow.ir.errors import ExecutionError, InfeasibleError
from tensorstow.ir.files import PlanFile
from tensorstow.ir.machine import Machine
from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import Lowered, apply_lookups, lower_onnx, model_source, tables
from tensorstow.planner.tile import smallest_budget, tile

from ..models import write_gpt

MIB = 1 << 20


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt")
    return write_gpt(folder / "gpt.onnx", layers=2, width=256, heads=4, vocabulary=8000, sequence=16, external=True)


@pytest.fixture(scope="module")
def lowered(gpt: Path) -> Lowered:
    return lower_onnx(gpt)


def box(nbytes: int) -> Machine:
    return get_machine("host").with_capacity({"dram": nbytes})


def outputs(lowered: Lowered, path: Path, machine: Machine, tokens: np.ndarray) -> np.ndarray:
    plan = plan_graph(lowered.graph, machine, time_limit_s=5)
    file = PlanFile(plan, lowered.graph, machine, lowered.program, model_source(path, {}), 0)
    with open_executor(file) as executor:
        return executor.run({"tokens": tokens})["logits"]


def test_a_roomy_budget_changes_nothing(lowered: Lowered) -> None:
    assert tile(lowered, box(1 << 32)) is lowered


def test_the_token_table_is_left_in_the_store_and_bits_stay(lowered: Lowered, gpt: Path) -> None:
    tiled = tile(lowered, box(8 * MIB))
    assert len(tiled.program.lookups) >= 1
    assert all(op not in tiled.program.kernels for op in tiled.program.lookups)
    tokens = np.random.default_rng(0).integers(0, 8000, (1, 16))
    tokens[0, :3] = [-1, 7999, 7999]  # the last row by either name, and one row twice
    whole = outputs(lowered, gpt, box(1 << 30), tokens)
    small = outputs(tiled, gpt, box(8 * MIB), tokens)
    assert whole.tobytes() == small.tobytes()


def test_a_row_that_does_not_exist_is_named(lowered: Lowered, gpt: Path) -> None:
    tokens = np.full((1, 16), 8000)
    with pytest.raises(ExecutionError, match=r"looks up row 8000 of .* which has 8000"):
        outputs(tile(lowered, box(8 * MIB)), gpt, box(8 * MIB), tokens)


def test_a_table_that_is_also_multiplied_stays_a_weight(tmp_path: Path) -> None:
    path = write_gpt(tmp_path / "tied.onnx", layers=1, width=64, heads=2, vocabulary=3000, sequence=8, tied=True)
    tied = lower_onnx(path)
    largest = max((s for s in tied.graph.storages if s.homed), key=lambda s: s.nbytes)
    assert largest.id not in tables(tied)


def test_lookups_cost_what_their_rows_cost(lowered: Lowered) -> None:
    machine = box(8 * MIB)
    link = machine.link["ssd", "dram"]
    chosen = apply_lookups(lowered, list(tables(lowered)), link)
    for op_id, lookup in chosen.program.lookups.items():
        op = chosen.graph.operator[op_id]
        picked = chosen.graph.tensor[op.outputs[0]].nbytes // lookup.row_nbytes
        assert op.measured_ns == picked * link.transfer_ns(lookup.row_nbytes)


def test_the_smallest_budget_is_feasible_and_far_below_the_largest_weight(lowered: Lowered) -> None:
    smallest = smallest_budget(lowered, box(1 << 30))
    machine = box(smallest)
    plan_graph(tile(lowered, machine).graph, machine, time_limit_s=5)
    assert smallest < max(s.nbytes for s in lowered.graph.storages) / 3
    less = box(smallest - 64 * 1024)
    with pytest.raises(InfeasibleError):
        plan_graph(tile(lowered, less).graph, less, time_limit_s=5)


def test_parts_follow_the_budget(lowered: Lowered) -> None:
    counts = [len(tile(lowered, box(n * MIB)).graph.operators) for n in (64, 8, 4)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
