"""Tests of the counter of bench/overhead, and by it of what resident weights cost a module, whatever the load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench.overhead import calls
from tests.runtime.recorded import record

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = 12


def test_calls_of_python_and_of_c_are_counted() -> None:
    def work() -> None:
        len(str(7))  # `str` is a type, not a function
        abs(-1)

    assert calls(work) == 3 + 1  # work, len, abs, and the call that ends the profile


class Layer(nn.Module):
    """A product by PyTorch's layer, one with a norm of its own code, and one with a weight that is turned first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.turned = nn.Parameter(torch.randn(width, width))
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.turned.dtype == x.dtype and self.turned.device == x.device
        return torch.matmul(torch.relu(self.inner(x)), self.turned.transpose(0, 1)) * self.scale


def test_a_resident_weight_costs_few_calls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(*[Layer(16) for _ in range(LAYERS)]).eval(), torch.randn(2, 16)
    eager = calls(lambda: module(x))
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(1.0):
        planned = calls(lambda: module(x))
        assert torch.equal(module(x), expected)
    # Five uses of a weight without memory, of two of which the values are looked up, and two forwards: 42 when written.
    assert (planned - eager) / LAYERS < 50, (eager, planned)
