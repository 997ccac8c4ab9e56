"""Tests of runtime/module/: modules by plans of every budget compute the bits that they compute without."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import ExecutionError

from .recorded import record
from .small_module import SHARES, Small, small

pytestmark = pytest.mark.usefixtures("one_thread")


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
