"""Operators that are not PyTorch's own: nothing says what they do, so they are called once, in their order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tensorstow.ir.graph import StorageKind
from tensorstow.planner.recompute_orders import is_random, repeatable
from tensorstow.planner.training import lower_joint
from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.losses import loss_of

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.library.custom_op("stow_test::jitter", mutates_args=())
def jitter(x: torch.Tensor) -> torch.Tensor:
    """Draws, and no tag says so."""
    return x + torch.randn_like(x)


@jitter.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _passed_on(_: Any, gradient: torch.Tensor) -> torch.Tensor:
    return gradient


jitter.register_autograd(_passed_on)


class Jittered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.dropout(jitter(torch.tanh(layer(x))), 0.1)
        return x.square().mean()


def test_they_are_called_once_and_in_their_order_among_those_that_draw() -> None:
    joint = capture_joint(Jittered(), (torch.randn(32, 64),), loss=loss_of)
    graph = lower_joint(joint, name="jittered").graph
    own = [op for op in graph.operators if "stow_test" in op.op_type]
    assert len(own) == 2 and all(is_random(op) for op in own)
    assert not {op.id for op in own} & repeatable(graph)
    assert any(op.op_type == "aten.tanh.default" and op.id in repeatable(graph) for op in graph.operators)
    drawn = [op for op in graph.operators if any(t.endswith(":random") for t in op.outputs)]
    assert ["stow_test" in op.op_type for op in drawn][:4].count(True) == 2
    for before, op in pairwise(drawn):
        assert set(before.outputs) & set(op.inputs), "each takes what stands for the generator behind the one before"
    assert all(graph.storage[graph.tensor[op.outputs[0]].storage or ""].kind == StorageKind.ACTIVATION for op in own)
