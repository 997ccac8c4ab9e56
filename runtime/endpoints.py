"""The user's inputs into the arena when a pass begins, the outputs out of it when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..ir.errors import InputError, PlanMismatchError
from ..ir.graph import Graph, Tensor
from ..ir.program import Program
from .addresses import Addresses
from .arena import Arena
from .opaque import to_ort, to_python
from .reading import WeightReader
from .steps import Values
from .values import Array, check_input, from_bytes, numpy_type, to_bytes

Checked = dict[str, object]  # by tensor id: an array where the tensor has a storage, else what `to_ort` takes


@dataclass(frozen=True, slots=True)
class Place:
    """Input or output `name`: `tensor`, at `offset` of the arena, or elsewhere where that is None."""

    name: str
    tensor: Tensor
    offset: int | None


class Endpoints:
    """Where inputs go and outputs come from. Raises PlanMismatchError where an output cannot be had."""

    def __init__(self, graph: Graph, program: Program, addresses: Addresses, period: int) -> None:
        for what, names, tensors in (
            ("inputs", program.input_names, graph.inputs),
            ("outputs", program.output_names, graph.outputs),
        ):
            if len(names) != len(tensors):
                raise PlanMismatchError(
                    f"the program names {len(names)} {what}, the graph has {len(tensors)}; plan again"
                )
        self._graph = graph
        self._source = {
            graph.tensor[t].storage: graph.tensor[t] for t in graph.inputs if graph.tensor[t].storage is not None
        }

        def place(name: str, tensor_id: str, step: int) -> Place:
            tensor = graph.tensor[tensor_id]
            lies = period > 0 and tensor.storage is not None and addresses.has(tensor.storage, step)
            return Place(name, tensor, addresses.of_tensor(tensor, step) if lies else None)

        self._inputs = [place(n, t, 0) for n, t in zip(program.input_names, graph.inputs, strict=True)]
        self._outputs = [place(n, t, period - 1) for n, t in zip(program.output_names, graph.outputs, strict=True)]
        for p in self._outputs:
            if p.offset is None and p.tensor.storage is not None and not self._elsewhere(p.tensor):
                raise PlanMismatchError(
                    f"output '{p.name}' has no place in step {period - 1}, the last one; plan again"
                )

    def _elsewhere(self, tensor: Tensor) -> bool:
        """Whether the bytes of `tensor` can be had without the arena."""
        storage = self._graph.storage[tensor.storage or ""]
        return storage.nbytes == 0 or storage.homed or storage.id in self._source

    def check(self, inputs: Mapping[str, object]) -> Checked:
        """`inputs` by tensor id. Raises InputError for a missing, unknown or unfitting one."""
        known = [p.name for p in self._inputs]
        for what, names in (
            ("misses", [n for n in known if n not in inputs]),
            ("does not know", [n for n in inputs if n not in known]),
        ):
            if names:
                raise InputError(f"the model {what} the inputs {names}; its inputs: {known}")
        return {
            p.tensor.id: inputs[p.name] if p.tensor.storage is None else check_input(p.name, p.tensor, inputs[p.name])
            for p in self._inputs
        }

    def zeros(self) -> dict[str, object]:
        """Inputs of zeros by name. Raises InputError where an input is opaque."""
        for p in self._inputs:
            if p.tensor.storage is None or p.tensor.shape is None:
                raise InputError(f"input '{p.name}' has no fixed form, so no zeros stand for it; give the inputs")
        return {p.name: np.zeros(p.tensor.shape or (), numpy_type(p.tensor.dtype)) for p in self._inputs}

    def named(self, checked: Checked) -> dict[str, object]:
        """What `check` made of inputs, by the user's names again."""
        return {p.name: checked[p.tensor.id] for p in self._inputs}

    def put(self, checked: Checked, arena: Arena, values: Values, elements: Mapping[str, int]) -> None:
        """Copy inputs to their places at instant 0; `elements` are the types of opaque tensors, where known."""
        for p in self._inputs:
            value = checked[p.tensor.id]
            if p.tensor.storage is None:
                values[p.tensor.id] = to_ort(p.name, value, elements.get(p.tensor.id, 0))
            elif p.offset is not None and p.tensor.nbytes:
                assert isinstance(value, np.ndarray)
                target = np.frombuffer(arena.view(p.offset, p.tensor.nbytes), np.uint8)
                np.copyto(target, to_bytes(value, p.tensor))

    def take(self, checked: Checked, arena: Arena, values: Values, store: WeightReader) -> dict[str, Array]:
        """New arrays of the outputs, from their places in the last step."""
        return {p.name: self._take(p, checked, arena, values, store) for p in self._outputs}

    def _take(self, p: Place, checked: Checked, arena: Arena, values: Values, store: WeightReader) -> Array:
        tensor = p.tensor
        if tensor.storage is None:
            return to_python(values[tensor.id])
        if p.offset is not None:
            return from_bytes(np.frombuffer(arena.view(p.offset, tensor.nbytes), np.uint8), tensor)
        storage = self._graph.storage[tensor.storage]
        content = np.empty(tensor.nbytes, np.uint8)
        if storage.homed and storage.blob is not None:
            store.read(storage.blob, storage.blob_offset + tensor.offset, content.data)
        elif storage.id in self._source:
            source = self._source[storage.id]
            value = checked[source.id]
            assert isinstance(value, np.ndarray)
            start = tensor.offset - source.offset
            np.copyto(content, to_bytes(value, source)[start : start + tensor.nbytes])
        return from_bytes(content, tensor)
