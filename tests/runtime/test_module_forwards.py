"""Tests of runtime/module/forwards.py: who finds weights as they lie in the plan's memory, and who must not."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .recorded import record

pytestmark = pytest.mark.usefixtures("one_thread")


class Projection(nn.Module):
    """As GPT-2's: a leaf that only computes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, width) / 8), nn.Parameter(torch.randn(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


def _looked_at_from_another_thread(part: Any, x: torch.Tensor, watched: Any) -> tuple[Any, bool]:
    """What another thread gets of `watched()` while this one is in the middle of `part(x)`, and whether it waited."""
    entered, leave, found = threading.Event(), threading.Event(), []

    def stop(*_: Any) -> None:
        entered.set()
        assert leave.wait(30)

    class Stopping(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            stop()
            return func(*args, **(kwargs or {}))

    def inside() -> None:
        with torch.no_grad(), Stopping():
            part(x)

    def beside() -> None:
        with torch.no_grad():
            found.append(watched())

    threads = [threading.Thread(target=inside), threading.Thread(target=beside)]
    threads[0].start()
    assert entered.wait(30)
    threads[1].start()
    threads[1].join(0.3)
    waited = threads[1].is_alive()
    leave.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found[0], waited


class Attention(nn.Module):
    """PyTorch's own, which computes in one call where its weights are real."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", [Projection, Attention])
def test_parts_called_by_threads_wait_for_one_another(
    tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread computes with real weights, another that calls the same part must not take them as they are."""
    torch.manual_seed(0)
    module, x = nn.Sequential(*(kind(64) for _ in range(3))).eval(), torch.randn(2, 3, 64)
    x = x[0] if kind is Projection else x
    twin = copy.deepcopy(module[1])
    fused: list[int] = []
    native: Any = torch._native_multi_head_attention  # pyright: ignore

    def counted(*args: Any, **options: Any) -> Any:
        fused.append(1)
        return native(*args, **options)

    monkeypatch.setattr(torch, "_native_multi_head_attention", counted)
    with record(module, lambda: module(x), tmp_path).execute(0.0):
        fused.clear()
        found, waited = _looked_at_from_another_thread(module[1], x, lambda: module[1](x))
        assert len(fused) == (0 if kind is Projection else 2)
        # Kernels called from a thread of its own may have another number of threads, and so other last bits.
        expected, _ = _looked_at_from_another_thread(twin, x, lambda: twin(x))
    assert waited
    assert torch.equal(found, expected)


def test_a_weight_is_lazy_for_others_while_its_layer_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(*(Projection(64) for _ in range(3))).eval(), torch.randn(3, 64)
    with record(module, lambda: module(x), tmp_path).execute(0.0):
        weight = module[1].weight
        found, waited = _looked_at_from_another_thread(module[1], x, lambda: module[1].weight)
        assert found is weight and not waited


class Scaled(nn.Module):
    """Finds its weight in a way of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / 8)

    def __getattr__(self, name: str) -> Any:
        found: Any = super().__getattr__(name)
        return found * 2 if name == "weight" else found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Kept(Projection, dict[str, int]):
    """A dictionary, too."""

    __hash__ = nn.Module.__hash__  # pyright: ignore[reportAssignmentType]

    def __init__(self, width: int) -> None:
        dict.__init__(self)
        super().__init__(width)


@pytest.mark.parametrize("kind", [Scaled, Kept])
def test_parts_that_are_not_made_or_searched_as_others_are(tmp_path: Path, kind: Any) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(*(kind(64) for _ in range(3))).eval(), torch.randn(3, 64)
    with torch.no_grad():
        expected = module(x)
    with record(module, lambda: module(x), tmp_path).execute(0.0):
        for _ in range(2):
            assert torch.equal(module(x), expected)
