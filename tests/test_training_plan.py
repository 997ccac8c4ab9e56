"""Training steps planned from Python and from the command line: what is promised, what is kept, what is refused."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.ir.check import check
from tensorstow.ir.graph import StorageKind
from tensorstow.ir.machine import Machine
from tensorstow.report_training import fates
from tests.conftest import Cli
from tests.runtime.training_steps import Case, box, gpt, mean_square, resnet

SCRIPT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(128, 128), nn.GELU())])

    def forward(self, x):
        return self.layers(x)

def square(result):
    return result.square().mean()

def plain():
    torch.manual_seed(0)
    return Net(), (torch.randn(256, 128),)

def with_loss():
    return (*plain(), square)

def with_optimizer():
    module, batch = plain()
    return module, batch, square, torch.optim.AdamW(module.parameters())

def wrong_loss():
    return (*plain(), 3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "steps.py"
    path.write_text(SCRIPT)
    return path


def planned(case: Case, machine: Machine, optimizer: Any = None) -> ts.PlanFile:
    return ts.plan(
        case.module,
        case.batch,
        machine=machine,
        mode="training",
        loss=case.loss,
        optimizer=optimizer,
        time_limit_s=3.0,
    )


@cache
def roomy() -> ts.PlanFile:
    return planned(gpt(), box(1 << 32))


def peak(file: ts.PlanFile) -> int:
    return file.plan.certificate.peak_nbytes["dram"]


def test_with_room_everything_stays_and_nothing_is_done_twice() -> None:
    file = roomy()
    assert file.training is not None
    assert file.plan.certificate.status == "optimal"
    assert not file.plan.transfers
    found = fates(file, file.training)
    assert found.kept.count > 10
    assert (found.offloaded.count, found.recomputed.count, found.calls) == (0, 0, 0)


@pytest.mark.parametrize("share", [0.8, 0.6])
def test_with_less_memory_the_plan_keeps_its_promise(share: float) -> None:
    budget = int(share * peak(roomy()))
    file = planned(gpt(), box(budget))
    assert file.training is not None
    assert not check(file.plan, file.graph, file.machine)
    assert peak(file) <= budget
    found, before = fates(file, file.training), fates(roomy(), roomy().training)  # type: ignore[arg-type]
    assert found.offloaded.count + found.recomputed.count > 0
    total = found.kept.nbytes + found.offloaded.nbytes + found.recomputed.nbytes
    # What turns up again behind the turn only because it is made again waits for the backward, too.
    assert total >= before.kept.nbytes


def test_a_plan_file_says_all_again(tmp_path: Path) -> None:
    case = gpt()
    file = planned(case, box(1 << 32), torch.optim.AdamW(case.module.parameters()))
    ts.write_plan(file, tmp_path / "plan.json")
    again = ts.read_plan(tmp_path / "plan.json")
    assert again.training == file.training
    assert again == file


def test_states_are_placed_only_where_the_step_does_not_fit_beside_them() -> None:
    case = gpt()
    adam = torch.optim.AdamW(case.module.parameters())
    all_kept = planned(case, box(1 << 32), adam)
    assert all_kept.training is not None
    assert all_kept.training.optimizer is not None
    states = [s for s in all_kept.graph.storages if s.kind is StorageKind.OPTIMIZER_STATE]
    assert states
    assert not any(s.nbytes for s in states)
    tight = planned(case, box(int(0.8 * peak(all_kept))), adam)
    assert any(s.nbytes for s in tight.graph.storages if s.kind is StorageKind.OPTIMIZER_STATE)
    assert tight.training is not None
    assert tight.training.kept_nbytes < all_kept.training.kept_nbytes
    gradients = [s for s in tight.graph.storages if s.kind is StorageKind.GRADIENT and s.nbytes]
    assert gradients


def test_parameters_are_placed_where_nothing_else_fits() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(12)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x).square().mean()

    case = Case(Wide(), (torch.randn(64, 512),))
    adam = torch.optim.SGD(case.module.parameters(), lr=0.1)
    file = planned(case, box(8 << 20), adam)
    assert file.training is not None
    assert len(file.training.parameters) >= 12
    assert sum(s.nbytes for s in file.graph.storages if s.kind is StorageKind.WEIGHT) > 8 << 20
    assert not check(file.plan, file.graph, file.machine)
    # All is updated, so what memory cannot hold is written.
    assert file.plan.certificate.moved_nbytes["dram->ssd"] >= (12 << 20) - (8 << 20)


def test_what_cannot_fit_says_what_would() -> None:
    with pytest.raises(ts.InfeasibleError, match="the smallest feasible budget is") as caught:
        planned(gpt(), box(100_000))
    smallest = caught.value.smallest_nbytes
    assert smallest is not None
    assert peak(planned(gpt(), box(smallest))) <= smallest
    with pytest.raises(ts.InfeasibleError):
        planned(gpt(), box(smallest - 1))


def test_a_step_without_a_loss_is_refused() -> None:
    case = resnet()
    with pytest.raises(ts.InputError, match="loss"):
        ts.plan(case.module, case.batch, machine=box(1 << 32), mode="training")
    with pytest.raises(ts.InputError, match="loss"):
        ts.plan(case.module, case.batch, machine=box(1 << 32), mode="training", loss=lambda y: (y.sum(), y.mean()))


def test_loss_and_optimizer_belong_to_training() -> None:
    case = gpt()
    with pytest.raises(ts.InputError, match="mode='training'"):
        ts.plan(case.module, case.batch, machine=box(1 << 32), loss=lambda y: y)
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ts.InputError, match="module that is planned"):
        planned(case, box(1 << 32), foreign)


def test_a_module_that_changed_has_another_key() -> None:
    first, same, other = gpt(), gpt(), gpt()
    other.module.eval()
    keys = [planned(c, box(1 << 32)).training.key for c in (first, same, other)]  # type: ignore[union-attr]
    assert keys[0] == keys[1] != keys[2]


def test_a_plan_is_applied_with_what_it_was_planned_with_and_to_nothing_else() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    twin = copy.deepcopy(module)
    batch = (torch.randn(128, 64),)
    adam, other = (torch.optim.AdamW(m.parameters()) for m in (module, twin))
    machine = ts.Machine.detect(dram="64MiB")
    file = ts.plan(module, batch, machine=machine, mode="training", loss=mean_square, optimizer=adam, time_limit_s=2.0)
    with cast("Any", ts.apply(file, module)) as step:
        for _ in range(2):
            found = step(*batch)
            expected = mean_square(twin(*batch))
            expected.backward()
            other.step()
            other.zero_grad()
            assert torch.equal(found, expected.detach())
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
        with pytest.raises(ts.PlanMismatchError):
            step(torch.randn(64, 64))
    with pytest.raises(ts.InputError, match="give it"):
        ts.apply(file)


def test_an_onnx_file_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ts.InputError, match="inference only"):
        ts.plan(str(tmp_path / "model.onnx"), machine=box(1 << 32), mode="training")


def test_the_command_line_plans_a_step(cli: Cli, script: Path, tmp_path: Path) -> None:
    arguments = ("--mode", "training", "--machine", "rtx4090", "--tier", "hbm=2MiB", "--time-limit", "3")
    done = cli("plan", f"{script}:with_loss", *arguments, "-o", str(tmp_path / "p.json"), "--json")
    assert done.status == 0, done.err
    facts = done.json
    assert facts["strategy"] == "stow-recompute"
    fate = facts["training"]["activations"]
    assert fate["offloaded"]["count"] + fate["recomputed"]["count"] > 0
    assert facts["peak_nbytes"]["hbm"] <= 2 << 20
    shown = cli("show", str(tmp_path / "p.json"))
    assert shown.status == 0
    assert "training step" in shown.out
    text = cli("plan", f"{script}:with_optimizer", *arguments)
    assert text.status == 0, text.err
    assert "recomputed" in text.out
    assert "AdamW" in text.out
    run = cli("run", str(tmp_path / "p.json"))
    assert run.status == 2


def test_the_command_line_refuses_what_it_cannot_train(cli: Cli, script: Path) -> None:
    for name, said in (("plain", "loss"), ("wrong_loss", "loss")):
        done = cli("plan", f"{script}:{name}", "--mode", "training", "--machine", "rtx4090")
        assert done.status == 2
        assert said in done.err
