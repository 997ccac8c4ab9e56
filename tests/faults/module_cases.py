"""Random PyTorch modules and training steps, planned at random budgets, run as their plan files say, and compared with
the same module as it is."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from tensorstow.ir.check import check
from tensorstow.ir.files import PlanFile, read_plan, write_plan
from tensorstow.models import Model
from tensorstow.module_runs import apply_module
from tensorstow.modules import module_in_memory
from tensorstow.planner.build import plan_graph
from tensorstow.planner.instance import make_instance
from tensorstow.training import apply_training, training_model
from tests.conftest import host_machine
from tests.faults.cases import REFUSALS, TIME_LIMIT_S, Done, choose_strategy, judge_refusal, wrong_of
from tests.faults.random_modules import random_module
from tests.faults.subject import cache_in, shared_folder

PASSES = 3
STEPS = 3
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Any]] = {
    "": lambda p: None,
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}
"""Of a training step, by name; none in the first."""


def run_module(seed: int, rng: np.random.Generator) -> Done:
    """Inference: some inputs one after another, and these again."""
    with _alone():
        found = random_module(rng, calls=2, training=False)
        module, twin = found.module, copy.deepcopy(found.module)
        torch.manual_seed(seed)
        model = module_in_memory(module, {}, (found.calls[0],))
        what, planned = _planned(rng, model, "inference")
        if not isinstance(planned, PlanFile):
            return Done(seed, what, *planned)
        applied = apply_module(planned, module)
        try:
            with torch.no_grad():
                for number in range(PASSES):
                    for given in found.calls:
                        if wrong := _differing(_flat(applied(given)), _flat(twin(given))):
                            return Done(seed, what, "failed", f"pass {number}: {wrong} differs", wrong_bits=True)
            if wrong := _differing(_state(module), _state(twin)):
                return Done(seed, what, "failed", f"'{wrong}' differs afterwards", wrong_bits=True)
        finally:
            applied.tensorstow.close()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue, reportOptionalMemberAccess]
    return Done(seed, what, "executed")


def run_training(seed: int, rng: np.random.Generator) -> Done:
    """Steps, with or without an optimizer in them, which may have states already: losses, gradients, parameters and
    buffers."""
    with _alone():
        found = random_module(rng, calls=STEPS, training=True)
        module, name = found.module, str(rng.choice(list(OPTIMIZERS)))
        optimizer = OPTIMIZERS[name](module.parameters())
        states: Any = None
        if optimizer is not None and rng.integers(2):
            _ordinary_step(module, optimizer, found.calls[0])
            states = copy.deepcopy(optimizer.state_dict())
        twin = copy.deepcopy(module)
        plain, step_of_twin = OPTIMIZERS[name](twin.parameters()), _reference(twin)
        if plain is not None and states is not None:
            plain.load_state_dict(states)
        model = training_model(module_in_memory(module, {}, (found.calls[0],)), loss=mean_square, optimizer=optimizer)
        what, planned = _planned(rng, model, "training")
        what = f"{what}, {name or 'no optimizer'}{', resumed' * (states is not None)}"
        if not isinstance(planned, PlanFile):
            return Done(seed, what, *planned)
        with apply_training(planned, module, loss=mean_square, optimizer=optimizer, threads=None) as step:
            for number, given in enumerate(found.calls):
                torch.manual_seed(number)
                loss = step(given)
                if optimizer is None:
                    loss.backward()
                torch.manual_seed(number)
                wanted = step_of_twin(given)
                wanted.backward()
                if optimizer is None and (wrong := _differing(_gradients(module), _gradients(twin))):
                    return Done(seed, what, "failed", f"step {number}: gradient of '{wrong}'", wrong_bits=True)
                _update(module, optimizer, number, ours=True)
                _update(twin, plain, number, ours=False)
                wrong = _differing(
                    {"the loss": loss.detach(), **_state(module)}, {"the loss": wanted.detach(), **_state(twin)}
                )
                if wrong:
                    return Done(seed, what, "failed", f"step {number}: '{wrong}' differs", wrong_bits=True)
    return Done(seed, what, "executed")


def mean_square(result: torch.Tensor) -> torch.Tensor:
    """A loss that needs no labels."""
    return result.float().square().mean()


@contextmanager
def _alone() -> Generator[None]:
    """One thread, PyTorch's random numbers as they were, nothing compiled before, a cache that all cases share;
    operators are not measured: what a case plans is the same each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.compiler.reset()
    unmeasured = patch("tensorstow.modules.on_processor", lambda machine: False)  # pyright: ignore[reportUnknownLambdaType]
    formulas = patch("tensorstow.training.runs_here", lambda machine: False)  # pyright: ignore[reportUnknownLambdaType]
    try:
        with cache_in(shared_folder() / "cache"), torch.random.fork_rng(devices=[]), unmeasured, formulas:
            yield
    finally:
        torch.set_num_threads(before)


def _planned(rng: np.random.Generator, model: Model, mode: str) -> tuple[str, PlanFile | tuple[str, str]]:
    """The case in words; a plan, written and read again, or how it ended without one."""
    box = host_machine()
    whole = model.lower(box, mode)
    posed = make_instance(whole.graph, box, mode=mode)
    smallest, peak = model.smallest_budget(box), posed.peak_of_all() + posed.workspace_nbytes
    budget = int(smallest + rng.uniform(0, 1.05) * max(peak - smallest, 0)) + 1
    strategy = choose_strategy(rng)
    small = box.with_capacity({"dram": budget})
    lowered = model.lower(small, mode)
    what = f"{strategy} on {len(lowered.graph.operators)} operators of PyTorch, {mode}, {budget} bytes of {peak}"
    try:
        plan = plan_graph(lowered.graph, small, strategy=strategy, mode=mode, time_limit_s=TIME_LIMIT_S)
    except REFUSALS as error:
        return what, judge_refusal(error, small)
    if wrong := wrong_of(plan, [v.message for v in check(plan, lowered.graph, small)]):
        return what, ("failed", wrong)
    file = PlanFile(plan, lowered.graph, small, None, None, 0, lowered.module, lowered.training)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        write_plan(file, path)
        return what, read_plan(path)


def _reference(twin: nn.Module) -> Callable[[Any], torch.Tensor]:
    """The loss as the plan is to have it, to the bit: eager's; with dropout in bfloat16 that of `aot_eager`, which
    rounds otherwise than eager in the backward of a dropout."""

    def loss(given: Any) -> torch.Tensor:
        return mean_square(twin(given))

    low = any(p.dtype is torch.bfloat16 for p in twin.parameters())
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in twin.modules())
    return torch.compile(loss, backend="aot_eager") if low and drops else loss


def _ordinary_step(module: nn.Module, optimizer: Any, given: Any) -> None:
    """A step that no plan knows of, after which states are not zeros."""
    mean_square(module(given)).backward()
    optimizer.step()
    optimizer.zero_grad()


def _update(module: nn.Module, optimizer: Any, number: int, *, ours: bool) -> None:
    """After the backward: the optimizer's step, which a planned step has done itself, or one by hand."""
    if optimizer is None:
        with torch.no_grad():
            for p in module.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.01)
    elif not ours:
        optimizer.step()
    module.zero_grad(set_to_none=number % 2 == 0)


def _flat(result: Any) -> dict[str, torch.Tensor]:
    return result if isinstance(result, dict) else {"the result": result}


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach() for n, t in (*module.named_parameters(), *module.named_buffers())}


def _gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def _differing(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> str:
    """The first name whose tensors are not the same to the bit, or that only one has; empty where all are alike."""
    for name in (*wanted, *found):
        if name not in found or name not in wanted or _bits(found[name]) != _bits(wanted[name]):
            return name
    return ""


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    data = tensor.detach().contiguous().flatten()
    return tensor.dtype, tensor.shape, data.view(torch.uint8).numpy().tobytes() if data.numel() else b""
