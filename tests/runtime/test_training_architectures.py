"""Ten steps of small models of the architectures that people train, by tight plans: the bits of the plain steps."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest
import torch

from tensorstow.runtime.training.executor import TrainingExecutor

from .training_architectures import ARCHITECTURES
from .training_steps import differing, gradients, plain_loss, plan_of, state

STEPS = 10
SHARES = {"60%": 0.6, "the smallest": 0.0}
"""Of what there would be beyond the least memory that goes, if nothing left it."""


pytestmark = pytest.mark.usefixtures("one_thread")


def trained(
    run: Callable[..., torch.Tensor], module: torch.nn.Module, batch: tuple[torch.Tensor, ...]
) -> Generator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """The loss and the gradients of each step."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for seed in range(STEPS):
        optimizer.zero_grad()
        torch.manual_seed(seed)
        loss = run(*batch)
        loss.backward()
        yield loss.detach(), gradients(module)
        optimizer.step()


QUICK = {("gpt2", "60%"), ("qwen3_moe", "the smallest"), ("resnet", "the smallest"), ("unet", "60%")}
CASES = [
    pytest.param(name, share, marks=() if (name, share) in QUICK else pytest.mark.slow)
    for name in ARCHITECTURES
    for share in SHARES
]


@pytest.mark.parametrize(("name", "share"), CASES)
def test_ten_steps_are_those_without_a_plan(name: str, share: str) -> None:
    pytest.importorskip("transformers")
    case = ARCHITECTURES[name]()
    twin = case.twin()
    file = plan_of(case, SHARES[share], strategy="stow-recompute", time_limit_s=1.0)
    assert file.plan.transfers or len(file.plan.steps) > len(file.graph.operators), "the plan has to do something"
    with TrainingExecutor(file, case.module, loss=case.loss) as step:
        ours = trained(step, case.module, case.batch)
        learned = -1
        plain = trained(lambda *batch: plain_loss(case, twin, batch), twin, case.batch)
        for number, ((loss, grads), (wanted, theirs)) in enumerate(zip(ours, plain, strict=True)):
            assert torch.equal(loss, wanted), number
            assert not differing(grads, theirs), number
            if number == 0:  # the first step learns which of an operator's allocations are its results
                learned = step.region_stats.overflows
        assert not differing(state(case.module), state(twin))
        assert step.region_stats.overflows == learned, "kernels took more beside their results than the plan foresaw"
