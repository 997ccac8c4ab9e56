"""Every step of a plan bound to its kernel and its addresses, once, before the first pass. Refuses what cannot run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.errors import PlanMismatchError
from ..ir.graph import Graph, Operator, Tensor
from ..ir.plan import Plan
from ..ir.program import Lookup
from .addresses import Addresses
from .arena import Arena
from .kernels import Kernel, Port, element_name
from .lookup import LookupCall
from .opaque import to_ort, to_python
from .reading import WeightReader
from .values import Array, dense_nbytes, from_bytes, numpy_type, to_bytes

Values = dict[str, Any]  # what opaque tensors hold: OrtValues, maps, None for an empty optional

_VECTOR_NBYTES = 64  # what ONNX Runtime aligns its own tensors to


@dataclass(frozen=True, slots=True)
class Bound:
    """A tensor at a kernel's port: at `address` in the arena, or opaque where that is None."""

    port: Port
    tensor: Tensor
    address: int | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BoundStep:
    """One operator call. `call(binding, None)` runs it, unless it is `opaque`."""

    op: Operator
    unit: str
    call: Callable[[Any, Any], None]
    binding: Any
    opaque: OpaqueCall | None


class OpaqueCall:
    """A call with a value that has no address. A new binding each time: an old one would keep the values alive."""

    def __init__(self, kernel: Kernel, inputs: list[Bound], outputs: list[Bound], dead: tuple[str, ...], arena: Arena):
        self._kernel = kernel
        self._inputs = inputs
        self._outputs = outputs
        self._dead = dead
        self._arena = arena
        maps = any(b.port.kind == "map" for b in (*inputs, *outputs))
        self._on_python_values = maps or any(b.port.kind == "optional" for b in outputs)

    def run(self, values: Values) -> None:
        """Run the kernel; take opaque operands from `values`, put opaque results there, drop what is dead."""
        empty = any(b.address is None and values[b.tensor.id] is None for b in self._inputs)
        if empty or self._on_python_values:
            self._run_on_python_values(values)
        else:
            self._run_bound(values)
        for tensor in self._dead:
            values.pop(tensor, None)

    def _run_bound(self, values: Values) -> None:
        binding = self._kernel.session.io_binding()
        bind_static(binding, self._inputs, self._outputs)
        for b in self._inputs:
            if b.address is None:
                binding.bind_ortvalue_input(b.port.name, values[b.tensor.id])
        for b in self._outputs:
            if b.address is None:
                binding.bind_output(b.port.name)
        self._kernel.session.run_with_iobinding(binding)
        bound_order = sorted(self._outputs, key=lambda b: b.address is None)  # what has an address was bound first
        for b, value in zip(bound_order, binding.get_outputs(), strict=True):
            if b.address is None:
                values[b.tensor.id] = value

    def _run_on_python_values(self, values: Values) -> None:
        feeds: dict[str, Any] = {}
        for b in self._inputs:
            feeds[b.port.name] = to_python(values[b.tensor.id]) if b.address is None else self._array(b)
        results = self._kernel.session.run([b.port.name for b in self._outputs], feeds)
        for b, result in zip(self._outputs, results, strict=True):
            if b.address is None:
                values[b.tensor.id] = to_ort(b.tensor.id, result, b.port.element)
            else:
                self._bytes(b)[:] = to_bytes(np.ascontiguousarray(result), b.tensor)

    def _bytes(self, b: Bound) -> Array:
        assert b.address is not None
        return np.frombuffer(self._arena.view(b.address - self._arena.address, b.tensor.nbytes), np.uint8)

    def _array(self, b: Bound) -> Array:
        return from_bytes(self._bytes(b), b.tensor).reshape(b.shape)


def bind_static(binding: Any, inputs: list[Bound], outputs: list[Bound]) -> None:
    """Bind whatever has an address."""
    for b in inputs:
        if b.address is not None:
            binding.bind_input(b.port.name, "cpu", 0, b.port.element, b.shape, b.address)
    for b in outputs:
        if b.address is not None:
            binding.bind_output(b.port.name, "cpu", 0, b.port.element, b.shape, b.address)


def bind_steps(
    plan: Plan,
    graph: Graph,
    kernels: Mapping[str, Kernel],
    lookups: Mapping[str, Lookup],
    store: WeightReader,
    addresses: Addresses,
    arena: Arena,
) -> list[BoundStep]:
    """Every step, bound to its kernel or to what the store does in its stead.

    Raises PlanMismatchError where a kernel, a tensor and an address do not fit one another.
    """
    last_use: dict[str, int] = {}
    for step, called in enumerate(plan.steps):
        op = graph.operator[called.op]
        last_use.update((t, step) for t in op.inputs + op.outputs if graph.tensor[t].storage is None)
    kept = set(graph.outputs)
    dead: dict[int, list[str]] = {}
    for tensor, step in last_use.items():
        if tensor not in kept:
            dead.setdefault(step, []).append(tensor)
    bound: list[BoundStep] = []
    for step, called in enumerate(plan.steps):
        op = graph.operator[called.op]
        if op.id in lookups:
            call = _bind_lookup(op, lookups[op.id], graph, store, addresses, arena, step)
            bound.append(BoundStep(op, called.unit, call, None, None))
            continue
        kernel = kernels[op.id]

        def at(port: Port, tensor_id: str, op: Operator = op, step: int = step) -> Bound:
            return _bind(op, port, graph.tensor[tensor_id], addresses, arena, step)

        _check_counts(op, kernel)
        inputs = [at(p, t) for p, t in zip(kernel.inputs, op.inputs, strict=True)]
        outputs = [at(p, t) for p, t in zip(kernel.outputs, op.outputs, strict=True)]
        bound.append(_bind_step(op, called.unit, kernel, inputs, outputs, tuple(dead.get(step, ())), arena))
    return bound


def _bind_lookup(
    op: Operator, lookup: Lookup, graph: Graph, store: WeightReader, addresses: Addresses, arena: Arena, step: int
) -> LookupCall:
    indices, output = graph.tensor[op.inputs[0]], graph.tensor[op.outputs[0]]
    entry = store.entries.get(lookup.blob)
    held, needed = entry.nbytes if entry else 0, lookup.rows * lookup.row_nbytes
    if held < needed:
        raise PlanMismatchError(
            f"operator '{op.id}' looks up rows in {needed} bytes of blob '{lookup.blob}', the store has {held} of it; "
            "plan again"
        )
    count = dense_nbytes(indices.dtype, indices.shape or ()) // numpy_type(indices.dtype).itemsize
    if output.nbytes != count * lookup.row_nbytes:
        raise PlanMismatchError(
            f"operator '{op.id}' looks up {count} rows of {lookup.row_nbytes} bytes, its output has {output.nbytes}; "
            "plan again"
        )
    at = [arena.view(addresses.of_tensor(t, step), t.nbytes) for t in (indices, output)]
    return LookupCall(op.id, lookup, store, np.frombuffer(at[0], numpy_type(indices.dtype)), at[1])


def _bind_step(
    op: Operator,
    unit: str,
    kernel: Kernel,
    inputs: list[Bound],
    outputs: list[Bound],
    dead: tuple[str, ...],
    arena: Arena,
) -> BoundStep:
    opaque = any(b.address is None for b in inputs + outputs)
    binding = kernel.session.io_binding()
    if not opaque:
        bind_static(binding, inputs, outputs)
    # The wrappers of the Python package cost 2 us a call, as much as a small kernel, and do nothing for the CPU.
    return BoundStep(
        op,
        unit,
        kernel.session._sess.run_with_iobinding,
        binding._iobinding,
        OpaqueCall(kernel, inputs, outputs, dead, arena) if opaque else None,
    )


def _check_counts(op: Operator, kernel: Kernel) -> None:
    for what, ports, tensors in (("inputs", kernel.inputs, op.inputs), ("outputs", kernel.outputs, op.outputs)):
        if len(ports) != len(tensors):
            raise PlanMismatchError(
                f"operator '{op.id}' ({op.op_type}) has {len(tensors)} {what}, its kernel {len(ports)}; plan again"
            )


def _bind(op: Operator, port: Port, tensor: Tensor, addresses: Addresses, arena: Arena, step: int) -> Bound:
    if tensor.storage is None:
        return Bound(port, tensor, None, ())
    if not port.bindable or element_name(port.element) != tensor.dtype:
        kind = element_name(port.element) if port.bindable else port.kind
        raise PlanMismatchError(
            f"operator '{op.id}' ({op.op_type}) takes {kind} at '{port.name}', the graph gives it {tensor.dtype} "
            f"'{tensor.id}'; plan again"
        )
    shape = port.shape if port.shape is not None else tensor.shape
    nbytes = -1 if shape is None else dense_nbytes(tensor.dtype, shape)
    if shape is None or nbytes != tensor.nbytes:
        raise PlanMismatchError(
            f"operator '{op.id}' ({op.op_type}) takes {nbytes} bytes at '{port.name}', tensor '{tensor.id}' has "
            f"{tensor.nbytes}; plan again"
        )
    offset = addresses.of_tensor(tensor, step)
    # A view may begin anywhere in its storage, but never inside an element.
    alignment = numpy_type(tensor.dtype).alignment if tensor.offset else _VECTOR_NBYTES
    if offset % alignment:
        raise PlanMismatchError(
            f"tensor '{tensor.id}' lies at {offset}, not a multiple of {alignment} bytes as operator '{op.id}' needs; "
            "plan again"
        )
    return Bound(port, tensor, arena.address + offset, shape)
