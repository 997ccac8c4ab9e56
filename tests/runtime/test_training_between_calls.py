"""What changes between two calls of a planned step: constants in the graph, counters, modes, options."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import PlanMismatchError
from tensorstow.runtime.training import joint_tracing
from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import Case, differing, gradients, mean_square, plain_loss, plan_of, state

pytestmark = pytest.mark.usefixtures("one_thread")


class Weighted(nn.Module):
    """Its Python values become tensors inside its forward: `scale` twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.scale, self.picked = 0.5, 3
        self.classes = [float(i % 3 + 1) for i in range(64)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] to a scalar."""
        for layer in self.layers:
            x = torch.relu(layer(x)) * torch.tensor(self.scale)
        labels = torch.tensor([self.picked]).expand(len(x))
        told = nn.functional.cross_entropy(x, labels, weight=torch.tensor(self.classes))
        return told + torch.tensor(self.scale) * x.square().mean()


def weighted() -> Case:
    torch.manual_seed(0)
    return Case(Weighted(), (torch.randn(128, 64),))


CHANGES: dict[str, Any] = {"scale": 0.25, "picked": 7, "classes": [float(i % 5 + 1) for i in range(64)]}


def check(case: Case, twin: nn.Module, loss: torch.Tensor, plain: torch.Tensor) -> None:
    """The same loss and the same gradients, which are then dropped."""
    assert torch.equal(loss.detach(), plain.detach())
    assert gradients(twin) and not differing(gradients(case.module), gradients(twin))
    case.module.zero_grad()
    twin.zero_grad()


def test_constants_have_the_value_of_their_call() -> None:
    """At the first call already, which is not that of the plan, and back without being traced."""
    case = weighted()
    twin, file = case.twin(), plan_of(case, 0.0)
    before = {name: getattr(case.module, name) for name in CHANGES}
    with TrainingExecutor(file, case.module) as step:
        for values in (*({name: value} for name, value in CHANGES.items()), before, CHANGES, before):
            for name, value in values.items():
                setattr(case.module, name, value)
                setattr(twin, name, value)
            loss, plain = step(*case.batch), plain_loss(case, twin)
            loss.backward()
            plain.backward()
            check(case, twin, loss, plain)


def test_constants_of_a_second_forward_are_its_own() -> None:
    case = weighted()
    twin, file = case.twin(), plan_of(case)

    def losses_and_slopes(module: Any, run: Any) -> list[torch.Tensor]:
        """Of a forward by the plan, and of two without it before its backward."""
        losses: list[torch.Tensor] = []
        slopes: list[torch.Tensor] = []
        for scale in (0.5, 0.25, 0.125):
            module.scale = scale
            losses.append(run(*case.batch))
        for loss in losses:
            loss.backward()
            slopes.append(module.layers[0].weight.grad.clone())
            module.zero_grad()
        return losses + slopes

    with TrainingExecutor(file, case.module) as step, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert all(map(torch.equal, losses_and_slopes(case.module, step), losses_and_slopes(twin, twin)))


def small() -> Case:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.1), nn.GELU(), nn.Linear(64, 64))
    return Case(layers, (torch.randn(128, 64),), mean_square)


def test_a_first_call_that_does_not_fit_is_refused_in_evaluation_mode_too() -> None:
    case = small()
    case.module.eval()
    twin = case.twin()
    optimizer, plain = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (case.module, twin))
    file = plan_of(case, optimizer=optimizer)
    with TrainingExecutor(file, case.module, loss=case.loss, optimizer=optimizer) as step:
        with pytest.raises(PlanMismatchError, match="shapes or types of the inputs"):
            step(case.batch[0][:100])
        optimizer.param_groups[0]["amsgrad"] = True
        with pytest.raises(PlanMismatchError, match="'amsgrad' of parameter group 0"):
            step(*case.batch)
        optimizer.param_groups[0]["amsgrad"] = False
        for _ in range(2):
            loss, wanted = step(*case.batch), plain_loss(case, twin)
            plain.zero_grad()
            wanted.backward()
            plain.step()
            assert torch.equal(loss, wanted.detach())
            assert not differing(state(case.module), state(twin))


def test_a_plan_for_training_mode_evaluates_in_the_other() -> None:
    """Also where both modes have one graph, and the first call comes in evaluation mode."""
    torch.manual_seed(0)
    case = Case(nn.Linear(64, 64), (torch.randn(128, 64),), mean_square)
    optimizer = torch.optim.SGD(case.module.parameters(), lr=1e-2)
    file = plan_of(case, optimizer=optimizer)
    with TrainingExecutor(file, case.module, loss=case.loss, optimizer=optimizer) as step:
        before = {name: p.detach().clone() for name, p in state(case.module).items()}
        case.module.eval()
        assert torch.equal(step(*case.batch), plain_loss(case, case.module))
        assert not differing(state(case.module), before)
        case.module.train()
        step(*case.batch)
        assert sorted(differing(state(case.module), before)) == sorted(before)
        before = {name: p.detach().clone() for name, p in state(case.module).items()}
        case.module.eval()
        step(case.batch[0][:3])
        assert not differing(state(case.module), before)


def test_whoever_plans_in_one_mode_and_trains_in_the_other_may_evaluate() -> None:
    """As with a model that was loaded in evaluation mode, and has nothing that tells the modes apart."""
    torch.manual_seed(0)
    case = Case(nn.Linear(64, 64).eval(), (torch.randn(128, 64),), mean_square)
    optimizer = torch.optim.SGD(case.module.parameters(), lr=1e-2)
    file = plan_of(case, optimizer=optimizer)
    with TrainingExecutor(file, case.module, loss=case.loss, optimizer=optimizer) as step:
        case.module.train()
        step(*case.batch)
        before = {name: p.detach().clone() for name, p in state(case.module).items()}
        case.module.eval()
        step(*case.batch)
        assert not differing(state(case.module), before)


class Counting(nn.Module):
    """Counts its calls in Python, and weighs its loss otherwise from the third on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] to a scalar."""
        self.calls += 1
        return self.layer(x).square().mean() * torch.tensor(1.0 if self.calls < 3 else 0.5)


@pytest.mark.parametrize(("forms", "steps"), [(joint_tracing.FORMS, 10), (2, 4)])
def test_a_counter_in_python_counts(forms: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is traced anew; where traces are too many the old ones go."""
    monkeypatch.setattr(joint_tracing, "FORMS", forms)
    torch.manual_seed(0)
    case = Case(Counting(), (torch.randn(128, 64),))
    twin, file = case.twin(), plan_of(case)
    assert case.module.calls == 0
    told = pytest.warns(UserWarning, match="Counting was traced 9 times") if steps > 8 else nullcontext()
    with TrainingExecutor(file, case.module) as step, told:
        for number in range(1, steps + 1):
            loss, plain = step(*case.batch), plain_loss(case, twin)
            loss.backward()
            plain.backward()
            check(case, twin, loss, plain)
            assert case.module.calls == twin.calls == number
