"""Tests of runtime/module/: modules by plans of every budget compute the bits that they compute without."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations

from tensorstow.ir.errors import ExecutionError
from tensorstow.runtime.module import ModuleExecutor
from tensorstow.runtime.module.lazy import VIEWS

from .recorded import record

SHARES = [1.0, 0.5, 0.0]


pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """Layers of PyTorch's, a parameter of its own used through a view that outlives other layers, and tied weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.gates = nn.Parameter(torch.randn(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gates.view(4, -1, x.shape[-1])[1].t()
        return x + self.down(torch.relu(self.up(self.norm(x)))) @ gate


class Small(nn.Module):
    """Tokens in, scores out; the table is the last matrix, too."""

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(100, width, padding_idx=0)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 100, bias=False)
        self.head.weight = self.table.weight
        self.depth = layers

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        for layer in self.layers[: self.depth]:
            x = layer(x)
        return self.head(x)


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))


def small(folder: Path, share: float, **options: Any) -> tuple[Any, list[tuple[torch.Tensor, Any]], ModuleExecutor]:
    """An executor, with inputs of several lengths and what they give."""
    torch.manual_seed(0)
    module = Small().eval()
    inputs = [tokens(1, 2, 5), tokens(2, 1, 1), tokens(3, 3, 9)]
    with torch.no_grad():
        cases = [(i, module(i)) for i in inputs]
    recorded = record(module, lambda: module(inputs[0]), folder, **options)
    return module, cases, recorded.execute(share)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("options", [{}, {"kept_nbytes": 256}, {"looked_up": ["table"]}])
def test_bits_are_those_of_the_module_alone(tmp_path: Path, share: float, options: dict[str, Any]) -> None:
    module, cases, executor = small(tmp_path, share, **options)
    with executor:
        for _ in range(3):
            for inputs, expected in cases:
                assert torch.equal(module(inputs), expected)
        read: list[int] = []
        for inputs, expected in cases * 3:
            assert torch.equal(executor.run(inputs), expected)
            read.append(executor.stats.read_nbytes)
            assert executor.stats.written_nbytes == 0
        planned = sum(t.nbytes for t in executor.plan.transfers)
        rows = sum(i.unique().numel() for i, _ in cases) * 128 if "looked_up" in options else 0
        # What is under way when a pass ends is counted in either.
        assert abs(sum(read) - 9 * planned - 3 * rows) <= planned


class Relative(nn.Module):
    """Weights that are inputs of other layers, as tables of relative positions are: as they are, normed, and a view."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.table = nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=False)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 4, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = self.table.weight
        keys = self.key(positions) + self.other(positions[:16]) + self.key(self.norm(positions))
        return self.attention(self.query.expand(len(x), -1, -1), x, x @ keys.T @ keys)[0]


@pytest.mark.parametrize("share", SHARES)
def test_a_weight_is_the_input_of_a_layer(tmp_path: Path, share: float) -> None:
    torch.manual_seed(0)
    module, x = Relative().eval(), torch.randn(2, 6, 32)
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(share):
        for _ in range(3):
            assert torch.equal(module(x), expected)


def test_nothing_advances_where_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, cases, executor = small(tmp_path, 1.0)
    inputs, expected = cases[0]
    with executor:
        assert not executor.plan.transfers
        assert torch.equal(module(inputs), expected)
        engine = executor._memory.engine  # pyright: ignore[reportPrivateUsage]
        arrivals: list[int] = []
        arrive = engine.arrive
        monkeypatch.setattr(engine, "arrive", lambda instant: (arrivals.append(instant), arrive(instant)))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        for _ in range(2):
            for given, wanted in cases:
                assert torch.equal(executor.run(given), wanted)
        assert not arrivals
        profile = executor.profile(2, inputs)  # which has to see every step
        assert list(profile.operator_ns) == [s.op for s in executor.plan.steps]
        assert len(arrivals) >= 2 * len(executor.plan.steps)
        assert torch.equal(module(inputs), expected)


def test_controls_and_profile_leave_the_results_alone(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.3)
    inputs, expected = cases[0]
    with executor:
        assert executor.load() > 0
        assert executor.compute_only(inputs) > 0
        assert executor.io_only() > 0
        assert torch.equal(module(inputs), expected)
        profile = executor.profile(2, inputs)
        assert list(profile.operator_ns) == [s.op for s in executor.plan.steps]
        assert profile.lane_bytes_per_s["ssd->dram"] > 0
        assert torch.equal(executor.run(inputs), expected)
        assert executor.stats.events == ()


def test_calls_that_are_skipped_repeated_or_partial(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.2)
    inputs, expected = cases[0]
    fresh: Any = Small().eval()
    with executor:
        fresh.load_state_dict(module.state_dict())
        x = torch.randn(2, 4, 32)
        for depth in (1, 0, 3, 2):
            module.depth = fresh.depth = depth
            assert torch.equal(module(inputs), fresh(inputs))
        for order in ([2, 0, 1], [1, 1, 1], [0, 2, 2, 0]):
            y = z = x
            for k in order:
                y, z = module.layers[k](y), fresh.layers[k](z)
            assert torch.equal(y, z)
        assert torch.equal(module.layers[1].gates.sum(), fresh.layers[1].gates.sum())
        assert torch.equal(module.head(x), fresh.head(x))
        module.depth = 3
        assert torch.equal(executor.run(inputs), expected)


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


class Failing(nn.Module):
    """Fails between two layers when told to."""

    def __init__(self, error: Callable[[], None]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(64, 64) for _ in range(3))
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x))
        self.error()
        return self.third(x)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_next_call_right(tmp_path: Path, kind: type[BaseException]) -> None:
    fail = False

    def maybe() -> None:
        if fail:
            raise kind("in the middle")

    module = Failing(maybe).eval()
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(0.0) as executor:
        for _ in range(3):
            fail = True
            with pytest.raises(kind, match="in the middle"):
                executor.run(x)
            fail = False
            assert torch.equal(module(x), expected)


def test_an_interrupt_while_waiting_leaves_the_next_call_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, cases, executor = small(tmp_path, 0.0)
    with executor:
        engine = executor._memory.engine  # pyright: ignore[reportPrivateUsage]
        arrive = engine.arrive
        for at in range(12):
            left = at

            def interrupted(instant: int) -> None:
                nonlocal left
                arrive(instant)
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(engine, "arrive", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    module(cases[0][0])
            for inputs, expected in cases:
                assert torch.equal(module(inputs), expected)


def test_a_transfer_that_fails_ends_the_call_and_not_the_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, cases, executor = small(tmp_path, 0.0)
    inputs, expected = cases[0]
    with executor:
        executor.run(inputs)
        for _ in range(2):
            with monkeypatch.context() as patch:

                def broken(*_: object, **__: object) -> None:
                    raise ExecutionError("the disk is gone")

                patch.setattr(executor.store, "read", broken)
                with pytest.raises(ExecutionError, match="the disk is gone"):
                    for _ in range(3):
                        module(inputs)
            assert torch.equal(module(inputs), expected)


def test_threads_take_turns(tmp_path: Path) -> None:
    module, cases, executor = small(tmp_path, 0.1)
    wrong: list[object] = []

    def work(number: int) -> None:
        for k in range(6):
            inputs, expected = cases[(number + k) % len(cases)]
            whole = module(inputs)
            part = module.head(module.table(inputs))
            if not torch.equal(whole, expected) or part.shape != whole.shape:
                wrong.append((number, k))

    with executor:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert not any(t.is_alive() for t in threads)


class Twice(nn.Module):
    """Calls itself, with fewer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        y = self.b(torch.tanh(self.a(self.a(x))))
        return self(y, depth - 1) + self.a(y) if depth else y


def test_a_module_called_inside_itself(tmp_path: Path) -> None:
    module = Twice().eval()
    x = torch.randn(2, 48)
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(0.0) as executor:
        assert torch.equal(module(x), expected)
        assert torch.equal(executor.run(x), expected)
        inside: list[str] = []

        def nosy(*_: object) -> None:
            try:
                executor.run(x)
            except ExecutionError as error:
                inside.append(str(error))

        handle = module.b.register_forward_hook(nosy)
        assert torch.equal(module(x), expected)
        handle.remove()
        assert "from inside the module" in inside[0]


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
