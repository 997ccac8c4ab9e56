"""Steps whose numbers or types are not the usual ones: losses that are no number, and autocast."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import PlanMismatchError
from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import Case, Gpt, gradients, plain_loss, plan_of, state

pytestmark = pytest.mark.usefixtures("one_thread")


class Halves(nn.Module):
    """`inside` computes in bfloat16 wherever autocast does; the loss is in float32."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """As `inside`."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.inside(*batch).float()


def gpt(dropout: float) -> Case:
    """One block: what is odd here is no matter of depth."""
    torch.manual_seed(0)
    return Case(Gpt(blocks=1, dropout=dropout), (torch.randint(96, (8, 64)), torch.randint(96, (8, 64))))


def bits_differ(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> list[str]:
    """Names whose bytes differ: one NaN is as good as another only if it is the same one."""
    assert ours.keys() == plain.keys()
    return [
        n
        for n, t in ours.items()
        if not torch.equal(t.flatten().view(torch.uint8), plain[n].flatten().view(torch.uint8))
    ]


def test_a_loss_that_is_no_number_is_handed_on_and_the_next_step_is_right() -> None:
    torch.manual_seed(0)
    inside = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())))
    case = Case(inside, (torch.randn(512, 64),), lambda result: result.square().mean())
    spoiled = case.batch[0].clone()
    spoiled[3, 5] = float("nan")
    twin = case.twin()
    with TrainingExecutor(plan_of(case, 0.3, time_limit_s=1.0), case.module, loss=case.loss) as step:
        for batch in (spoiled, case.batch[0]):
            got, wanted = step(batch), plain_loss(case, twin, (batch,))
            got.backward()
            wanted.backward()
            assert bool(got.isnan()) == bool(wanted.isnan()) == (batch is spoiled)
            found = gradients(case.module)
            assert all(t.isnan().any() for n, t in found.items() if "weight" in n) == (batch is spoiled)
            assert not bits_differ(found, gradients(twin))
            case.module.zero_grad()
            twin.zero_grad()
        assert step.stats.written_nbytes > 0, "the plan was followed with numbers and without"


def test_an_optimizer_takes_what_is_no_number_as_the_plain_loop_does() -> None:
    case = gpt(dropout=0.0)
    with torch.no_grad():
        case.module.blocks[0].up.weight[0, 0] = float("inf")  # type: ignore[union-attr,operator,index]
    twin = case.twin()
    ours, plain = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (case.module, twin))
    with TrainingExecutor(plan_of(case, 0.3, optimizer=ours, time_limit_s=1.0), case.module, optimizer=ours) as step:
        for _ in range(2):
            got = step(*case.batch)
            wanted = plain_loss(case, twin)
            wanted.backward()
            plain.step()
            plain.zero_grad()
            assert got.isnan() and wanted.isnan()
    spread = [n for n, t in state(twin).items() if t.isnan().any()]
    assert len(spread) > 4
    assert not bits_differ(state(case.module), state(twin))


def test_autocast_in_the_module_gives_the_bits_of_the_plain_step() -> None:
    inside = gpt(dropout=0.0)
    case = Case(Halves(inside.module), inside.batch)
    twin = case.twin()
    file = plan_of(case, 0.3, time_limit_s=1.0)
    assert any(t.dtype == "bfloat16" for t in file.graph.tensors if t.nbytes), "halves are planned"
    with TrainingExecutor(file, case.module) as step:
        for _ in range(2):
            got, wanted = step(*case.batch), plain_loss(case, twin)
            got.backward()
            wanted.backward()
            assert torch.equal(got, wanted)
            assert not bits_differ(gradients(case.module), gradients(twin))
        assert step.stats.written_nbytes > 0


def test_autocast_with_dropout_gives_the_bits_of_pytorchs_own_compiler() -> None:
    """Under autocast eager and `aot_eager` draw different masks in PyTorch itself; ours are those of the latter."""
    inside = gpt(dropout=0.1)
    case = Case(Halves(inside.module), inside.batch)
    compiled: Any = torch.compile(copy.deepcopy(case.module), backend="aot_eager", fullgraph=True)
    with TrainingExecutor(plan_of(case, 0.3, time_limit_s=1.0), case.module) as step:
        for seed in range(2):
            torch.manual_seed(seed)
            got = step(*case.batch)
            got.backward()
            torch.manual_seed(seed)
            wanted = compiled(*case.batch)
            wanted.backward()
            assert torch.equal(got, wanted)
            assert not bits_differ(gradients(case.module), gradients(compiled._orig_mod))


def test_autocast_around_a_step_that_was_planned_without_is_refused_and_the_next_step_is_right() -> None:
    case = gpt(dropout=0.0)
    twin = case.twin()
    with TrainingExecutor(plan_of(case, 0.5, time_limit_s=1.0), case.module) as step:
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(PlanMismatchError, match="plan again"):
            step(*case.batch)
        got, wanted = step(*case.batch), plain_loss(case, twin)
        got.backward()
        wanted.backward()
        assert torch.equal(got, wanted)
        assert not bits_differ(gradients(case.module), gradients(twin))
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(PlanMismatchError, match="plan again"):
            step(*case.batch)
