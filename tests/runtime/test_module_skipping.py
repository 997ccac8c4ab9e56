"""Tests of runtime/module/skipping.py: what pass after pass leaves out is not read, and comes when wanted again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.runtime.module import ModuleExecutor

from .recorded import record

pytestmark = pytest.mark.usefixtures("one_thread")


class Halves(nn.Module):
    """An encoder, which a pass may leave out, and a decoder."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.decoder = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x: torch.Tensor, encode: bool = True, leave: frozenset[int] = frozenset()) -> torch.Tensor:
        for layer in self.encoder if encode else ():
            x = torch.tanh(layer(x))
        for number, layer in enumerate(self.decoder):
            x = x if number in leave else torch.tanh(layer(x))
        return x


def made(folder: Path, share: float) -> tuple[Any, Any, ModuleExecutor, torch.Tensor]:
    """The module by a plan, another like it that is not, and an input."""
    torch.manual_seed(0)
    module, reference, x = Halves(), Halves(), torch.randn(2, 64)
    reference.load_state_dict(module.state_dict())
    return module, reference, record(module, lambda: module(x), folder).execute(share), x


def read_nbytes(executor: ModuleExecutor, *args: Any) -> int:
    executor.run(*args)
    return executor.stats.read_nbytes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_what_two_passes_left_out_is_not_read(tmp_path: Path, share: float) -> None:
    module, reference, executor, x = made(tmp_path, share)
    with executor:
        whole = sum(t.nbytes for t in executor.plan.transfers)
        late = sum(t.nbytes for t in executor.plan.transfers if t.storage.startswith("decoder"))
        assert 0 < late < whole
        with torch.no_grad():
            expected = reference(x, False)
            for _ in range(3):
                assert torch.equal(module(x), reference(x))
            for _ in range(3):
                assert torch.equal(module(x, False), expected)
        read = [read_nbytes(executor, x, False) for _ in range(6)]
        assert sum(read) <= 6 * late + 4096  # what is under way when a pass ends is counted in either
        assert sum(read) >= 5 * late


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_bits_stay_whatever_is_left_out_and_wanted_again(tmp_path: Path, share: float) -> None:
    module, reference, executor, x = made(tmp_path, share)
    generator = torch.Generator().manual_seed(1)
    with executor, torch.no_grad():
        for _ in range(40):
            encode = bool(torch.randint(0, 2, (), generator=generator))
            leave = frozenset(torch.randint(0, 4, (2,), generator=generator).tolist())
            for _ in range(int(torch.randint(1, 5, (), generator=generator))):
                assert torch.equal(module(x, encode, leave), reference(x, encode, leave))
        assert torch.equal(module(x), reference(x))


def test_the_whole_is_read_again_after_what_was_left_out_is_wanted(tmp_path: Path) -> None:
    module, reference, executor, x = made(tmp_path, 0.3)
    with executor, torch.no_grad():
        for _ in range(4):
            module(x, False)
        assert executor._weights.clock.skipping.left_out  # pyright: ignore[reportPrivateUsage]
        assert torch.equal(module(x), reference(x))
        assert not executor._weights.clock.skipping.left_out  # pyright: ignore[reportPrivateUsage]
        module(x)
        whole = sum(t.nbytes for t in executor.plan.transfers)
        read = [read_nbytes(executor, x) for _ in range(4)]
        assert abs(sum(read) - 4 * whole) <= whole


@pytest.mark.parametrize("changing", [False, True])
def test_what_is_never_wanted_again_is_not_remembered_for_ever(tmp_path: Path, changing: bool) -> None:
    module, reference, executor, x = made(tmp_path, 0.0)
    with executor, torch.no_grad():
        remembered: list[int] = []
        lanes = executor._memory.engine.lanes.values()  # pyright: ignore[reportPrivateUsage]
        for k in range(100):
            leave = frozenset([1, 2]) if changing and k % 8 < 4 else frozenset[int]()
            assert torch.equal(module(x, False, leave), reference(x, False, leave))
            remembered.append(sum(len(lane.skipped) for lane in lanes))
        jobs = sum(len(lane.jobs) for lane in lanes)
        assert 0 < max(remembered) <= 5 * jobs  # of three passes, and those that lanes are ahead and behind
        assert torch.equal(module(x), reference(x))
