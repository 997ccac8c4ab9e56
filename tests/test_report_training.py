"""What the report of a training plan says of the second unit of a machine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from tensorstow.ir.check import check
from tensorstow.ir.files import PlanFile
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.program import TrainingProgram
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.planner.training import TrainingLowered
from tensorstow.planner.training.interleave import division
from tensorstow.report_training import training_rows

from .runtime.optimizer_loop import Stack, lower

pytestmark = pytest.mark.usefixtures("one_thread")


def workstation(hbm_nbytes: int, link_bytes_per_s: float = 16e9) -> Machine:
    """A device that computes, and a processor beside the memory in which states are at home."""
    return Machine(
        "two units",
        (Tier("hbm", TierKind.HBM, hbm_nbytes), Tier("dram", TierKind.DRAM, 1 << 40)),
        (Link("dram", "hbm", link_bytes_per_s), Link("hbm", "dram", link_bytes_per_s)),
        (
            Unit("gpu", "hbm", (("float32", 80e12),), 1e12),
            Unit("cpu", "dram", (("float32", 1e12),), 40e9),
        ),
    )


@cache
def lowered() -> TrainingLowered:
    torch.manual_seed(0)
    module = Stack()
    return lower(module, torch.optim.AdamW(module.parameters(), lr=1e-2), torch.randn(8, 192))


def file_of(machine: Machine) -> PlanFile:
    found = lowered()
    plan = plan_graph(found.graph, machine, strategy="belady-prefetch", mode="training")
    assert not check(plan, found.graph, machine)
    assert {s.unit for s in plan.steps} == {"gpu"}
    return PlanFile(plan, found.graph, machine, None, None, 0, training=found.program)


def program_of(file: PlanFile) -> TrainingProgram:
    assert file.training is not None
    return file.training


def test_it_says_what_the_second_unit_would_be_worth() -> None:
    whole = make_instance(lowered().graph, workstation(1 << 40), mode="training")
    machine = workstation(max(whole.base_nbytes) + whole.workspace_nbytes)
    rows = dict(training_rows(file_of(machine), program_of(file_of(machine))))
    assert rows["updates on two units"].startswith(
        "not planned: all are on gpu. With their states beside cpu they take"
    )
    one_unit = replace(machine, units=machine.units[:1])
    assert "updates on two units" not in dict(training_rows(file_of(one_unit), program_of(file_of(one_unit))))


def test_the_rates_are_those_of_the_machine() -> None:
    """AdamW moves 28 bytes an element, of which 8 are states; the processor gets 40e9 bytes/s, the link 16e9."""
    graph, program = lowered().graph, lowered().program
    assert program.optimizer is not None
    found = division(graph, program.optimizer, workstation(1 << 40))
    assert found is not None
    sizes = [graph.tensor[u.gradient].shape for u in program.optimizer.updates if u.elements is None]
    elements = sum(hi - lo for u in program.optimizer.updates for lo, hi in [u.elements or (0, 0)])
    elements += sum(int(torch.Size(shape or ()).numel()) for shape in sizes)
    placed = sum(graph.tensor[t].nbytes for u in program.optimizer.updates for t in u.states.values())
    assert 0.9 * 8 * elements < placed <= 8 * elements
    assert found.cpu_s == pytest.approx(elements * 28 / 40e9, rel=0.02)
    assert found.accelerator_s == pytest.approx(placed / 16e9, rel=0.02), "the link is what the device waits for"
    assert found.divided_s < min(found.cpu_s, found.accelerator_s)
    assert found.stride is not None and 1 < found.stride < found.subgroups
    slow = division(graph, program.optimizer, workstation(1 << 40, link_bytes_per_s=1e6))
    assert slow is not None and slow.stride is None and slow.divided_s == slow.cpu_s
