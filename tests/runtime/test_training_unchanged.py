"""Planning from a profile runs steps of the user's module: afterwards the module is as it was, and so are the numbers
that its Python draws."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from tensorstow.runtime.training.saved_profile import profile_saved
from tensorstow.runtime.training.unchanged import unchanged

pytestmark = pytest.mark.usefixtures("one_thread")


class Inner(nn.Module):
    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.linear(x)


class Moving(nn.Module):
    """Changes itself in every way that is common: in place, by assignment, and in what it is made of."""

    count: torch.Tensor
    mean: torch.Tensor
    written: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("written", torch.zeros(16))
        self.register_buffer("empty", None)
        self.alias = self.written
        self.steps = 0
        self.scale: float | torch.Tensor = 1.0
        self.plain = torch.zeros(16)
        self.drawn: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count = self.count + 1
        self.written.add_(1)
        self.plain += 1
        self.empty = x.detach()
        self.steps += 1
        self.scale = torch.ones(())
        self.last = x.detach()
        if random.random() < 0.5 and float(np.random.rand()) < 0.5:
            x = x * torch.rand(())
        return self.inner(x).square().mean()


def seen(module: Moving) -> list[object]:
    tensors = (module.count, module.inner.mean, module.written, module.plain, module.alias)
    return [
        [t.detach().numpy().tolist() for t in tensors],
        module.steps,
        module.scale,
        module.empty,
        hasattr(module, "last"),
        sorted(module.state_dict()),
    ]


def numbers() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def seeded() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_a_profile_leaves_the_module_and_the_generators_as_they_are() -> None:
    module, batch = Moving(), torch.randn(4, 16)
    held = {name: id(buffer) for name, buffer in module.named_buffers()}
    before = seen(module)
    seeded()
    wanted = numbers()
    seeded()
    profile_saved(module, lambda: module(batch))
    assert seen(module) == before
    assert {name: id(buffer) for name, buffer in module.named_buffers()} == held, "the very tensors of before"
    assert module.alias is module.written
    assert numbers() == wanted


def test_so_does_a_step_that_fails() -> None:
    module = Moving()
    before = seen(module)
    seeded()
    wanted = numbers()
    seeded()
    with pytest.raises(RuntimeError), unchanged(module):
        module(torch.randn(4, 15))
    assert seen(module) == before
    assert numbers() == wanted


def test_what_was_of_another_kind_comes_back() -> None:
    module = Moving()
    drawn = module.drawn
    with unchanged(module):
        module.drawn = 1.0  # type: ignore[assignment]
        del module.steps
    assert module.drawn is drawn
    assert module.steps == 0
