"""Planned optimizers driven by a small loop: gradients come from outside, the plan's updates and transfers are real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorstow.ir.check import check
from tensorstow.ir.codec import digest
from tensorstow.ir.machine import Link, Machine, Tier, TierKind, Unit
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import plan_graph
from tensorstow.planner.training import STATES, TrainingLowered, lower_joint, placed, with_updates
from tensorstow.planner.training.optimizer import optimizer_calls, split_updates
from tensorstow.runtime.passes import PlanMemory
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.optimizer import PlannedOptimizer

Gradients = dict[str, torch.Tensor]
_plans: dict[tuple[str, float], tuple[Plan, Machine]] = {}


def box(dram_nbytes: int) -> Machine:
    """A machine with so much memory, and a disk."""
    return Machine(
        "test",
        (Tier("dram", TierKind.DRAM, dram_nbytes), Tier("ssd", TierKind.SSD, 1 << 40, alignment=4096)),
        (Link("ssd", "dram", 1e9, chunk_nbytes=1 << 18), Link("dram", "ssd", 1e9, chunk_nbytes=1 << 18)),
        (Unit("cpu", "dram", (("float32", 1e11),), 1e10),),
    )


class Stack(nn.Module):
    """Parameters of all sorts: square ones, one that two layers share, one that lies column by column, a vector, and
    one that gets no gradient."""

    def __init__(self, layers: int = 3, width: int = 192, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, dtype=dtype) for _ in range(layers))
        self.layers[0].weight = self.layers[-1].weight
        self.across = nn.Parameter(torch.randn(width, width, dtype=dtype).t() / width)
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.unused = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar loss of x, [rows, width]."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.norm(x @ self.across).square().mean()


def lower(module: nn.Module, optimizer: Any, batch: torch.Tensor, piece_nbytes: int = 1 << 16) -> TrainingLowered:
    """The step of `module` with the updates of `optimizer`, their states placed and split."""
    joint = capture_joint(module, (batch,))
    step = with_updates(lower_joint(joint, name="stack"), optimizer_calls(optimizer, module))
    return placed(split_updates(step, piece_nbytes), STATES, key=joint.key)


def plan_of(lowered: TrainingLowered, share: float) -> tuple[Plan, Machine]:
    """A plan with the least memory that goes, and `share` of what more there would be if nothing left; the checker
    finds it right."""
    from tensorstow.planner.instance import make_instance

    whole = make_instance(lowered.graph, box(1 << 40), mode="training")
    needed = max(whole.base_nbytes)
    machine = box(needed + int((whole.peak_of_all() - needed) * share) + whole.workspace_nbytes)
    plan = plan_graph(lowered.graph, machine, strategy="belady-prefetch", mode="training")
    assert not check(plan, lowered.graph, machine)
    return plan, machine


def gradients_of(module: nn.Module, batch: torch.Tensor) -> Gradients:
    """Of the loss, by name."""
    named = {name: p for name, p in module.named_parameters() if name != "unused"}
    return dict(zip(named, torch.autograd.grad(module(batch), list(named.values())), strict=True))


def _known_plan(lowered: TrainingLowered, share: float) -> tuple[Plan, Machine]:
    """`plan_of`, made once for each graph."""
    key = digest(lowered.graph), share
    if key not in _plans:
        _plans[key] = plan_of(lowered, share)
    return _plans[key]


@dataclass
class Loop:
    """A planned optimizer with its memory."""

    plan: Plan
    optimizer: PlannedOptimizer
    memory: PlanMemory
    turn: int = 0

    @classmethod
    def open(cls, lowered: TrainingLowered, share: float, optimizer: Any, module: nn.Module, folder: Path) -> Loop:
        """Planned and ready."""
        plan, machine = _known_plan(lowered, share)
        planned = PlannedOptimizer(optimizer, module, plan, lowered.graph, lowered.program)
        store = planned.open_store(folder)
        memory = PlanMemory(plan, lowered.graph, machine, "dram", store)
        memory.open(folder)
        memory.restart()
        planned.bind(memory)
        return cls(plan, planned, memory)

    def step(self, gradients: Callable[[], Gradients], *, fail_at: str | None = None) -> None:
        """One pass of the plan; `fail_at` is the operator before which it raises RuntimeError."""
        if self.optimizer.begin():
            self.turn = 0
        found = gradients()
        try:
            self._pass(found, fail_at)
        except BaseException:
            self.optimizer.failed()
            raise
        self.optimizer.end()

    def _pass(self, gradients: Gradients, fail_at: str | None) -> None:
        engine, total = self.memory.engine, len(self.plan.steps)
        begun = {t.after for t in self.plan.transfers}
        for t, step in enumerate(self.plan.steps):
            if step.op == fail_at:
                raise RuntimeError("told to")
            if not t or t in begun or self.memory.waits[t]:  # nobody else has to know
                engine.arrive(self.turn * total + t)
                self._wait(t)
            if step.op.startswith("update:"):
                name = step.op.removeprefix("update:").split("[")[0]
                self.optimizer.update(step.op, gradients[name])
        self._wait(total)
        engine.arrive((self.turn + 1) * total)
        self.turn += 1

    def _wait(self, instant: int) -> None:
        for lane, count, jobs in self.memory.waits[instant]:
            self.memory.engine.wait(lane, count + self.turn * jobs)


def plain_steps(module: nn.Module, optimizer: Any, batches: Sequence[torch.Tensor]) -> None:
    """The plain loop."""
    for batch in batches:
        optimizer.zero_grad()
        module(batch).backward()
        optimizer.step()


def same(a: Any, b: Any) -> bool:
    """Whether two nests of dicts, lists and tensors are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
