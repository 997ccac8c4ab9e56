"""One update: the bits of the optimizer's own step, and a gradient that stays as it is, for it may be another's too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.optimizer import KINDS
from tensorstow.runtime.training.update_calls import new_step, run_update

MAKES: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd-nesterov-foreach": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, foreach=True),
    "sgd-decayed-foreach": lambda p: torch.optim.SGD(
        p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True
    ),
    "adafactor-foreach": lambda p: torch.optim.Adafactor(p, lr=0.1, foreach=True),
}


@pytest.mark.parametrize("kind", MAKES)
def test_an_update_leaves_its_gradient_as_it_is(kind: str) -> None:
    torch.manual_seed(0)
    plain = nn.Parameter(torch.randn(6, 10))
    ours, optimizer = plain.detach().clone(), MAKES[kind]([plain])
    group, name = optimizer.param_groups[0], type(optimizer).__name__
    states = {s.key: torch.zeros(s.shape) for s in KINDS[name].states(group, (6, 10))}
    step: torch.Tensor | None = None if name == "SGD" else new_step(group)
    for number in range(3):
        gradient = torch.randn(6, 10)
        plain.grad = gradient.clone()
        optimizer.step()
        given = gradient.clone()
        step = run_update(name, group, ours, given, states, step, first=number == 0, in_blocks=False)
        assert torch.equal(ours, plain)
        assert torch.equal(given, gradient)
