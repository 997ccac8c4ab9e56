"""Storages that belong to several: a gradient of two tensors, and a parameter that its own forward writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.planner.training import ALL
from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import Case, differing, gradients, mean_square, plain_loss, plan_of, state

pytestmark = pytest.mark.usefixtures("one_thread")


class Sum(nn.Module):
    """Adds up what its layers give and three tensors, so that all have one gradient: `across` a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.first, self.second = (nn.Parameter(torch.randn(512, 64)) for _ in range(2))
        self.across = nn.Parameter(torch.randn(64, 512))

    def forward(self, x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """Both are [512, 64], as the result."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x + self.first + self.second + self.across.t() + beside


def summed() -> Case:
    torch.manual_seed(0)
    return Case(Sum(), (torch.randn(512, 64), torch.randn(512, 64, requires_grad=True)), mean_square)


def test_a_gradient_that_is_shared_stays_as_long_as_somebody_gets_it() -> None:
    out = ("second", "across")  # which the optimizer leaves to the user
    case = summed()
    twin, beside = case.twin(), case.batch[1].detach().clone().requires_grad_()

    def made(module: nn.Module) -> Any:
        return torch.optim.AdamW([p for n, p in module.named_parameters() if n not in out], lr=1e-2)

    optimizer, plain = made(case.module), made(twin)
    file = plan_of(case, 0.0, optimizer=optimizer)
    with TrainingExecutor(file, case.module, loss=case.loss, optimizer=optimizer) as step:
        for _ in range(2):
            loss = step(*case.batch)
            wanted = plain_loss(case, twin, (case.batch[0], beside))
            plain.zero_grad()
            wanted.backward()
            plain.step()
            assert torch.equal(loss, wanted.detach())
            assert not differing(state(case.module), state(twin))
            plain.zero_grad()
            assert case.batch[1].grad is not None and beside.grad is not None
            assert torch.equal(case.batch[1].grad, beside.grad)
            assert sorted(gradients(case.module)) == sorted(out)
            assert not differing(gradients(case.module), gradients(twin))
            for t in (case.batch[1], beside, *case.module.parameters(), *twin.parameters()):
                t.grad = None


class Written(nn.Module):
    """Its forward writes what it is given: a trained weight that is brought into its range, and, frozen, a copy of it
    that follows slowly; a buffer too."""

    slow: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(4))
        self.key = nn.Linear(128, 128).requires_grad_(False)
        self.register_buffer("slow", torch.zeros(128, 128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 128] to the same."""
        with torch.no_grad():
            self.layers[1].weight.clamp_(-0.05, 0.05)  # type: ignore[union-attr,operator]
            for own, followed in zip(self.key.parameters(), self.layers[2].parameters(), strict=True):
                own.mul_(0.9).add_(followed, alpha=0.1)
            self.slow.mul_(0.5).add_(self.layers[3].weight, alpha=0.5)  # type: ignore[arg-type]
        target = self.key(x) @ self.slow
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x - target


@pytest.mark.parametrize("trained", [True, False])
def test_what_the_forward_writes_is_written(trained: bool) -> None:
    """With the updates in the step, and, where the weights are frozen, without."""
    torch.manual_seed(0)
    module = Written()
    if not trained:
        module.requires_grad_(False)
    case = Case(module, (torch.randn(16, 128, requires_grad=True),), mean_square)
    twin, batch = case.twin(), case.batch[0].detach().clone().requires_grad_()

    def made(module: nn.Module) -> Any:
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2) if trained else None

    optimizer, plain = made(module), made(twin)
    file = plan_of(case, 0.3, optimizer=optimizer, scope=ALL, time_limit_s=1.0)
    assert file.training is not None and file.training.parameters, "something is placed"
    with TrainingExecutor(file, module, loss=case.loss, optimizer=optimizer) as step:
        for _ in range(3):
            loss, wanted = step(*case.batch), plain_loss(case, twin, (batch,))
            wanted.backward()
            if trained:
                plain.step()
                plain.zero_grad()
            else:
                loss.backward()
            assert torch.equal(loss.detach(), wanted.detach())
            assert not differing(state(module), state(twin))
            assert batch.grad is not None and case.batch[0].grad is not None
            assert torch.equal(case.batch[0].grad, batch.grad)
            batch.grad = case.batch[0].grad = None
            optimizer.zero_grad() if trained else None
    assert not differing(state(module), state(twin))
