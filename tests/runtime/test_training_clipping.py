"""Gradients are clipped inside a planned step as in the plain loop, or the user is told that they are not."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.program import Clip
from tensorstow.planner.training import STATES, live_nbytes, lower_joint, placed, with_updates
from tensorstow.planner.training.clip import with_clipping
from tensorstow.planner.training.optimizer import optimizer_calls, split_updates
from tensorstow.runtime.training.clipping import clip_plain
from tensorstow.runtime.training.consumed import ConsumedGradient
from tensorstow.runtime.training.executor import TrainingExecutor
from tensorstow.runtime.training.joint import capture_joint

from .training_steps import Case, differing, gpt, plain_loss, plan_of, resnet, state

STEPS = 3
OPTIMIZERS: dict[str, Any] = {
    "AdamW": partial(torch.optim.AdamW, lr=1e-2),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adafactor": partial(torch.optim.Adafactor, lr=1e-2),
}
NORM = Clip(max_norm=0.05)


class Mixed(nn.Module):
    """Parameters of two types, one of them column by column, one used twice, and two whose gradients are one value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low = nn.Linear(32, 32, dtype=torch.float64)
        self.across = nn.Parameter(torch.randn(32, 32).t() / 6)
        self.twice = nn.Linear(32, 32)
        self.left = nn.Parameter(torch.randn(16, 32))
        self.right = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A loss of x, [16, 32]."""
        x = self.low(x.double()).float() @ self.across
        return (self.twice(torch.relu(self.twice(x))) + self.left + self.right).square().mean()


def mixed() -> Case:
    return Case(Mixed(), (torch.randn(16, 32),))


CASES: dict[str, Any] = {"gpt": gpt, "resnet": resnet, "mixed": mixed}


def plain(case: Case, module: nn.Module, optimizer: Any, clip: Clip | None) -> list[torch.Tensor]:
    """What a step of the plain loop returns that clips: the losses, and the norms."""
    found: list[torch.Tensor] = []
    for seed in range(STEPS):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        loss = plain_loss(case, module)
        loss.backward()
        norm = None if clip is None else clip_plain(clip, module)
        optimizer.step()
        found += [loss.detach(), torch.zeros(()) if norm is None else norm]
    return found


@pytest.mark.parametrize(
    ("name", "kind", "clip"),
    [
        ("mixed", "AdamW", NORM),
        ("mixed", "SGD", Clip(clip_value=1e-4)),
        pytest.param("gpt", "AdamW", NORM, marks=pytest.mark.slow),
        pytest.param("mixed", "Adafactor", NORM, marks=pytest.mark.slow),
        pytest.param("resnet", "SGD", NORM, marks=pytest.mark.slow),
    ],
)
def test_bits_are_those_of_the_plain_loop_that_clips(name: str, kind: str, clip: Clip) -> None:
    case = CASES[name]()
    twin, free = case.twin(), case.twin()
    optimizer = OPTIMIZERS[kind](case.module.parameters())
    file = plan_of(case, 0.2, optimizer=optimizer, clip=clip, time_limit_s=1.0)
    assert not check(file.plan, file.graph, file.machine)
    found: list[torch.Tensor] = []
    with TrainingExecutor(file, case.module, loss=case.loss, optimizer=optimizer) as step:
        for seed in range(STEPS):
            torch.manual_seed(seed)
            found.append(step(*case.batch))
            found.append(torch.zeros(()) if step.grad_norm is None else step.grad_norm)
        assert file.plan.certificate.moved_nbytes == {} or step.stats.read_nbytes > 0
    wanted = plain(case, twin, OPTIMIZERS[kind](twin.parameters()), clip)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not differing(state(case.module), state(twin))
    plain(case, free, OPTIMIZERS[kind](free.parameters()), None)
    assert differing(state(case.module), state(free)), "clipping made no difference"


def test_gradients_wait_for_the_norm_and_count() -> None:
    """Every update stands behind every norm; the gradients are in memory meanwhile, or leave it."""
    case = mixed()
    optimizer = OPTIMIZERS["AdamW"](case.module.parameters())
    joint = capture_joint(case.module, case.batch)
    step = split_updates(with_updates(lower_joint(joint, name="m"), optimizer_calls(optimizer, case.module)), 1 << 12)
    clipped = with_clipping(step, NORM)
    program, graph = placed(clipped, STATES, key="").program, clipped.graph
    assert program.clip is not None
    assert program.optimizer is not None
    at = {op.id: i for i, op in enumerate(graph.operators)}
    updates = [at[u.operator] for u in program.optimizer.updates]
    assert max(at[n] for n in program.clip.norms) < at[program.clip.operator] < min(updates)
    assert sorted(program.clip.norms.values()) == sorted({u.names[0] for u in program.optimizer.updates})

    made = {graph.tensor[u.gradient].storage or "" for u in program.optimizer.updates}
    held = live_nbytes(graph)[at[program.clip.operator]] - live_nbytes(graph, made)[at[program.clip.operator]]
    assert held == sum(graph.storage[s].nbytes for s in made), "all of them are there, and counted"
    before = zip(live_nbytes(step.graph), live_nbytes(step.graph, made), strict=True)
    assert max(whole - rest for whole, rest in before) < held


def test_another_number_and_another_way() -> None:
    case = mixed()
    optimizer = OPTIMIZERS["SGD"](case.module.parameters())
    machine = ts.Machine.detect(dram="64MiB")
    options: dict[str, Any] = {"machine": machine, "mode": "training", "optimizer": optimizer, "time_limit_s": 1.0}
    file = ts.plan(case.module, case.batch, max_norm=1e9, **options)
    twin = case.twin()
    with ts.apply(file, case.module, max_norm=0.05) as step:
        for _ in range(STEPS):
            step(*case.batch)
    plain(case, twin, OPTIMIZERS["SGD"](twin.parameters()), NORM)
    assert not differing(state(case.module), state(twin))
    with pytest.raises(InputError, match="clips by max_norm"):
        ts.apply(file, case.module, clip_value=1.0)
    with pytest.raises(InputError, match="two ways"):
        ts.plan(case.module, case.batch, max_norm=1.0, clip_value=1.0, **options)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="above 0"):
            ts.plan(case.module, case.batch, max_norm=wrong, **options)
    with pytest.raises(InputError, match="between backward and optimizer"):
        ts.plan(case.module, case.batch, mode="training", machine=machine, max_norm=1.0)
    free = ts.plan(case.module, case.batch, **options)
    with pytest.raises(InputError, match="clips no gradients"):
        ts.apply(free, case.module, max_norm=1.0)


def test_the_norm_is_of_all_gradients() -> None:
    case = mixed()
    optimizer = torch.optim.SGD([p for n, p in case.module.named_parameters() if n != "left"], lr=0.1)
    calls = optimizer_calls(optimizer, case.module)
    step = with_updates(lower_joint(capture_joint(case.module, case.batch), name="m"), calls)
    with pytest.raises(InputError, match="'left'"):
        with_clipping(step, NORM)
    assert with_clipping(step, Clip(clip_value=1.0)).clip == Clip(clip_value=1.0)


def test_a_plan_without_one_of_the_norms_is_refused() -> None:
    case = mixed()
    optimizer = OPTIMIZERS["SGD"](case.module.parameters())
    file = plan_of(case, optimizer=optimizer, clip=NORM, time_limit_s=1.0)
    assert file.training is not None
    assert file.training.clip is not None
    norms = dict(list(file.training.clip.norms.items())[1:])
    damaged = replace(file, training=replace(file.training, clip=replace(file.training.clip, norms=norms)))
    with pytest.raises(PlanMismatchError, match="takes the norms of"):
        TrainingExecutor(damaged, case.module, optimizer=optimizer)
    for wrong in (replace(file.training.clip, max_norm=-1.0), replace(file.training.clip, clip_value=1.0)):
        with pytest.raises(PlanMismatchError, match="one number above 0"):
            TrainingExecutor(file, case.module, optimizer=optimizer, clip=wrong)


def test_gradients_that_were_used_up_refuse_to_be_clipped() -> None:
    case = mixed()
    optimizer = OPTIMIZERS["SGD"](case.module.parameters())
    file = plan_of(case, optimizer=optimizer, time_limit_s=1.0)
    step = TrainingExecutor(file, case.module, optimizer=optimizer)
    parameters = list(case.module.parameters())
    with step:
        step(*case.batch)
        with pytest.raises(InputError, match=r"'low.weight' was used up.*max_norm="):
            nn.utils.clip_grad_norm_(parameters, 1.0)
        with pytest.raises(InputError, match="used up"):
            nn.utils.clip_grad_value_(parameters, 1.0)
        with pytest.raises(InputError, match="used up"):
            torch.stack([p.grad.norm() for p in parameters if p.grad is not None])
        with pytest.raises(InputError, match="used up"):
            plain_loss(case, case.module).backward()  # it would add to gradients
        assert isinstance(copy.deepcopy(case.module), nn.Module)
        optimizer.zero_grad(set_to_none=False)
        case.module.zero_grad()
        assert all(p.grad is None for p in parameters)
        plain_loss(case, case.module).backward()  # an ordinary module again
        optimizer.zero_grad()
        step(*case.batch)
        assert all(isinstance(p.grad, ConsumedGradient) for p in parameters)
        step(*case.batch)
    assert all(p.grad is None for p in parameters)


def test_a_plan_that_clips_says_so() -> None:
    case = mixed()
    optimizer = OPTIMIZERS["SGD"](case.module.parameters())
    file = plan_of(case, optimizer=optimizer, clip=NORM, time_limit_s=1.0)
    with TrainingExecutor(file, case.module, optimizer=optimizer) as step:
        step(*case.batch)
        with pytest.raises(InputError, match="clips gradients itself"):
            nn.utils.clip_grad_norm_(case.module.parameters(), 1.0)


def test_not_a_number_is_what_the_plain_loop_has() -> None:
    case = mixed()
    twin = case.twin()
    optimizer, other = (OPTIMIZERS["SGD"](m.parameters()) for m in (case.module, twin))
    batch = (torch.full_like(case.batch[0], float("nan")),)
    file = plan_of(case, optimizer=optimizer, clip=NORM, time_limit_s=1.0)
    with TrainingExecutor(file, case.module, optimizer=optimizer) as step:
        assert step(*batch).isnan()
        assert step.grad_norm is not None
        assert step.grad_norm.isnan()
    twin(*batch).backward()
    clip_plain(NORM, twin)
    other.step()
    for name, p in case.module.named_parameters():
        assert torch.equal(p, dict(twin.named_parameters())[name]) or p.isnan().all(), name


class Turning(nn.Module):
    """Cannot be traced: its Python depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
            x = torch.relu(x) if float(x.detach().sum()) > 0 else torch.tanh(x)
        return x.square().mean()


def test_a_step_that_runs_by_hooks_clips_too() -> None:
    case = Case(Turning(), (torch.randn(64, 128),))
    twin = case.twin()
    optimizer = OPTIMIZERS["SGD"](case.module.parameters())
    machine = ts.Machine.detect(dram="64MiB")
    file = ts.plan(case.module, case.batch, machine=machine, mode="training", optimizer=optimizer, max_norm=0.05)
    with pytest.warns(UserWarning, match="cannot be traced"):
        step: Any = ts.apply(file, case.module)
    with step:
        found = [x for _ in range(STEPS) for x in (step(*case.batch), step.grad_norm)]
        with pytest.raises(InputError, match="clips gradients itself"):
            nn.utils.clip_grad_norm_(case.module.parameters(), 1.0)
    wanted = plain(case, twin, OPTIMIZERS["SGD"](twin.parameters()), NORM)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not differing(state(case.module), state(twin))
    assert all(p.grad is None for p in case.module.parameters())
