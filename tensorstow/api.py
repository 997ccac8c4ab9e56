"""The Python API: `plan`, `apply`, `compare`, `Machine`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .ir import machine as ir_machine
from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.sizes import parse_size
from .models import NO_DIMS, find_model

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .planner.compare import Comparison
    from .workflow import Request

    AnyModule = TypeVar("AnyModule", bound=nn.Module)

ModelPath = str | os.PathLike[str]


class Machine(ir_machine.Machine):
    """A machine to plan for; see `ir.machine.Machine` for what it holds."""

    @classmethod
    def detect(cls, **capacities: str | int) -> Machine:
        """This box, measured on first use (a few seconds). Capacities by tier: `Machine.detect(dram="6GiB")`."""
        return cls.load("host", **capacities)

    @classmethod
    def load(cls, name: str, **capacities: str | int) -> Machine:
        """A built-in profile ('rtx4090', ...), 'host', or a TOML file; capacities override those of its tiers."""
        from .hosts import get_machine

        sizes = {tier: parse_size(str(size)) for tier, size in capacities.items()}
        machine = get_machine(name).with_capacity(sizes)
        return cls(**{f.name: getattr(machine, f.name) for f in fields(machine)})


def plan(
    model: ModelPath | nn.Module,
    example_inputs: object = None,
    *,
    machine: ir_machine.Machine | None = None,
    dims: Mapping[str, int] = NO_DIMS,
    mode: str = "inference",
    loss: Callable[[Any], Any] | None = None,
    optimizer: Any = None,
    strategy: str | None = None,
    profile: bool = False,
    time_limit_s: float = 20.0,
    seed: int = 0,
    engine: str = "auto",
    sparse_ffn: int | None = None,
    max_norm: float | None = None,
    clip_value: float | None = None,
    allow_pickle: bool = False,
) -> PlanFile:
    """A certified plan for a model on `machine` (by default this box).

    `model` is an ONNX file, 'hf:DIR', 'file.py:callable', 'pkg.module:callable', or a PyTorch module; for a module
    `example_inputs` are a tuple of positional, a dictionary of keyword arguments, or one tensor. `dims` sets symbolic
    dimensions. `profile` measures real passes here instead of using formulas. `engine` ('auto', 'highs', 'glop', 'cbc',
    'cpsat') solves linear and integer programs. `strategy` is by default 'stow', in training 'stow-recompute'.

    With mode 'training' a whole step is planned, the module being in train or eval mode as it is. `loss` is a function
    of what the module returns; without it the module returns its loss, or something with an attribute `loss`. With
    `optimizer`, of torch.optim over the module's parameters, the update is part of the step. `max_norm` clips all
    gradients of such a step by their norm before, as torch.nn.utils.clip_grad_norm_ does, `clip_value` each element.
    `sparse_ffn` reads of feed-forward layers behind ReLU only the rows of active neurons, and keeps so many of each.
    `allow_pickle` takes the weights of 'hf:DIR' from a pickle, by PyTorch's restricted unpickler; the plan records it.
    Raises InputError, InfeasibleError and TimeLimitError, each with what to do.
    """
    from .workflow import make_plan

    request = _request(
        model, example_inputs, machine, dims, mode, profile, time_limit_s, seed, engine, loss, optimizer, allow_pickle
    )
    if max_norm is not None or clip_value is not None:
        from .training import with_clip

        request = replace(request, model=with_clip(request.model, max_norm, clip_value))
    if sparse_ffn is not None:
        from .sparse_rows import with_sparse_rows

        request = replace(request, model=with_sparse_rows(request.model, sparse_ffn))
    file = make_plan(request, strategy=strategy).file
    if mode != "training":
        return file
    from .training import remember

    return remember(file, request.model)


def compare(
    model: ModelPath | nn.Module,
    example_inputs: object = None,
    *,
    machine: ir_machine.Machine | None = None,
    strategies: tuple[str, ...] = (),
    dims: Mapping[str, int] = NO_DIMS,
    mode: str = "inference",
    loss: Callable[[Any], Any] | None = None,
    optimizer: Any = None,
    profile: bool = False,
    time_limit_s: float = 20.0,
    seed: int = 0,
    engine: str = "auto",
    seeds: tuple[int, ...] = (),
    time_limits: Mapping[str, float] | None = None,
    workers: int = 0,
    memory_limit_nbytes: int | None = None,
    allow_pickle: bool = False,
) -> Comparison:
    """Strategies (by default some for the mode) on one model, scored by one simulator against one bound; `loss`,
    `optimizer` and `allow_pickle` as in `plan`.

    Each runs once, with `seed`, or once for each of `seeds`. `time_limits` are seconds by strategy where they differ
    from `time_limit_s`. With `workers` above 0 each run has a process of its own, that many at a time, and
    `memory_limit_nbytes` of memory beside what such a process takes by itself; one that hangs or crashes then costs
    its own row alone. A script that asks for workers does so below `if __name__ == "__main__":`, as they import it.
    """
    from .planner.compare import Trials, default_names
    from .workflow import make_comparison

    trials = Trials(seeds or (seed,), dict(time_limits or {}), workers, memory_limit_nbytes)
    request = _request(
        model, example_inputs, machine, dims, mode, profile, time_limit_s, seed, engine, loss, optimizer, allow_pickle
    )
    return make_comparison(request, strategies or default_names(mode), trials=trials)


def _request(
    model: object,
    example_inputs: object,
    machine: ir_machine.Machine | None,
    dims: Mapping[str, int],
    mode: str,
    profile: bool,
    time_limit_s: float,
    seed: int,
    engine: str,
    loss: Callable[[Any], Any] | None,
    optimizer: Any,
    allow_pickle: bool,
) -> Request:
    from .workflow import Request

    found = find_model(model, dims, example_inputs, allow_pickle=allow_pickle)
    if mode == "training":
        from .training import training_model

        found = training_model(found, loss=loss, optimizer=optimizer)
    elif loss is not None or optimizer is not None:
        what = "loss" if loss is not None else "optimizer"
        raise InputError(f"{what}= belongs to training; give mode='training' with it")
    return Request(found, machine or Machine.detect(), mode, profile, time_limit_s, seed, engine)


@overload
def apply(plan: PlanFile, model: AnyModule, *, threads: int | None = None) -> AnyModule: ...


@overload
def apply(
    plan: PlanFile,
    model: Any = None,
    *,
    threads: int | None = None,
    loss: Callable[[Any], Any] | None = None,
    optimizer: Any = None,
    max_norm: float | None = None,
    clip_value: float | None = None,
) -> Any: ...


def apply(
    plan: PlanFile,
    model: Any = None,
    *,
    threads: int | None = None,
    loss: Callable[[Any], Any] | None = None,
    optimizer: Any = None,
    max_norm: float | None = None,
    clip_value: float | None = None,
) -> Any:
    """What runs `plan`, its memory filled and ready.

    For an ONNX file: an `Applied`; `model` says where the file lies if it moved. For a PyTorch module: the module
    itself, called as before, whose weights now live where the plan puts them, also for whoever else holds them; its
    `tensorstow` attribute has statistics, `close`, and `give_back`, which leaves a module that was in memory as it was.
    So does a failure. A plan made from 'hf:DIR' or a callable makes its module again, or takes the one given.

    For a plan of mode 'training': the step. `loss = step(*batch)`; where it was planned with an optimizer, that is all
    of it, else `loss.backward()` and an update of your own follow. `loss` and `optimizer` are by default those that it
    was planned with; a plan that was read from a file needs them, unless it makes its module again. `max_norm` or
    `clip_value` is another number for the way of clipping that was planned. `close` gives the memory back.
    """
    if plan.training is not None:
        from .training import apply_training

        return apply_training(
            plan, model, loss=loss, optimizer=optimizer, threads=threads, max_norm=max_norm, clip_value=clip_value
        )
    if any(given is not None for given in (loss, optimizer, max_norm, clip_value)):
        raise InputError(
            "the plan is for inference; loss=, optimizer=, max_norm= and clip_value= belong to one of mode 'training'"
        )
    if plan.module is not None:
        from .module_runs import apply_module

        return apply_module(plan, model, threads=threads)
    if model is not None and not isinstance(model, (str, os.PathLike)):
        raise InputError(f"the plan is for an ONNX file; give its path, not a {type(model).__name__}")
    return Applied(plan, None if model is None else Path(os.fspath(model)), threads)


class Applied:
    """A planned ONNX model, ready to run inside its memory. A context manager; `close` gives the memory back.

    Threads may share one: their passes run one after another.
    """

    def __init__(self, plan: PlanFile, model: Path | None, threads: int | None) -> None:
        from .executors import open_executor

        self.plan = plan
        self._executor = open_executor(plan, model=model, threads=threads)
        try:
            self._executor.load()
        except BaseException:
            self._executor.close()
            raise

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One pass: arrays by input name to arrays by output name."""
        return self._executor.run(inputs)

    __call__ = run

    def close(self) -> None:
        """Stop the transfers and give the memory back, when the pass that runs is over."""
        self._executor.close()

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
