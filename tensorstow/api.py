"""The Python API: `plan`, `apply`, `compare`, `Machine`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .ir import machine as ir_machine
from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.sizes import parse_size

if TYPE_CHECKING:
    import numpy as np

    from .planner.compare import Comparison
    from .workflow import Request

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
        from .workflow import get_machine

        sizes = {tier: parse_size(str(size)) for tier, size in capacities.items()}
        machine = get_machine(name).with_capacity(sizes)
        return cls(**{f.name: getattr(machine, f.name) for f in fields(machine)})


def plan(
    model: ModelPath,
    *,
    machine: ir_machine.Machine | None = None,
    dims: Mapping[str, int] | None = None,
    mode: str = "inference",
    strategy: str = "stow",
    profile: bool = False,
    time_limit_s: float = 20.0,
    seed: int = 0,
) -> PlanFile:
    """A certified plan for an ONNX file on `machine` (by default this box).

    `dims` sets symbolic dimensions. `profile` measures each operator here instead of using formulas.
    Raises InputError, InfeasibleError and TimeLimitError, each with what to do.
    """
    from .workflow import make_plan

    return make_plan(_request(model, machine, dims, mode, profile, time_limit_s, seed), strategy=strategy).file


def compare(
    model: ModelPath,
    *,
    machine: ir_machine.Machine | None = None,
    strategies: tuple[str, ...] = (),
    dims: Mapping[str, int] | None = None,
    mode: str = "inference",
    profile: bool = False,
    time_limit_s: float = 20.0,
    seed: int = 0,
    seeds: tuple[int, ...] = (),
    time_limits: Mapping[str, float] | None = None,
    workers: int = 0,
    memory_limit_nbytes: int | None = None,
) -> Comparison:
    """Strategies (all by default) on one model, scored by one simulator against one bound.

    Each runs once, with `seed`, or once for each of `seeds`. `time_limits` are seconds by strategy where they differ
    from `time_limit_s`. With `workers` above 0 each run has a process of its own, that many at a time, and
    `memory_limit_nbytes` of memory beside what such a process takes by itself; one that hangs or crashes then costs
    its own row alone. A script that asks for workers does so below `if __name__ == "__main__":`, as they import it.
    """
    from .planner.compare import Trials
    from .planner.strategies import strategy_names
    from .workflow import make_comparison

    trials = Trials(seeds or (seed,), dict(time_limits or {}), workers, memory_limit_nbytes)
    request = _request(model, machine, dims, mode, profile, time_limit_s, seed)
    return make_comparison(request, strategies or strategy_names(), trials=trials)


def _request(
    model: ModelPath,
    machine: ir_machine.Machine | None,
    dims: Mapping[str, int] | None,
    mode: str,
    profile: bool,
    time_limit_s: float,
    seed: int,
) -> Request:
    from .workflow import Request

    path = _onnx_path(model)
    return Request(path, machine or Machine.detect(), dict(dims or {}), mode, profile, time_limit_s, seed)


def _onnx_path(model: object) -> Path:
    if not isinstance(model, (str, os.PathLike)):
        raise InputError(f"cannot plan a {type(model).__name__}; give the path of an ONNX file")
    return Path(os.fspath(model))


def apply(plan: PlanFile, model: ModelPath | None = None, *, threads: int | None = None) -> Applied:
    """An executor of `plan`: fills its arena and is ready to run. `model` says where the ONNX file lies if it moved."""
    return Applied(plan, None if model is None else _onnx_path(model), threads)


class Applied:
    """A planned model, ready to run inside its memory. A context manager; `close` gives the memory back."""

    def __init__(self, plan: PlanFile, model: Path | None, threads: int | None) -> None:
        from .workflow import open_executor

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
        """Stop the transfers and give the memory back."""
        self._executor.close()

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
