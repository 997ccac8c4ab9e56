"""`torch.compile(model, backend="tensorstow")`: the bits of the plain model, inside a budget, or a clear refusal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from tensorstow.dynamo import backend

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(64, 64), nn.GELU(), nn.Dropout(0.1))))


def compiled(module: nn.Module, fullgraph: bool = True, **options: Any) -> Any:
    found: Any = torch.compile(module, backend=backend, fullgraph=fullgraph, options={"time_limit_s": 1, **options})
    return found


def test_a_compiled_model_trains_as_the_plain_one() -> None:
    module = net()
    twin = copy.deepcopy(module)
    step, x = compiled(module, budget="1400KiB"), torch.randn(512, 64)
    for seed in range(2):
        for run in (step, twin):
            torch.manual_seed(seed)
            run(x).square().mean().backward()  # the loss is outside of what is compiled
        for ours, plain in zip(module.parameters(), twin.parameters(), strict=True):
            assert ours.grad is not None and plain.grad is not None
            assert torch.equal(ours.grad, plain.grad)
    with torch.no_grad():
        module.eval()
        assert torch.equal(step(x), twin.eval()(x))


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    with pytest.raises(BackendCompilerFailed, match=r"the smallest feasible budget is --tier dram=\d+"):
        compiled(net(), budget=100_000)(torch.randn(512, 64))


def test_other_options_are_refused() -> None:
    with pytest.raises(BackendCompilerFailed, match="knows no option 'budgte'; its options are budget, machine"):
        compiled(net(), budgte="1GiB")(torch.randn(8, 64))


class Broken(nn.Module):
    """Goes on as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 8] to the same."""
        x = self.layers[0](x)
        if x.sum() > 0:  # here
            x = -x
        return self.layers[1](x)


def test_a_graph_break_is_refused_with_its_line() -> None:
    with pytest.raises(BackendCompilerFailed, match=r"cut in two at .*test_training_dynamo.py:\d+: if x.sum\(\) > 0"):
        compiled(Broken(), fullgraph=False)(torch.randn(4, 8))
