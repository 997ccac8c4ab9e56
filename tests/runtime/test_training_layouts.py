"""Results that lie otherwise than they were traced: the plan moves bytes, and they mean what the operator meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import Case, differing, gradients, mean_square, plain_loss, plan_of

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, WIDTH = 128, 256  # a result is above what the allocator places at all


@torch.library.custom_op("stow_test::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    """Column by column, where its fake says row by row."""
    return (x * 2).t().contiguous().t()


@turned.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("stow_test::spaced", mutates_args=())
def spaced(x: torch.Tensor) -> torch.Tensor:
    """With gaps between its rows."""
    return torch.cat([x * 2, x], 1)[:, : x.shape[1]]


@spaced.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("stow_test::widened", mutates_args=())
def widened(x: torch.Tensor) -> torch.Tensor:
    """A row that stands for all of them: it takes less memory than its fake."""
    return (x[:1] * 2).expand(x.shape)


@widened.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("stow_test::doubled", mutates_args=())
def doubled(gradient: torch.Tensor) -> torch.Tensor:
    return gradient * 2


@doubled.register_fake
def _(gradient: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gradient)


def _backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
    return doubled(gradient)


OPERATORS = (turned, spaced, widened)
for _operator in OPERATORS:
    _operator.register_autograd(_backward)


class Laid(nn.Module):
    """What the operators return is read on both sides of the turn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in OPERATORS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, operator in zip(self.layers, OPERATORS, strict=True):
            x = torch.tanh(layer(x))
            y = operator(x)
            x = (y * y + x).contiguous()  # so that no product depends on how `y` lies
        return x


@pytest.mark.parametrize(("share", "native"), [(1.0, None), (0.0, None), (0.0, False)])
def test_they_keep_their_meaning_wherever_they_go(share: float, native: bool | None) -> None:
    torch.manual_seed(0)
    case = Case(Laid(), (torch.randn(ROWS, WIDTH),), mean_square)
    twin = case.twin()
    file = plan_of(case, share)
    assert bool(file.plan.transfers) == (share < 1)
    with TrainingExecutor(file, case.module, loss=case.loss, native=native) as step:
        for _ in range(3):
            case.module.zero_grad()
            twin.zero_grad()
            loss = step(*case.batch)
            loss.backward()
            wanted = plain_loss(case, twin)
            wanted.backward()
            assert torch.equal(loss, wanted)
            assert not differing(gradients(case.module), gradients(twin))
