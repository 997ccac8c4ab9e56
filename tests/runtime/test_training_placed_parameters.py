"""Steps whose parameters live on disk: the bits of the plain loop, and a module that is right between steps."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError, PlanMismatchError
from tensorstow.ir.files import PlanFile
from tensorstow.ir.graph import StorageKind
from tensorstow.planner.training import ALL, lower_joint, with_updates
from tensorstow.planner.training.optimizer import optimizer_calls
from tensorstow.runtime.training.executor import TrainingExecutor
from tensorstow.runtime.training.joint import capture_joint

from .optimizer_loop import Stack
from .training_steps import Case, differing, gpt, gradients, plain_loss, plan_of, state

KINDS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


def stack() -> Case:
    """Tied layers, and a parameter that lies column by column."""
    torch.manual_seed(0)
    return Case(Stack(width=64), (torch.randn(32, 64),))


CASES: dict[str, Callable[[], Case]] = {"gpt": gpt, "stack": stack}


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def planned(name: str, kind: str, share: float, strategy: str = "stow") -> PlanFile:
    case = CASES[name]()
    optimizer = KINDS[kind](case.module.parameters())
    return plan_of(case, share, optimizer=optimizer, scope=ALL, strategy=strategy, time_limit_s=1.0)


class Pair:
    """A module and a twin of it, each with its optimizer; `plan` is for the first."""

    def __init__(self, name: str = "gpt", kind: str = "adamw") -> None:
        self.case = CASES[name]()
        self.module, self.twin = self.case.module, self.case.twin()
        self.optimizer, self.plain = (KINDS[kind](m.parameters()) for m in (self.module, self.twin))

    def step(self, step: TrainingExecutor, seed: int) -> None:
        """A step of both, which are equal after it."""
        torch.manual_seed(seed)
        got = step(*self.case.batch)
        torch.manual_seed(seed)
        self.plain.zero_grad()
        wanted = plain_loss(self.case, self.twin)
        wanted.backward()
        self.plain.step()
        assert torch.equal(got, wanted.detach()), seed
        self.check(seed)

    def check(self, seed: int) -> None:
        """Parameters and buffers are the same."""
        assert not differing(state(self.module), state(self.twin)), seed


@pytest.mark.parametrize(
    ("name", "kind", "share", "strategy"),
    [
        ("gpt", "adamw", 0.0, "stow"),
        ("gpt", "sgd", 0.3, "stow-recompute"),
        ("stack", "adamw", 0.4, "belady-prefetch"),
        ("stack", "sgd", 0.1, "stow"),
        ("stack", "sgd", 1.0, "resident"),
    ],
)
def test_ten_steps_are_those_of_the_plain_loop(name: str, kind: str, share: float, strategy: str) -> None:
    file = planned(name, kind, share, strategy)
    assert file.training is not None
    assert len(file.training.parameters) >= 3
    assert not check(file.plan, file.graph, file.machine)
    pair = Pair(name, kind)
    with TrainingExecutor(file, pair.module, optimizer=pair.optimizer) as step:
        for seed in range(10):
            pair.step(step, seed)
        assert bool(step.stats.read_nbytes) == bool(step.stats.written_nbytes) == (share < 1.0)
    pair.check(10)


def test_memory_of_parameters_is_given_back() -> None:
    pair = Pair("stack")
    file = planned("stack", "adamw", 0.4, "belady-prefetch")
    assert file.training is not None
    weights = {s.id: s.nbytes for s in file.graph.storages if s.kind is StorageKind.WEIGHT and s.nbytes}
    assert len(weights) == len(file.training.parameters)
    before = {n: p.data_ptr() for n, p in pair.module.named_parameters()}
    with TrainingExecutor(file, pair.module, optimizer=pair.optimizer) as step:
        pair.step(step, 0)
        for placed in file.training.parameters:
            for name in placed.names:
                assert pair.module.get_parameter(name).data_ptr() != before.get(name)


def test_between_steps_the_module_is_an_ordinary_one() -> None:
    pair = Pair("stack")
    saved, then = io.BytesIO(), (pair.twin.state_dict(), pair.plain.state_dict())
    kept: dict[str, torch.Tensor] = {}
    file = planned("stack", "adamw", 0.4, "belady-prefetch")
    with TrainingExecutor(file, pair.module, optimizer=pair.optimizer) as step:
        for seed in range(8):
            pair.step(step, seed)
            if seed == 1:  # a checkpoint, which is loaded again below
                torch.save((pair.module.state_dict(), pair.optimizer.state_dict()), saved)
                then = copy.deepcopy((pair.twin.state_dict(), pair.plain.state_dict()))
                kept = pair.module.state_dict()
                assert not differing(dict(kept), dict(pair.twin.state_dict()))
            if seed == 2:
                assert set(kept) == set(pair.twin.state_dict())
                with torch.no_grad():
                    assert torch.equal(step(*pair.case.batch), plain_loss(pair.case, pair.twin))
            if seed == 3:
                for module in (pair.module, pair.twin):
                    with torch.no_grad():
                        for p in module.parameters():
                            p.mul_(0.75)
            if seed == 4:
                for module in (pair.module, pair.twin):
                    p = next(module.parameters())
                    p.data = p.detach() * 2
            if seed == 5:
                model, states = torch.load(io.BytesIO(saved.getvalue()))
                pair.module.load_state_dict(model)
                pair.optimizer.load_state_dict(states)
                pair.twin.load_state_dict(then[0])
                pair.plain.load_state_dict(then[1])
                pair.check(seed)
    pair.check(8)
    pair.optimizer.zero_grad()
    for module, optimizer in (
        (pair.module, pair.optimizer),
        (pair.twin, pair.plain),
    ):
        torch.manual_seed(9)
        optimizer.zero_grad()
        plain_loss(pair.case, module).backward()
        optimizer.step()
    pair.check(9)


def test_an_error_inside_a_step_leaves_parameters_as_far_as_they_came() -> None:
    pair = Pair()

    def failing(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
        counted = iter(range(calls))

        def call(*args: Any) -> Any:
            if next(counted, None) is None:
                raise KeyboardInterrupt
            return function(*args)

        return call

    with TrainingExecutor(planned("gpt", "adamw", 0.0), pair.module, optimizer=pair.optimizer) as step:
        for seed in range(3):
            pair.step(step, seed)
        for calls in (1, 8):  # in the forward, and in the backward behind some updates
            with pytest.MonkeyPatch.context() as patched:
                name = "_mm" if calls == 8 else "_gelu"
                patched.setitem(step.hooks, name, failing(step.hooks[name], calls))
                with pytest.raises(KeyboardInterrupt):
                    step(*pair.case.batch)
            assert bool(differing(state(pair.module), state(pair.twin))) == (calls == 8)
            pair.twin.load_state_dict(pair.module.state_dict())
            pair.plain.load_state_dict(copy.deepcopy(pair.optimizer.state_dict()))
            for seed in range(3, 5):
                pair.step(step, seed)


class Adapted(nn.Module):
    """Layers that are frozen, each with a small one beside it that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.ModuleList(nn.Linear(96, 96) for _ in range(4))
        self.frozen.requires_grad_(False)
        self.beside = nn.ModuleList(nn.Linear(96, 96, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar loss of [rows, 96]."""
        for layer, small in zip(self.frozen, self.beside, strict=True):
            x = torch.tanh(layer(x) + small(x))
        return x.square().mean()


def test_frozen_parameters_are_placed_without_an_optimizer() -> None:
    torch.manual_seed(0)
    case = Case(Adapted(), (torch.randn(16, 96),))
    file = plan_of(case, 0.1, scope=ALL, time_limit_s=1.0)
    assert file.training is not None
    assert {p.names[0].split(".")[0] for p in file.training.parameters} == {"frozen"}
    assert file.plan.certificate.moved_nbytes["ssd->dram"] > 0
    twin = case.twin()
    with TrainingExecutor(file, case.module) as step:
        for number in range(3):
            for module, loss in ((case.module, step(*case.batch)), (twin, plain_loss(case, twin))):
                module.zero_grad()
                loss.backward()
            assert not differing(gradients(case.module), gradients(twin)), number
            for module in (case.module, twin):
                with torch.no_grad():
                    for p in module.parameters():
                        p.mul_(0.9)  # frozen ones as well
    assert not differing(state(case.module), state(twin))


def test_what_does_not_fit_the_plan_is_refused() -> None:
    file = planned("gpt", "adamw", 0.0)
    pair = Pair()
    with pytest.raises(InputError, match="no optimizer"):
        TrainingExecutor(file, pair.module)
    untied = copy.deepcopy(pair.module)
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())  # type: ignore[union-attr]
    with pytest.raises(PlanMismatchError, match="were one parameter"):
        TrainingExecutor(file, untied, optimizer=torch.optim.AdamW(untied.parameters(), lr=1e-2))
    with TrainingExecutor(file, pair.module, optimizer=pair.optimizer) as step:
        pair.step(step, 0)
        pair.module.positions = nn.Parameter(pair.module.positions.detach().clone())  # type: ignore[operator,union-attr]
        with pytest.raises(InputError, match="replaced"):
            step(*pair.case.batch)


class Halves(nn.Module):
    """Two parameters that are parts of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(2, 32, 32)
        self.first, self.second = nn.Parameter(both[0]), nn.Parameter(both[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A scalar loss of [rows, 32]."""
        return (x @ self.first @ self.second).square().mean()


def test_parameters_that_are_parts_of_one_memory_have_no_updates_of_their_own() -> None:
    module = Halves()
    step = lower_joint(capture_joint(module, (torch.randn(4, 32),)), name="halves")
    with pytest.raises(InputError, match="second"):
        with_updates(step, optimizer_calls(torch.optim.SGD(module.parameters(), lr=0.1), module))
