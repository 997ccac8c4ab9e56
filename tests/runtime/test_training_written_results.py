"""Results that the caller writes in place before the backward: right where nothing reads them again, else refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.dynamo import backend
from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import Case, differing, gradients, plan_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Halves(nn.Module):
    """Gives two views of one tensor that its backward reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[rows, 64] to twice [rows, 32]."""
        return torch.sigmoid(self.layer(x)).chunk(2, 1)


class Flat(nn.Sequential):
    """Gives a view of such a tensor."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as its class calls it
        """[rows, 64] to [64 rows]."""
        return super().forward(input).flatten()  # type: ignore[no-any-return]


MAKES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Linear(64, 64), nn.Sigmoid()),
    "halves": Halves,
    "flat": lambda: Flat(nn.Linear(64, 64), nn.Sigmoid()),
    "not read": lambda: nn.Linear(64, 64),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_compiled_model_is_as_strict_as_the_plain_one(name: str) -> None:
    torch.manual_seed(0)
    module, x = MAKES[name](), torch.randn(128, 64)
    twin = copy.deepcopy(module)
    found: Any = torch.compile(module, backend=backend, fullgraph=True, options={"time_limit_s": 1})
    told: list[str] = []
    for run in (twin, found):
        for written in (False, True):
            result = run(x)
            part = result[0] if isinstance(result, tuple) else result
            try:
                if written:
                    part.mul_(2)
                part.square().sum().backward()
                told.append("")
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error) or "is a view" in str(error)
                told.append("refused")
    assert told[:2] == told[2:] == ["", "" if name == "not read" else "refused"]
    assert not differing(gradients(module), gradients(twin))


def root(result: torch.Tensor) -> torch.Tensor:
    """The root of the mean square, whose derivative takes the root itself."""
    return result.square().mean().sqrt()


def test_a_loss_that_is_written_is_told() -> None:
    torch.manual_seed(0)
    case = Case(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), (torch.randn(128, 64),), root)
    twin, file = case.twin(), plan_of(case, 0.0)
    with TrainingExecutor(file, case.module, loss=root) as step, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        losses = [step(*case.batch) for _ in range(2)]  # by the plan, and without it
        for loss in losses:
            loss /= 4
            with pytest.raises(RuntimeError, match=r"modified by an inplace operation: \[torch.FloatTensor \[\]\]"):
                loss.backward()
        assert not gradients(case.module)
        (step(*case.batch) / 4).backward()
        (root(twin(*case.batch)) / 4).backward()
        assert not differing(gradients(case.module), gradients(twin))
