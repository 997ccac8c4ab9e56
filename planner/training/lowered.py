"""What the lowering of a training step is given, and what it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx

from ...ir.graph import Graph
from ...ir.program import Clip, NodeOutput, OptimizerProgram
from ..costs import OperatorCost
from ..pytorch.lowered import OpLowered

TURN = "turn"
"""The operator between forward and backward: it takes the loss and gives the loss's gradient."""


class Placeholder(Protocol):
    """What a placeholder of a joint graph stands for; see `runtime.training.joint_graph.Placeholder`."""

    @property
    def node(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...


class JointGraph(Protocol):
    """Forward and backward of a module as one graph; see `runtime.training.joint_graph.Joint`."""

    @property
    def module(self) -> fx.GraphModule: ...
    @property
    def forward_outputs(self) -> int: ...
    @property
    def placeholders(self) -> Sequence[Placeholder]: ...
    @property
    def updates(self) -> Mapping[int, str]: ...
    @property
    def training(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A state of an optimizer for one parameter: `shape` elements of `dtype` (torch's name without 'torch.')."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UpdateCall:
    """The update of one parameter: `names` are its qualified names, `group` its parameter group.

    `cost` is that of the update as one operator; it reads gradient, parameter and states and writes the last two.
    """

    names: tuple[str, ...]
    group: int
    states: tuple[StateTensor, ...]
    cost: OperatorCost


@dataclass(frozen=True)
class OptimizerCalls:
    """The updates of a step. `kind` is the optimizer's class in torch.optim, `groups` its options as JSON."""

    kind: str
    groups: tuple[str, ...]
    calls: tuple[UpdateCall, ...]


@dataclass(frozen=True)
class StepLowered:
    """A training step as a graph of operators, every storage with its bytes; `training.placed` makes of it what is
    planned.

    `operators.graph` has a storage for each parameter (weight), buffer or other tensor of the module (constant), input,
    state of the optimizer, for the forward's results (output), for the parameters' gradients (gradient) and for
    activations, whatever the backward makes on the way included. `values` are the tensors that are values of nodes.
    `gradients` maps the first name of a parameter to its gradient's tensor. `fixed` are the storages that stay where
    PyTorch puts them in any plan: inputs, constants, results, gradients that the user gets, what the forward writes.
    `strides` has those of parameters that are not row-major; `sparse` names parameters whose elements do not fill their
    storage.
    """

    operators: OpLowered
    turn: str
    values: dict[str, NodeOutput]
    parameters: dict[str, tuple[str, ...]]
    gradients: dict[str, str]
    fixed: frozenset[str]
    strides: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    sparse: frozenset[str] = frozenset()
    optimizer: OptimizerProgram | None = None
    clip: Clip | None = None
    training: bool = True

    @property
    def graph(self) -> Graph:
        """Operators and storages."""
        return self.operators.graph
