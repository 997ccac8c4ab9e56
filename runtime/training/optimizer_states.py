"""What a planned step changes and keeps: an optimizer's states on their way between the user's object, the store on
disk, and the arena, beside the parameters that are placed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from ...ir.graph import Graph
from ..passes import PlanMemory
from .placed_parameters import PlacedParameters
from .state_store import StateStore
from .trained import BoundUpdate, Trained
from .versions import ChangedStorages


class PlacedStates:
    """The states that a plan places: their home is a nameless file in `folder` (by default the cache), which has room
    for all that the plan places there. `placed` are the parameters that it places.

    Raises ExecutionError where the disk has no room. Nothing here is called while a step runs but `views`.
    """

    def __init__(
        self, graph: Graph, parameters: Sequence[Trained], placed: PlacedParameters, folder: Path | None
    ) -> None:
        self._graph = graph
        self._parameters = parameters
        self._placed = placed
        self.store = StateStore(homed_nbytes(graph), folder)
        self._memory: PlanMemory | None = None
        self._changed: ChangedStorages | None = None
        self.stale = False
        """Whether the last versions are at home, and the arena has to be filled from there before the next step."""

    def bind(self, memory: PlanMemory) -> None:
        """From now on the last versions are where `memory` has them."""
        self._memory = memory
        self._changed = ChangedStorages(memory, self.store)
        self._placed.bind(memory)
        for p in self._parameters:
            for bound in p.updates:
                bound.parameter = self._placed.view(p.name, bound.step)
                bound.views = {key: self._view(memory, p, bound, key) for key in p.placed}

    def _view(self, memory: PlanMemory, p: Trained, bound: BoundUpdate, key: str) -> torch.Tensor:
        tensor = self._graph.tensor[bound.update.states[key]]
        view = memory.arena.view(memory.addresses.of_tensor(tensor, bound.step), tensor.nbytes)
        flat = torch.frombuffer(view, dtype=p.tensor.dtype, count=tensor.nbytes // p.tensor.element_size())
        return flat if bound.update.elements else flat.as_strided(p.shapes[key], p.strides(key))

    def keep(self, p: Trained, state: Mapping[str, Any]) -> None:
        """Store what an optimizer holds of a parameter's states."""
        for key in p.placed:
            if state.get(key) is not None:
                self._scatter(p, key, _content(state[key], p.strides(key)))

    def replace_all(self, states: Mapping[Any, Mapping[str, Any]]) -> None:
        """Store the states of an optimizer, by parameter, in place of all; zeros where it has none."""
        if self._placed.storages:
            self.bring_home()
        elif self._memory is not None and not self._memory.closed:
            self._memory.settle()
        self.stale = True
        self.store.spoil("a state_dict was not loaded to its end")
        for p in self._parameters:
            state = states.get(p.tensor) or {}
            for key in p.placed:
                loaded = state.get(key)
                content = memoryview(bytearray(p.nbytes(key))) if loaded is None else _content(loaded, p.strides(key))
                self._scatter(p, key, content)
        self.store.restored()

    def whole(self, p: Trained, key: str) -> torch.Tensor:
        """A state in memory of its own."""
        found = torch.empty_strided(p.shapes[key], p.strides(key), dtype=p.tensor.dtype)
        content = _bytes(found)
        for storage, blob, lo, hi in self._pieces(p, key):
            if self._changed is not None and not self.stale:
                self._changed.read([(storage, content[lo:hi])])
            else:
                self.store.read(blob, 0, content[lo:hi])
        return found

    @property
    def instant(self) -> int:
        """The instant that the passes have reached, counted on over all of them."""
        return 0 if self._memory is None or self._memory.closed else max(0, self._memory.engine.now)

    def bring_home(self, reached: int = 0) -> None:
        """Store all of which memory has the only copy, now or when the passes had come to instant `reached`, if that is
        later. Raises ExecutionError where the disk fails."""
        self._placed.written()
        if self._changed is not None and self._memory is not None and not self._memory.closed and not self.stale:
            self._changed.bring_home(reached)
            self.stale = True
            self._placed.at_home()

    def refill(self) -> bool:
        """Bring memory into the state before the first pass, if its states are stale, or somebody else wrote parameters
        since; whether it was so."""
        if self._placed.written():
            self.bring_home()
        if self.stale and self._memory is not None:
            self._memory.restart()
            self.stale = False
            return True
        return False

    def unbind(self) -> None:
        """Close the memory; what is at home counts."""
        for p in self._parameters:
            for bound in p.updates:
                bound.views, bound.parameter = {}, None
        self._changed = None
        if self._memory is not None:
            self._memory.close()

    def _scatter(self, p: Trained, key: str, content: memoryview) -> None:
        for _, blob, lo, hi in self._pieces(p, key):
            self.store.write(blob, 0, content[lo:hi])

    def _pieces(self, p: Trained, key: str) -> Iterator[tuple[str, str, int, int]]:
        """(storage, blob, first byte, end) of the pieces of a state, one an update."""
        for bound in p.updates:
            tensor = self._graph.tensor[bound.update.states[key]]
            storage = self._graph.storage[tensor.storage or ""]
            lo = (bound.update.elements or (0, 0))[0] * p.tensor.element_size()
            yield storage.id, storage.blob or storage.id, lo, lo + tensor.nbytes


def homed_nbytes(graph: Graph) -> dict[str, int]:
    """By blob, the bytes of what has a home."""
    return {s.blob or s.id: s.nbytes for s in graph.storages if s.homed and s.nbytes}


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor without gaps as they lie in memory."""
    return tensor.as_strided((prod(tensor.shape),), (1,))


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor without gaps."""
    return flat(tensor).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _content(tensor: torch.Tensor, strides: tuple[int, ...]) -> memoryview:
    """The bytes of a tensor as they lie with these strides."""
    tensor = tensor.detach()
    if tuple(tensor.stride()) != strides or tensor.device.type != "cpu":
        laid = torch.empty_strided(tuple(tensor.shape), strides, dtype=tensor.dtype)
        tensor = laid.copy_(tensor)
    return _bytes(tensor)
