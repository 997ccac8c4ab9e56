"""Training steps by plans: the bits of the plain step, whatever the budget and whatever happens between two steps."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.ir.files import PlanFile
from tensorstow.runtime.training.executor import TrainingExecutor

from .training_steps import (
    Case,
    differing,
    gpt,
    gradients,
    plain_loss,
    plan_of,
    resnet,
    state,
)

CASES: dict[str, Callable[[], Case]] = {"gpt": gpt, "resnet": resnet}


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def planned(name: str, share: float, strategy: str = "stow", bytes_per_s: float = 2e9) -> PlanFile:
    return plan_of(CASES[name](), share, strategy=strategy, bytes_per_s=bytes_per_s)


def train(
    run: Callable[..., torch.Tensor], module: torch.nn.Module, batch: tuple[torch.Tensor, ...], steps: int = 3
) -> list[torch.Tensor]:
    """Losses of some steps with an optimizer of the user's, and the last gradients in the module."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses: list[torch.Tensor] = []
    for number in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(number)
        loss = run(*batch)
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    return losses


def check_equal(name: str, file: PlanFile, **options: Any) -> TrainingExecutor:
    """Train with and without the plan; the executor, closed."""
    case = CASES[name]()
    twin = case.twin()
    with TrainingExecutor(file, case.module, loss=case.loss, **options) as step:
        got = train(step, case.module, case.batch)
        wanted = train(lambda *batch: plain_loss(case, twin, batch), twin, case.batch)
        assert all(map(torch.equal, got, wanted))
        assert not differing(gradients(case.module), gradients(twin))
        assert not differing(state(case.module), state(twin))
        moved = file.plan.certificate.moved_nbytes
        assert step.stats.read_nbytes == moved.get("ssd->dram", 0)
        assert step.stats.written_nbytes == moved.get("dram->ssd", 0)
    return step


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_bits_are_those_of_the_plain_step(name: str, share: float) -> None:
    file = planned(name, share)
    assert bool(file.plan.transfers) == (share < 1)
    check_equal(name, file)


def test_repeated_operators_give_the_same_bits() -> None:
    file = planned("gpt", 0.3, "stow-recompute", 2e8)
    assert len(file.plan.steps) > len({s.op for s in file.plan.steps}), "a slow disk makes it worth repeating"
    check_equal("gpt", file)
    file = planned("resnet", 0.3, "stow-recompute", 2e8)
    assert len(file.plan.steps) > len({s.op for s in file.plan.steps})
    check_equal("resnet", file)


def test_results_lie_where_the_plan_has_them() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    with TrainingExecutor(file, case.module) as step:
        for _ in range(2):
            step(*case.batch).backward()
        before, copies = step.region_stats, step.copies
        step(*case.batch).backward()
        after, again = step.region_stats, step.copies
    if after.hits:  # the allocator is there
        assert after.hits > before.hits
        assert (after.misses, again) == (before.misses, copies), "after the first pass nothing is copied"


def test_without_the_allocator_results_are_copied() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    with TrainingExecutor(file, case.module, native=False) as step:
        step(*case.batch).backward()
        assert step.copies > len(case.module.blocks)  # type: ignore[arg-type]
    check_equal("gpt", file, native=False)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_whole_steps_update_parameters_as_the_plain_loop_does(share: float) -> None:
    case = gpt()
    twin = case.twin()
    optimizer = torch.optim.AdamW(case.module.parameters(), lr=1e-2)
    file = plan_of(case, share, optimizer=optimizer)
    plain = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    with TrainingExecutor(file, case.module, optimizer=optimizer) as step:
        for seed in range(10):
            if seed == 6:  # an error in the middle of the backward, after some updates: the twin starts again from here
                twin.load_state_dict(case.module.state_dict())
                plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 1e-2 / (1 + seed)
            torch.manual_seed(seed)
            got = step(*case.batch)
            torch.manual_seed(seed)
            plain.zero_grad()
            wanted = plain_loss(case, twin)
            wanted.backward()
            plain.step()
            assert torch.equal(got, wanted) and not got.requires_grad
            assert not differing(state(case.module), state(twin)), seed
            assert not gradients(case.module), "the plan's updates have used them"
            if seed == 5:
                with pytest.MonkeyPatch.context() as patched:
                    patched.setitem(step.hooks, "_mm", _interrupt_after(8, step.hooks["_mm"]))
                    with pytest.raises(KeyboardInterrupt):
                        step(*case.batch)
                assert differing(state(case.module), state(twin)), "some parameters have been updated"
    assert len(optimizer.state_dict()["state"]) == len(list(case.module.parameters()))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _interrupt_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    counted = iter(range(calls))

    def call(*args: Any) -> Any:
        return _interrupt() if next(counted, None) is None else function(*args)

    return call


def test_gradients_add_up() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    twin = case.twin()
    with TrainingExecutor(file, case.module) as step:
        for seed in range(3):
            torch.manual_seed(seed)
            (step(*case.batch) / 3).backward()
            torch.manual_seed(seed)
            (plain_loss(case, twin) / 3).backward()
    assert not differing(gradients(case.module), gradients(twin))


def test_a_dropped_forward_leaves_nothing_behind() -> None:
    case, file = gpt(), planned("gpt", 0.2)
    twin = case.twin()
    with TrainingExecutor(file, case.module) as step:
        for _ in range(3):
            loss = step(*case.batch)
            del loss
        torch.manual_seed(7)
        loss = step(*case.batch)
        loss.backward()
    torch.manual_seed(7)
    plain_loss(case, twin).backward()
    assert not differing(gradients(case.module), gradients(twin))


def test_a_second_forward_runs_beside_the_first() -> None:
    case, file = gpt(), planned("gpt", 0.2)
    twin = case.twin()
    with TrainingExecutor(file, case.module) as step:
        torch.manual_seed(1)
        first = step(*case.batch)
        with pytest.warns(UserWarning, match="before the backward of the first"):
            second = step(*case.batch)
        (first + second).backward()
        # Eager autograd adds the parts of a shared parameter's gradient up in another order than one graph does.
        aot = torch.compile(twin, backend="aot_eager", fullgraph=True)
        torch.manual_seed(1)
        (aot(*case.batch) + aot(*case.batch)).backward()
        assert not differing(gradients(case.module), gradients(twin))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(*case.batch).backward()


def test_backward_twice_is_refused() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    with TrainingExecutor(file, case.module) as step:
        loss = step(*case.batch)
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
        loss = step(*case.batch)
        loss.backward(retain_graph=True)
        with pytest.raises(ExecutionError, match="call the step again"):
            loss.backward()


def test_an_error_inside_a_step_leaves_the_next_one_right(monkeypatch: pytest.MonkeyPatch) -> None:
    case, file = gpt(), planned("gpt", 0.2)
    twin = case.twin()
    with TrainingExecutor(file, case.module) as step:
        train(step, case.module, case.batch, 1)
        train(lambda *batch: plain_loss(case, twin, batch), twin, case.batch, 1)
        for section in ("_mm", "_gelu"):  # in the backward, in the forward
            with monkeypatch.context() as patched:
                patched.setitem(step.hooks, section, _interrupt)
                with pytest.raises(KeyboardInterrupt):
                    step(*case.batch).backward()
        case.module.zero_grad()
        got = train(step, case.module, case.batch)
        twin.zero_grad()
        wanted = train(lambda *batch: plain_loss(case, twin, batch), twin, case.batch)
    assert all(map(torch.equal, got, wanted))
    assert not differing(state(case.module), state(twin))


def test_a_failing_disk_is_told_and_the_next_step_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorstow.runtime.directio import DirectFile

    case, file = gpt(), planned("gpt", 0.2)
    twin = case.twin()

    def fail(*_: object, **__: object) -> None:
        raise ExecutionError("the disk is full")

    with TrainingExecutor(file, case.module) as step:
        train(step, case.module, case.batch, 1)
        train(lambda *batch: plain_loss(case, twin, batch), twin, case.batch, 1)
        with monkeypatch.context() as patched:
            patched.setattr(DirectFile, "write_from", fail)
            with pytest.raises(ExecutionError, match="disk is full"):
                step(*case.batch).backward()
        case.module.zero_grad()
        twin.zero_grad()
        got = train(step, case.module, case.batch)
        wanted = train(lambda *batch: plain_loss(case, twin, batch), twin, case.batch)
    assert all(map(torch.equal, got, wanted))


def test_evaluation_between_steps_is_the_modules_own() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    twin = case.twin()
    few = tuple(t[:3] for t in case.batch)
    with TrainingExecutor(file, case.module) as step:
        case.module.eval()
        assert torch.equal(step(*few), plain_loss(case, twin.eval(), few)), "before the first step"
        case.module.train()
        twin.train()
        step(*case.batch).backward()
        with torch.no_grad():
            torch.manual_seed(3)
            got = step(*few)
            torch.manual_seed(3)
            assert torch.equal(got, plain_loss(case, twin, few))
        case.module.eval()
        assert torch.equal(step(*few), plain_loss(case, twin.eval(), few))
        case.module.train()
        torch.manual_seed(4)
        loss = step(*case.batch)
        torch.manual_seed(4)
        assert torch.equal(loss, plain_loss(case, twin.train()))


def test_what_was_not_planned_is_refused() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    few = tuple(t[:3] for t in case.batch)
    with TrainingExecutor(file, case.module) as step:
        for _ in range(2):
            with pytest.raises(PlanMismatchError, match="shapes"):
                step(*few)
            step(*case.batch).backward()
        case.module.blocks[1].dropout = 0.2  # type: ignore[union-attr]
        with pytest.raises(PlanMismatchError, match="plan again"):
            step(*case.batch)
    with pytest.raises(InputError, match="no updates, and an optimizer is given"):
        TrainingExecutor(file, case.module, optimizer=torch.optim.SGD(case.module.parameters()))


def test_a_parameter_changed_between_forward_and_backward_is_told() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    with TrainingExecutor(file, case.module) as step:
        loss = step(*case.batch)
        with torch.no_grad():
            case.module.head.weight.mul_(2)  # type: ignore[union-attr,operator]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_closed_step_gives_its_memory_back() -> None:
    case, file = gpt(), planned("gpt", 0.4)
    step = TrainingExecutor(file, case.module)
    step(*case.batch).backward()
    step.close()
    step.close()
    gc.collect()
    with pytest.raises(ExecutionError, match="closed"):
        step(*case.batch)


@pytest.mark.parametrize("native", [None, False])
def test_a_backward_after_the_close_is_refused(native: bool | None) -> None:
    case, file = gpt(), planned("gpt", 0.4)
    step = TrainingExecutor(file, case.module, native=native)
    step(*case.batch).backward()
    case.module.zero_grad()
    loss = step(*case.batch)
    step.close()
    with pytest.raises(ExecutionError, match="this executor is closed"):
        loss.backward()
    assert not gradients(case.module)
