"""Modules that store tensors by assignment in their forward: a planned step stores them, as the plain step does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.ir.errors import InputError
from tensorstow.runtime.training.executor import TrainingExecutor

from .runtime.training_steps import box, differing, gradients, mean_square, state

pytestmark = pytest.mark.usefixtures("one_thread")


class Storing(nn.Module):
    """Assigns a count and a mean to its buffers, and keeps its last result."""

    count: torch.Tensor
    mean: torch.Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(width))
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        for layer in self.layers:
            x = torch.tanh(layer(x))
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.last = x
        return x


class OwnLoss(Storing):
    """Returns the loss itself, a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square().mean()


@pytest.mark.parametrize(("kind", "loss"), [(Storing, mean_square), (OwnLoss, None)])
def test_they_are_stored_step_after_step(
    kind: type[Storing], loss: Callable[[torch.Tensor], torch.Tensor] | None
) -> None:
    torch.manual_seed(0)
    module, batch = kind(), torch.randn(512, 64)
    twin = kind()
    twin.load_state_dict(module.state_dict())
    file = ts.plan(module, (batch,), machine=box(1 << 21), mode="training", loss=loss, time_limit_s=2.0)
    assert file.training is not None and file.training.hooked is None, "it is traced"
    assert float(module.count) == 0 and module.last is None, "planning stores nothing"
    with TrainingExecutor(file, module, loss=loss) as step:
        for number in range(1, 4):
            module.zero_grad()
            twin.zero_grad()
            got = step(batch)
            got.backward()
            wanted = twin(batch) if loss is None else loss(twin(batch))
            wanted.backward()
            assert torch.equal(got, wanted)
            assert not differing(state(module), state(twin)) and float(module.count) == number
            assert not differing(gradients(module), gradients(twin))
            assert module.last is not None and twin.last is not None and torch.equal(module.last, twin.last)


def two(result: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return result.mean(), result.square().mean()


@pytest.mark.parametrize(("loss", "what"), [(two, "a tuple"), (None, r"a tensor of shape \[512, 64\]")])
def test_what_is_no_loss_is_refused_whatever_is_stored(loss: Callable[..., object] | None, what: str) -> None:
    with pytest.raises(InputError, match=f"returns ({what}) where a training step needs its loss"):
        ts.plan(Storing(), (torch.randn(512, 64),), machine=box(1 << 21), mode="training", loss=loss)
