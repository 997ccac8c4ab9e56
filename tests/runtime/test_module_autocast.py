"""Tests of runtime/module/ under autocast, which keeps copies of weights: not of those that a plan moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensorstow.runtime.module.sparse_layer import Matrix
from tensorstow.runtime.module.weights import as_weight

from .recorded import record
from .small_module import small

pytestmark = pytest.mark.usefixtures("one_thread")


class Casts(TorchDispatchMode):
    """Counts the elements of weights that are converted: of matrices with more rows than any input has."""

    def __init__(self, least_rows: int) -> None:
        super().__init__()
        self.least_rows = least_rows
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        converted = func is torch.ops.aten._to_copy.default and args[0].dim() == 2
        if converted and args[0].shape[0] >= self.least_rows:
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def casts_of_passes(run: Callable[[], object], least_rows: int = 32) -> list[int]:
    """Elements of weights that each of three calls in one context converts: what is kept, the later ones do not."""
    found: list[int] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            with Casts(least_rows) as casts:
                run()
            found.append(casts.elements)
    return found


def test_it_keeps_copies_of_parameters() -> None:
    """What the others of these tests would see."""
    layer = nn.Linear(64, 64)
    first, *later = casts_of_passes(lambda: layer(torch.ones(2, 64)))
    assert first == 64 * 64 and later == [0, 0]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_copy_of_a_placed_weight_outlives_its_use(tmp_path: Path, share: float) -> None:
    module, cases, executor = small(tmp_path, share)
    inputs = cases[0][0]
    with executor:
        for run in (lambda: module(inputs), lambda: module.layers[1](torch.ones(1, 32))):
            first, *later = casts_of_passes(run)
            assert first >= 4 * 32 * 32
            assert later == [first, first]


def test_bits_under_autocast_are_those_of_the_module_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64), nn.Linear(64, 8)).eval()
    x = torch.randn(2, 3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(0.2), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            assert torch.equal(module(x), expected)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_a_view_of_a_parameter_stands_for_it(wanted: bool, mode: Callable[[], Any]) -> None:
    memory = torch.ones(4100)
    with mode():
        weight = as_weight(memory[4:], (64, 64), (1, 64), requires_grad=wanted)
    assert isinstance(weight, nn.Parameter) is wanted
    assert (weight.requires_grad, weight.is_leaf, weight.stride()) == (wanted, True, (1, 64))
    assert weight.data_ptr() == memory.data_ptr() + 16
    with torch.no_grad():
        assert weight.t().requires_grad is wanted and weight[1].requires_grad is wanted
    first, *later = casts_of_passes(lambda: torch.ones(2, 64) @ weight)
    assert first == 4096 and later == [first, first]


def test_no_copy_of_a_buffer_of_rows_is_kept() -> None:
    layer = nn.Linear(64, 32)
    matrix = Matrix(layer, "layer", by_row=False)
    matrix.buffer = torch.zeros(32 * 64).view(32, 64)
    original = layer.forward
    first, *later = casts_of_passes(lambda: matrix.compute(torch.ones(2, 64), original))
    assert first == 32 * 64 and later == [first, first]
    assert layer.weight is matrix.weight
