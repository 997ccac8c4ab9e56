"""What can be planned: a model in whatever form it comes, as the workflow needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeAlias

from .hosts import Progress, silent
from .ir.errors import InputError
from .ir.graph import Graph
from .ir.machine import Machine
from .ir.plan import Plan
from .ir.program import ModelSource, ModuleProgram, Program, TrainingProgram
from .needs import require_torch

NO_DIMS: Mapping[str, int] = MappingProxyType({})


Improve: TypeAlias = "Callable[[Plan, Graph, Machine, Solve, float], Plan]"
"""Of a plan, its graph and machine, what makes plans of other graphs, and the seconds that a bound may take."""
Solve: TypeAlias = "Callable[[Graph], Plan]"


@dataclass(frozen=True)
class Lowered:
    """A graph to plan, and what runs it: `program` with ONNX Runtime, `module` with PyTorch, `training` a training step
    of it. `improve` makes of a plan of the graph a better one for what the model is for, where that is more than the
    passes of the graph."""

    graph: Graph
    program: Program | None = None
    module: ModuleProgram | None = None
    training: TrainingProgram | None = None
    improve: Improve | None = None

    def with_times(self, operator_ns: Mapping[str, int]) -> Lowered:
        """The same with measured times of operators, by id."""
        timed = tuple(replace(op, measured_ns=operator_ns.get(op.id)) for op in self.graph.operators)
        return replace(self, graph=replace(self.graph, operators=timed))


class Model(Protocol):
    """A model that can be lowered for a machine, again and again for other budgets."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def lower(self, machine: Machine, mode: str, progress: Progress = silent) -> Lowered:
        """Graph and program, large weights split or left in the store as the machine's budget asks."""
        ...

    def source(self) -> ModelSource | None:
        """The files it came from; None for one that exists in memory alone."""
        ...

    def smallest_budget(self, machine: Machine) -> int:
        """The smallest capacity in bytes of the compute tier that is feasible, split as finely as that asks."""
        ...


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file, its symbolic dimensions set by `dims`."""

    path: Path
    dims: Mapping[str, int]

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.name

    def lower(self, machine: Machine, mode: str, progress: Progress = silent) -> Lowered:
        """Lowered, and split for the budget."""
        from .planner.onnx import lower_onnx
        from .planner.tile import tile

        if mode != "inference":
            raise InputError(f"mode '{mode}' is not available for an ONNX file; it holds inference only")
        progress(f"lowering {self.name}", 0.0)
        lowered = tile(lower_onnx(self.path, dims=self.dims), machine)
        return Lowered(lowered.graph, program=lowered.program)

    def source(self) -> ModelSource:
        """The file, and those of its external data."""
        from .planner.onnx import model_source

        return model_source(self.path, self.dims)

    def smallest_budget(self, machine: Machine) -> int:
        """By bisection over budgets and splits."""
        from .planner.onnx import lower_onnx
        from .planner.tile import smallest_budget

        return smallest_budget(lower_onnx(self.path, dims=self.dims), machine)


def refuse_pickle(name: str) -> None:
    """InputError: `name` is no directory of weights."""
    raise InputError(f"a pickle is allowed for the weights of hf:DIR; '{name}' has none there: leave allow_pickle out")


def find_model(
    model: object,
    dims: Mapping[str, int] = NO_DIMS,
    example_inputs: object = None,
    *,
    allow_pickle: bool = False,
) -> Model:
    """The model behind what a user gives: 'hf:DIR', 'file.py:callable', 'pkg.module:callable', an ONNX file, or a
    PyTorch module with example inputs. `allow_pickle`: weights of 'hf:DIR' may be in a pickle.

    Raises InputError for what is none of these.
    """
    from .planner.entry import is_entry

    if isinstance(model, (str, os.PathLike)):
        text = os.fspath(model)
        if is_entry(text):
            if example_inputs is not None:
                raise InputError(f"'{text}' brings its own example inputs; give none")
            require_torch(f"'{text}'")
            from .modules import module_from_entry

            return module_from_entry(text, dims, allow_pickle=allow_pickle)
        if allow_pickle:
            refuse_pickle(text)
        if example_inputs is not None:
            raise InputError(f"'{text}' is an ONNX file, which says what its inputs are; give no example inputs")
        return OnnxModel(Path(text), dict(dims))
    from .modules import module_in_memory

    if allow_pickle:
        refuse_pickle(type(model).__name__)
    return module_in_memory(model, dims, example_inputs)
