"""What PyTorch's compiler forgets no plan may forget."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tensorstow.runtime.training.joint import capture_joint
from tensorstow.runtime.training.refusals import NoSingleGraphError

from .training_steps import mean_square


class Counting(nn.Module):
    """Counts its calls in a buffer: by a method, by an operator of Python, or by an assignment into it."""

    count: torch.Tensor

    def __init__(self, how: str, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(4, 4, dtype=dtype)
        self.register_buffer("count", torch.zeros(shape, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "method":
            self.count.add_(1)
        elif self.how == "operator":
            self.count += 1
        else:
            self.count[...] = 1
        return self.linear(x)


@pytest.mark.parametrize("how", ["method", "operator", "assignment"])
def test_a_write_that_would_be_lost_is_no_single_graph(how: str) -> None:
    module = Counting(how, torch.float64)
    with pytest.raises(NoSingleGraphError, match="float64 tensor without dimensions that is written in place"):
        capture_joint(module, (torch.randn(2, 4, dtype=torch.float64),), loss=mean_square)


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, ()), (torch.float64, (1,))])
def test_others_are_written(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = Counting("method", dtype, shape)
    assert len(capture_joint(module, (torch.randn(2, 4, dtype=dtype),), loss=mean_square).updates) == 1
