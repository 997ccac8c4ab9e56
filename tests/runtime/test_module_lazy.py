"""Tests of runtime/module/lazy*.py: weights used in every way that a module may."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations

from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime.module.lazy import VIEWS, LazyTensor

from .recorded import record
from .small_module import SHARES, small, tokens

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("share", SHARES)
def test_views_that_are_made_again_follow_their_weight(tmp_path: Path, share: float) -> None:
    """Kept views of a weight that moves are cut anew from where it is, and are few, whatever the lengths."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(64, 48))
            self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(3))

        def forward(self, x: torch.Tensor, n: int) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x) @ self.rows.narrow(0, 0, 48).transpose(-2, -1) / 48
            return x @ self.rows.transpose(0, 1).select(1, n).unflatten(0, (6, 8)).transpose(0, 1).reshape(48, 1)

    torch.manual_seed(0)
    module, x = Rows().eval(), torch.randn(3, 48)
    with torch.no_grad():
        expected = [module(x, n) for n in range(64)]
    with record(module, lambda: module(x, 0), tmp_path).execute(share):
        for _ in range(2):
            for n in range(64):
                assert torch.equal(module(x, n), expected[n])
            with torch.inference_mode():
                assert torch.equal(module(x, 5), expected[5])
        rows: Any = module.rows
        assert rows.transpose(0, 1) is rows.transpose(0, 1)
        assert rows.shape == (64, 48) and rows.device == torch.device("cpu") and rows.stride() == (48, 1)
        assert 0 < len(rows.views) <= VIEWS and len(rows.transpose(0, 1).views) <= VIEWS
        assert torch.equal(rows.transpose(0, 1), rows.clone().t())


class Odd(nn.Module):
    """Weights read in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.conv = nn.Conv1d(24, 24, 3, groups=24, padding=2)
        self.normed = parametrizations.weight_norm(nn.Linear(24, 32))
        self.list = nn.ParameterList([nn.Parameter(torch.randn(32, 32)) for _ in range(2)])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.randn(32)), "more": nn.Parameter(torch.randn(32))})
        self.cache = [self.list[0], {"again": self.list[1]}]
        self.batch = nn.BatchNorm1d(32)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.pool = nn.Bilinear(32, 32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.rnn(x)
        # As Mamba does: the convolution's weight without the convolution.
        x = F.conv1d(x.mT, self.conv.weight, self.conv.bias, padding=2, groups=24)[..., : x.shape[1]].mT
        x = self.normed(x)
        for weight in self.list:
            x = torch.einsum("bti,ij->btj", x, weight)
        first, second = self.cache[0], self.cache[1]["again"]  # type: ignore[index]
        x = x @ torch.stack([first, second]).mean(0)  # type: ignore[list-item]
        x = x * self.named["scale"].float() + torch.exp(self.named["more"]).unsqueeze(0).expand(x.shape[1], -1)
        x = self.batch(x.mT).mT
        x = self.attend(x, x, x, need_weights=False)[0]
        x = self.encoder(x)
        rows = [row.sum() for row in self.list[0]]
        return self.pool(x, x * 2) + torch.stack(rows)[:8] + self.list[1].detach()[0, :8]


@pytest.mark.parametrize("share", SHARES)
def test_weights_read_in_unusual_ways(tmp_path: Path, share: float) -> None:
    torch.manual_seed(1)
    module = Odd().eval()
    inputs = [torch.randn(2, n, 16) for n in (4, 7)]
    with torch.no_grad():
        expected = [module(x) for x in inputs]
    with record(module, lambda: module(inputs[0]), tmp_path).execute(share):
        for _ in range(2):
            for x, y in zip(inputs, expected, strict=True):
                assert torch.equal(module(x), y)
        with torch.inference_mode():
            assert torch.equal(module(inputs[0]), expected[0])


def test_a_view_of_a_weight_that_the_module_returns_stays_right(tmp_path: Path) -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.randn(64, 32))

        def forward(self, n: int) -> torch.Tensor:
            return self.rows[:n].expand(2, -1, -1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = Position()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows = self.position(x.shape[1])
            for layer in self.layers:
                x = layer(x)
            return x + rows, rows

    module = Net().eval()
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        expected, rows = module(x)
    rows = rows.clone()
    with record(module, lambda: module(x), tmp_path).execute(0.0):
        for _ in range(3):
            found, alias = module(x)
            module(x)
            assert torch.equal(found, expected)
            assert torch.equal(alias, rows)


def test_rows_are_looked_up_as_pytorch_does(tmp_path: Path) -> None:
    module, _, executor = small(tmp_path, 0.0, looked_up=["table"])
    with executor:
        table = module.table.weight.clone()
        for indices in (tokens(1, 3, 4), tokens(2, 7).int(), tokens(3, 0), torch.tensor(5), tokens(4, 2, 2, 2).mT):
            assert torch.equal(module.table(indices), F.embedding(indices, table, padding_idx=0))
        for bad in (torch.tensor([100]), torch.tensor([[3, -1]])):
            with pytest.raises(IndexError, match="index out of range in self"):
                module.table(bad)
        assert executor.stats.read_nbytes == 0


def test_hooks_and_gradients(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.0)
    inputs, expected = cases[0]
    seen: list[float] = []
    with executor:
        truth = module.layers[1].gates.norm().item()

        def look(*_: object) -> None:
            seen.append(module.layers[1].gates.norm().item())

        hook = module.layers[1].up.register_forward_hook(look)
        found = module(inputs)
        hook.remove()
        assert seen == [truth]
        assert torch.equal(found, expected)
        assert not found.requires_grad
        x = torch.randn(2, 3, 32, requires_grad=True)
        assert not module.layers[0](x).requires_grad
        assert torch.equal(module(inputs), expected)


def test_kernels_are_chosen_as_for_the_original(tmp_path: Path) -> None:
    """PyTorch folds a batch into one product only where the weight requires a gradient."""
    module = nn.Sequential(nn.Linear(32, 128, bias=False), nn.Linear(128, 128, bias=False)).eval()
    reference = copy.deepcopy(module)
    x = torch.randn(2, 5, 32)[:, -1:]
    with record(module, lambda: module(x), tmp_path).execute(0.5), torch.no_grad():
        for wanted in (True, False, True):
            for part in (module, reference):
                part.requires_grad_(wanted)
                assert all(p.requires_grad is wanted for p in part.parameters())
            assert torch.equal(module(x), reference(x))


@pytest.mark.parametrize("share", SHARES)
def test_what_was_kept_of_a_weight_ends_with_the_executor(tmp_path: Path, share: float) -> None:
    """Elements, transpositions and conversions that change nothing: made once, right wherever the weight is by then."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.randn(4, 48, 48))
            self.rates = nn.Parameter(torch.randn(48, 48))
            self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for k, layer in enumerate(self.layers):
                x = layer(x) @ self.stack[k].t() / 48
            return x @ torch.exp(-self.rates.float().abs())

    torch.manual_seed(0)
    module, x = Stack().eval(), torch.randn(3, 48)
    stack = module.stack.detach().clone()
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(share):
        for _ in range(3):
            assert torch.equal(module(x), expected)
        lazy: Any = module.stack
        assert lazy[1] is lazy[1] and lazy[1] is not lazy[2]
        assert lazy.float() is lazy and lazy.to(torch.float32) is lazy and lazy.double() is not lazy
        assert torch.equal(lazy[True], stack[True]) and lazy[True].shape != lazy[1].shape
        assert torch.equal(lazy[1][2], stack[1][2]) and torch.equal(lazy[..., 1], stack[..., 1])
        kept = lazy[1].t()
        assert kept.at
    assert not kept.at
    with pytest.raises(ExecutionError):
        _ = kept @ x.t()


def test_what_models_ask_all_the_time_takes_no_detour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def detour(*_: Any) -> Any:
        raise AssertionError("asked by way of __torch_function__")

    module, _, executor = small(tmp_path, 0.5)
    with executor:
        lazy: Any = module.layers[0].gates
        with monkeypatch.context() as patch:
            patch.setattr(LazyTensor, "__torch_function__", classmethod(detour))
            asked = lazy.device, lazy.dtype, lazy.shape, lazy.ndim
            with pytest.raises(AssertionError):
                lazy.stride()
        assert asked == (torch.device("cpu"), torch.float32, (128, 32), 2)
