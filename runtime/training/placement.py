"""A training plan bound to a joint graph: for each step the values that it touches, their addresses and their tensors.

Refuses (PlanMismatchError) a plan whose operators, values and places are not those of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from ...ir.errors import PlanMismatchError
from ...ir.graph import Graph, Operator
from ...ir.plan import Plan
from ...ir.program import TrainingProgram, Update
from ..addresses import Addresses
from ..arena import Arena
from .allocator import SMALLEST_NBYTES, Slot
from .emit_calls import Call, Key
from .joint_graph import Joint


@dataclass(frozen=True)
class Placement:
    """Where the values of `joint` are, by `plan`. `addresses` and `arena` are those of the tier that computes."""

    plan: Plan
    graph: Graph
    program: TrainingProgram
    joint: Joint
    addresses: Addresses
    arena: Arena

    @cached_property
    def turn(self) -> int:
        """The step between forward and backward."""
        found = [t for t, step in enumerate(self.plan.steps) if step.op == self.program.turn]
        if len(found) != 1:
            raise PlanMismatchError(f"the plan turns from forward to backward {len(found)} times; plan again")
        return found[0]

    @cached_property
    def _keys(self) -> dict[str, list[tuple[Key, int]]]:
        """By storage: the values that operators make in it, or that a placed parameter is, with their offsets there."""
        found: dict[str, list[tuple[Key, int]]] = {}
        given = {p.tensor for p in self.program.parameters}
        for name, value in self.program.values.items():
            tensor = self.graph.tensor.get(name)
            if (
                tensor is not None
                and tensor.storage is not None
                and (name in given or value.node in self.graph.operator)
            ):
                found.setdefault(tensor.storage, []).append(((value.node, value.index), tensor.offset))
        return found

    @cached_property
    def _updates(self) -> dict[str, Update]:
        return {u.operator: u for u in self.program.optimizer.updates} if self.program.optimizer else {}

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {n.name: n for n in self.joint.module.graph.nodes}

    def base(self, storage: str, step: int) -> int:
        """Offset in the arena of byte 0 of a placed storage while `step` runs."""
        tensor = next(t for t in self._tensors_of[storage])
        return self.addresses.of_tensor(self.graph.tensor[tensor], step) - self.graph.tensor[tensor].offset

    @cached_property
    def _tensors_of(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for t in self.graph.tensors:
            if t.storage is not None:
                found.setdefault(t.storage, []).append(t.id)
        return found

    def placed(self, op: Operator) -> list[str]:
        """The storages that `op` touches and the plan places."""
        return [s for s in self.graph.touches(op) if self.graph.storage[s].nbytes]

    def calls(self, advances: Sequence[bool]) -> list[Call]:
        """The steps as they are emitted; `advances[t]` says whether anything starts or is awaited at instant t."""
        return [self._call(t, step.op, advances[t]) for t, step in enumerate(self.plan.steps)]

    def _call(self, t: int, name: str, advance: bool) -> Call:
        op = self.graph.operator[name]
        places = {
            key: self.base(storage, t) + offset
            for storage in self.placed(op)
            for key, offset in self._keys.get(storage, ())
        }
        if name == self.program.turn:
            return Call(name, places, advance)
        update, clip = self._updates.get(name), self.program.clip
        if update is not None:
            return Call(name, places, advance, steered=True, update=self._placeholder(update.names[0]))
        if clip is not None and name in clip.norms:
            return Call(name, places, advance, steered=True, norm=self._placeholder(clip.norms[name]))
        if clip is not None and name == clip.operator:
            return Call(name, places, advance, factor=True)
        return Call(name, places, advance, steered=True, ignored=self._ignored(op))

    def _placeholder(self, parameter: str) -> str:
        found = [p.node for p in self.joint.primals if p.kind == "parameter" and parameter in p.names]
        if not found:
            raise PlanMismatchError(f"the plan updates '{parameter}', which the module has not; plan again")
        return found[0]

    def _ignored(self, op: Operator) -> frozenset[str]:
        """Placeholders that the node takes and the operator does not read."""
        node = self._nodes.get(op.id)
        if node is None:
            raise PlanMismatchError(
                f"the plan calls '{op.id}', which is no operator of this module's graph; plan again"
            )
        taken = {n.name for n in node.all_input_nodes if n.op == "placeholder"}
        read = {self.program.values[t].node for t in op.inputs if t in self.program.values}
        return frozenset(taken - read)

    def slots(self) -> list[dict[int, Slot]]:
        """For each step, by the position of a result: where it goes, to an address of the plan, or, if it is kept,
        nowhere of ours. Small results that are kept have no slot."""
        return [self._slots(t, step.op) for t, step in enumerate(self.plan.steps)]

    def _slots(self, t: int, name: str) -> dict[int, Slot]:
        found: dict[int, Slot] = {}
        before: list[int] = []
        for position, (key, value) in enumerate(self.results(name)):
            nbytes = value.untyped_storage().nbytes()
            offset = self.address(key, t)
            if offset is not None or nbytes >= SMALLEST_NBYTES:
                address = 0 if offset is None else self.arena.address + offset
                found[position] = Slot(nbytes, address, before.count(nbytes))
            before.append(nbytes)
        return found

    def results(self, name: str) -> list[tuple[Key, torch.Tensor]]:
        """The tensors that an operator makes, as they were traced."""
        node = self._nodes.get(name)
        value = None if node is None else node.meta.get("val")
        parts: Sequence[Any] = value if isinstance(value, (tuple, list)) else (value,)
        return [((name, i), v) for i, v in enumerate(parts) if isinstance(v, torch.Tensor)]

    def address(self, key: Key, step: int) -> int | None:
        """Offset in the arena of a value that `step` touches; None for one that is kept."""
        tensor = self._tensor_of.get(key)
        storage = self.graph.tensor[tensor].storage if tensor is not None else None
        if storage is None or not self.graph.storage[storage].nbytes:
            return None
        return self.base(storage, step) + self.graph.tensor[tensor or ""].offset

    @cached_property
    def _tensor_of(self) -> dict[Key, str]:
        return {(v.node, v.index): t for t, v in self.program.values.items() if t in self.graph.tensor}

    def viewer(self) -> Callable[[Key, int], torch.Tensor]:
        """What gives a value's tensor at an offset in the arena: the same one for the same question."""
        made: dict[tuple[Key, int], torch.Tensor] = {}
        traced = {key: v for name in self._nodes for key, v in self.results(name)}

        def view(key: Key, offset: int) -> torch.Tensor:
            if (key, offset) not in made:
                made[key, offset] = view_of(self.arena, offset, traced[key])
            return made[key, offset]

        return view


def view_of(arena: Arena, offset: int, like: torch.Tensor) -> torch.Tensor:
    """The tensor at `offset` of the arena that has the form of `like`, a tensor at the beginning of its storage."""
    nbytes = like.untyped_storage().nbytes() - like.storage_offset() * like.element_size()
    flat = torch.frombuffer(arena.view(offset, int(nbytes)), dtype=torch.uint8).view(like.dtype)
    return flat.as_strided(like.shape, like.stride())
