"""The parameters that a plan updates, found in a live module and its optimizer as they were when it was planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph
from ...ir.optimizer import KINDS, fixed_of, groups_from_text, kind_of, options_of, splits
from ...ir.plan import Plan
from ...ir.program import OptimizerProgram, Update


@dataclass(slots=True)
class BoundUpdate:
    """An update, the step that it is, and views in the arena of its states and of its parameter, if that is placed."""

    update: Update
    step: int
    parameter: torch.Tensor | None = None
    views: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


@dataclass(slots=True)
class Trained:
    """A parameter with its updates in the order of the plan.

    `shapes` are those of its states, `placed` the keys of the states that the plan places. `layout` are the strides
    that torch gives to states of the parameter's shape. `in_blocks`: its updates may run over ranges of elements.
    `next` counts the updates of this step; `counted` is the count of steps that the last of them left.
    """

    name: str
    tensor: nn.Parameter
    group: int
    shapes: dict[str, tuple[int, ...]]
    layout: tuple[int, ...]
    in_blocks: bool
    placed: frozenset[str]
    updates: list[BoundUpdate]
    next: int = 0

    def strides(self, key: str) -> tuple[int, ...]:
        """How torch lays a state out: as the parameter where it has its shape."""
        shape = self.shapes[key]
        if shape == tuple(self.tensor.shape):
            return self.layout
        return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))

    def nbytes(self, key: str) -> int:
        """Bytes of a state."""
        return prod(self.shapes[key]) * self.tensor.element_size()

    def check_states(self, state: Mapping[str, Any]) -> None:
        """InputError where a state of an optimizer does not fit the parameter."""
        for key, shape in self.shapes.items():
            found = state.get(key)
            if found is not None and (tuple(found.shape), found.dtype) != (shape, self.tensor.dtype):
                raise InputError(
                    f"state '{key}' of parameter '{self.name}' has shape {list(found.shape)} of {found.dtype}; it "
                    f"should have {list(shape)} of {self.tensor.dtype}; load the state_dict of this model"
                )

    def check_gradient(self) -> None:
        """InputError where something awaits the gradient that a planned step does not leave behind."""
        if self.tensor.grad is not None:
            raise InputError(
                f"parameter '{self.name}' has a gradient already; a planned step with its optimizer cannot add to it: "
                "call optimizer.zero_grad() first, or, to accumulate, plan without `optimizer`"
            )
        if getattr(self.tensor, "_backward_hooks", None) or getattr(self.tensor, "_post_accumulate_grad_hooks", None):
            raise InputError(
                f"parameter '{self.name}' has hooks on its gradient, which no planned step with its optimizer calls; "
                "remove them, or plan without `optimizer`"
            )


def check_groups(optimizer: Any, planned: OptimizerProgram) -> None:
    """PlanMismatchError where an option changed that may not change after planning."""
    kind = kind_of(optimizer)
    now, then = options_of(optimizer), groups_from_text(planned.groups)
    if kind.name != planned.kind or len(now) != len(then):
        raise PlanMismatchError(
            f"the plan is for {planned.kind} with {len(then)} parameter groups, given is {kind.name} with {len(now)}; "
            "plan again"
        )
    for number, (a, b) in enumerate(zip(then, now, strict=True)):
        was, found = fixed_of(kind, a), fixed_of(kind, b)
        for name in sorted(was):
            if was[name] != found[name]:
                raise PlanMismatchError(
                    f"'{name}' of parameter group {number} was {was[name]} when the plan was made and is now "
                    f"{found[name]}, which takes other states or other code; plan again"
                )


def find_trained(
    optimizer: Any, module: nn.Module, plan: Plan, graph: Graph, planned: OptimizerProgram
) -> Iterator[Trained]:
    """The parameters that have updates. Raises PlanMismatchError where one is not as planned."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    steps = {s.op: i for i, s in enumerate(plan.steps)}
    by_name: dict[str, list[Update]] = {}
    for update in planned.updates:
        by_name.setdefault(update.names[0], []).append(update)
    group_of = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for name, updates in by_name.items():
        tensor = tensors.get(name)
        if tensor is None or group_of.get(id(tensor)) != updates[0].group:
            raise PlanMismatchError(
                f"parameter '{name}' was in group {updates[0].group} of the optimizer when the plan was made; now it "
                f"is in {group_of.get(id(tensor), 'none')}; plan again"
            )
        missing = [u.operator for u in updates if u.operator not in steps]
        if missing:
            raise PlanMismatchError(f"no step of the plan is '{missing[0]}', which updates '{name}'; plan again")
        yield _trained(name, tensor, sorted(updates, key=lambda u: steps[u.operator]), steps, graph, planned)


def _trained(
    name: str,
    tensor: nn.Parameter,
    updates: Sequence[Update],
    steps: Mapping[str, int],
    graph: Graph,
    planned: OptimizerProgram,
) -> Trained:
    kind, options = KINDS[planned.kind], groups_from_text(planned.groups)[updates[0].group]
    sizes = {s.key: 0 for s in kind.states(options, tuple(tensor.shape))}
    for update in updates:
        for key, state in update.states.items():
            sizes[key] += graph.tensor[state].nbytes
    layout = tuple(torch.empty_like(tensor, device="meta").stride())
    found = Trained(
        name=name,
        tensor=tensor,
        group=updates[0].group,
        shapes={s.key: s.shape for s in kind.states(options, tuple(tensor.shape))},
        layout=layout,
        in_blocks=splits(kind, options, str(tensor.dtype).removeprefix("torch.")) and layout == tuple(tensor.stride()),
        placed=frozenset(key for key, nbytes in sizes.items() if nbytes),
        updates=[BoundUpdate(u, steps[u.operator]) for u in updates],
    )
    for key in sorted(found.placed):
        if sizes[key] != found.nbytes(key):
            raise PlanMismatchError(
                f"state '{key}' of parameter '{name}' takes {found.nbytes(key)} bytes, the plan has {sizes[key]}; plan "
                "again"
            )
    return found
