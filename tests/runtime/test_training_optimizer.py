from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tensorstow.ir.errors import ExecutionError, InputError, PlanMismatchError
from tensorstow.planner.training import TrainingLowered
from tensorstow.runtime import directio
from tensorstow.runtime.training.consumed import ConsumedGradient
from tensorstow.runtime.training.optimizer import PlannedOptimizer

from .optimizer_loop import Loop, Stack, gradients_of, lower, plain_steps, plan_of, same

Make = Callable[[Any], Any]

KINDS: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=0.1, maximize=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "adamw-lr-tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, maximize=True),
    "sgd-plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


_lowered: dict[tuple[Make, torch.dtype], TrainingLowered] = {}


class Pair:
    """A module with a planned optimizer beside a copy with a plain one."""

    def __init__(self, folder: Path, make: Make, *, share: float = 0.2, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.folder, self.make, self.dtype, self.share = folder, make, dtype, share
        self.module = Stack(dtype=dtype)
        self.plain = copy.deepcopy(self.module)
        self.optimizer, self.reference = make(self.module.parameters()), make(self.plain.parameters())
        if (make, dtype) not in _lowered:
            _lowered[make, dtype] = lower(self.module, self.optimizer, self.batch(0))
        self.lowered = _lowered[make, dtype]
        self.loop = Loop.open(self.lowered, share, self.optimizer, self.module, folder)

    def batch(self, seed: int) -> torch.Tensor:
        return torch.randn(8, 192, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def step(self, seed: int) -> None:
        self.loop.step(lambda: gradients_of(self.module, self.batch(seed)))

    def plain_step(self, seed: int) -> None:
        plain_steps(self.plain, self.reference, [self.batch(seed)])

    def check(self) -> None:
        for (name, a), b in zip(self.module.named_parameters(), self.plain.parameters(), strict=True):
            assert torch.equal(a, b), name
        assert same(self.optimizer.state_dict(), self.reference.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_bits_equal_the_plain_loop(kind: str, tmp_path: Path) -> None:
    pair = Pair(tmp_path, KINDS[kind])
    for seed in range(3):
        pair.step(seed)
        pair.plain_step(seed)
        pair.check()
    assert all(p.grad is None or isinstance(p.grad, ConsumedGradient) for p in pair.module.parameters())
    if kind not in ("sgd-plain", "adafactor"):
        read, written = pair.loop.memory.moved()
        assert read > 0 and written > 0  # else the plan kept everything, and nothing was shown
    pair.loop.optimizer.close()
    pair.check()


@pytest.mark.parametrize("kind", ["adamw", "adam", "adam-foreach", "adamw-fused", "sgd", "sgd-nesterov", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bits_equal_in_other_types(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pair = Pair(tmp_path, KINDS[kind], dtype=dtype)
    for seed in range(2):
        pair.step(seed)
        pair.plain_step(seed)
        pair.check()


def test_groups_and_schedulers_are_read_at_every_step(tmp_path: Path) -> None:
    def make(parameters: Any) -> Any:
        held = list(parameters)
        return torch.optim.AdamW([{"params": held[:2]}, {"params": held[2:], "lr": 3e-3, "weight_decay": 0.3}], lr=1e-2)

    pair = Pair(tmp_path, make)

    def schedule(optimizer: Any) -> Any:  # of learning rates and betas
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 0.2], total_steps=8)

    ours, plain = schedule(pair.optimizer), schedule(pair.reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when a scheduler counts before the optimizer
        for seed in range(4):
            pair.step(seed)
            ours.step()
            pair.plain_step(seed)
            plain.step()
            pair.check()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_resuming_gives_equal_bits(kind: str, tmp_path: Path) -> None:
    pair = Pair(tmp_path, KINDS[kind])
    pair.step(0)
    module, saved = copy.deepcopy(pair.module.state_dict()), copy.deepcopy(pair.optimizer.state_dict())
    pair.step(1)
    pair.step(2)
    pair.module.load_state_dict(module)  # back in the same step
    pair.optimizer.load_state_dict(saved)
    for seed in range(2):
        pair.plain_step(seed)
    pair.step(1)
    pair.check()
    pair.optimizer.load_state_dict(pair.make(pair.plain.parameters()).state_dict())  # one without any states
    pair.reference.load_state_dict(pair.make(pair.plain.parameters()).state_dict())
    pair.step(2)
    pair.plain_step(2)
    pair.check()


def test_a_new_step_takes_the_states_of_an_optimizer_that_has_some(tmp_path: Path) -> None:
    pair = Pair(tmp_path, KINDS["adam"])
    pair.step(0)
    pair.loop.optimizer.close()
    plain_steps(pair.module, pair.optimizer, [pair.batch(1)])  # an ordinary optimizer again
    for p in pair.module.parameters():
        p.grad = None
    pair.loop = Loop.open(pair.lowered, pair.share, pair.optimizer, pair.module, tmp_path)
    held = {key for state in pair.optimizer.state.values() for key in state if state[key].numel() > 10_000}
    assert not held  # they are where the plan has them, and nowhere else
    pair.step(2)
    for seed in range(3):
        pair.plain_step(seed)
    pair.check()
    pair.loop.optimizer.close()
    pair.loop.optimizer.close()
    pair.check()


def _name(op: str) -> str:
    """Of an update without its number."""
    return op.split("[")[0]


def test_the_step_after_one_that_failed(tmp_path: Path) -> None:
    pair = Pair(tmp_path, KINDS["adamw"])
    pair.step(0)
    pair.plain_step(0)
    steps = [s.op for s in pair.loop.plan.steps]
    # Right behind an update of placed states, of which nobody has told the engine yet that it is complete.
    at = max(t for t in range(1, len(steps)) if steps[t - 1].endswith("]") and _name(steps[t]) != _name(steps[t - 1]))
    fail_at = steps[at]
    done = {_name(op).removeprefix("update:") for op in steps[:at] if op.startswith("update:")}
    with pytest.raises(RuntimeError, match="told to"):
        pair.loop.step(lambda: gradients_of(pair.module, pair.batch(1)), fail_at=fail_at)
    gradients = gradients_of(pair.plain, pair.batch(1))
    for name, p in pair.plain.named_parameters():
        p.grad = gradients[name] if name in done else None
    assert done and len(done) < len(gradients)
    pair.reference.step()  # what ran has been updated, and nothing else
    pair.check()
    for seed in (2, 3):
        pair.step(seed)
        pair.plain_step(seed)
        pair.check()


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path, KINDS["adamw"])
    pair.step(0)
    saved = pair.optimizer.state_dict()
    module = copy.deepcopy(pair.module.state_dict())

    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(directio.os, "pwritev", broken)
        with pytest.raises(ExecutionError, match="Input/output error"):
            pair.step(1)
    with pytest.raises(ExecutionError, match=r"states are lost.*load a state_dict"):
        pair.optimizer.state_dict()
    with pytest.raises(ExecutionError, match=r"states are lost.*load a state_dict"):
        pair.step(1)
    pair.optimizer.load_state_dict(saved)
    pair.module.load_state_dict(module)
    pair.step(1)
    for seed in range(2):
        pair.plain_step(seed)
    pair.check()


def _nothing(_: torch.Tensor) -> None:
    return None


def _little(_: Path) -> int:
    return 4096


def test_a_disk_without_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path, KINDS["adamw"])
    pair.step(0)
    pair.loop.optimizer.close()
    before = copy.deepcopy(pair.optimizer.state_dict())
    monkeypatch.setattr(directio, "free_nbytes", _little)
    with pytest.raises(ExecutionError, match=r"needs \d+ bytes of disk, 4096 bytes are free"):
        Loop.open(pair.lowered, pair.share, pair.optimizer, pair.module, tmp_path)
    assert same(pair.optimizer.state_dict(), before)


def test_what_a_planned_step_refuses(tmp_path: Path) -> None:
    pair = Pair(tmp_path, KINDS["adamw"])
    plan, optimizer, module = pair.loop.plan, pair.optimizer, pair.module
    with pytest.raises(InputError, match="do not call its step"):
        optimizer.step()
    with pytest.raises(InputError, match="another planned step has this optimizer"):
        PlannedOptimizer(optimizer, module, plan, pair.lowered.graph, pair.lowered.program).open_store(tmp_path)
    weight = module.layers[0].weight
    assert isinstance(weight, nn.Parameter)
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(InputError, match="has a gradient already"):
        pair.step(0)
    weight.grad = None
    handle = weight.register_post_accumulate_grad_hook(_nothing)
    with pytest.raises(InputError, match="hooks on its gradient"):
        pair.step(0)
    handle.remove()
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(PlanMismatchError, match=r"'amsgrad' of parameter group 0 was False .* now True"):
        pair.step(0)
    optimizer.param_groups[0]["amsgrad"] = False
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(PlanMismatchError, match="1 parameter groups, given is AdamW with 2"):
        pair.step(0)
    del optimizer.param_groups[1]
    pair.step(0)
    pair.plain_step(0)
    pair.check()


def test_what_was_not_planned_is_refused_before_anything_changes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Stack()
    optimizer = torch.optim.AdamW(module.parameters())
    lowered = lower(module, optimizer, torch.randn(8, 192))
    plan, _ = plan_of(lowered, 0.5)

    def planned(other: Any, of: nn.Module = module) -> PlannedOptimizer:
        return PlannedOptimizer(other, of, plan, lowered.graph, lowered.program)

    with pytest.raises(PlanMismatchError, match="the plan is for AdamW with 1 parameter groups, given is SGD"):
        planned(torch.optim.SGD(module.parameters(), lr=1.0))
    with pytest.raises(InputError, match=r"RMSprop cannot be part of a planned step"):
        planned(torch.optim.RMSprop(module.parameters()))
    with pytest.raises(PlanMismatchError, match="parameter 'across' was in group 0"):
        planned(torch.optim.AdamW(list(module.parameters())[1:]))
    with pytest.raises(PlanMismatchError, match="state 'exp_avg' of parameter"):
        narrow = Stack(width=96)
        planned(torch.optim.AdamW(narrow.parameters()), narrow)
    wrapped = type("DistributedDataParallel", (nn.Sequential,), {})(module)
    with pytest.raises(InputError, match=r"wrapped \(DistributedDataParallel\)"):
        planned(optimizer, wrapped)
    optimizer.state[next(module.parameters())] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}
    with pytest.raises(InputError, match=r"state 'exp_avg' .* has shape \[3\]"):
        planned(optimizer).open_store(tmp_path)


KILLED = """
import os, sys, torch
from pathlib import Path
from tests.runtime.optimizer_loop import Loop, Stack, gradients_of, lower
torch.manual_seed(0)
module, batch, folder = Stack(), torch.randn(8, 192), Path(sys.argv[1])
optimizer = torch.optim.AdamW(module.parameters())
loop = Loop.open(lower(module, optimizer, batch), 0.2, optimizer, module, folder)
update = loop.optimizer.update
def last(operator, gradient):
    update(operator, gradient)
    if loop.turn == 1:
        print("in the middle", flush=True)
        os.kill(os.getpid(), 9)
loop.optimizer.update = last
for _ in range(2):
    loop.step(lambda: gradients_of(module, batch))
"""


def test_nothing_stays_of_a_process_that_was_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert "in the middle" in child.stdout
    assert not list(tmp_path.iterdir())
    pair = Pair(tmp_path, KINDS["adamw"])  # the next start is clean
    pair.step(0)
    pair.plain_step(0)
    pair.check()
