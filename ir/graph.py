"""Operators over tensors: what a model computes, with the bytes it touches and nothing of how it is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class StorageKind(str, Enum):
    """Why bytes exist. The kinds of `HOMED_KINDS` begin every pass in their home tier; the others are made in it."""

    INPUT = "input"
    WEIGHT = "weight"
    CONSTANT = "constant"
    ACTIVATION = "activation"
    GRADIENT = "gradient"
    OPTIMIZER_STATE = "optimizer_state"
    OUTPUT = "output"
    EXPERT = "expert"


HOMED_KINDS = frozenset({StorageKind.WEIGHT, StorageKind.CONSTANT, StorageKind.OPTIMIZER_STATE, StorageKind.EXPERT})


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that are placed as one; residencies and transfers speak of storages, or of byte ranges of them.

    `nbytes` is what kernels read and write. `blob` and `blob_offset` say where a homed storage lies in the weight
    store: several storages that are pieces of one split weight share a blob.
    """

    id: str
    nbytes: int
    kind: StorageKind
    alignment: int = 64
    blob: str | None = None
    blob_offset: int = 0

    @property
    def homed(self) -> bool:
        """Whether a clean copy lies in the home tier when a pass begins."""
        return self.kind in HOMED_KINDS


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value: `shape` elements of `dtype`, dense, at byte `offset` of its `storage`.

    Views share their base's storage. A tensor whose type or shape no plan can know (sequences, strings,
    data-dependent shapes) has `storage` None and `shape` None: it lives outside the plan.
    `dtype` uses numpy's names ('float32', 'int64', 'bfloat16', ...), 'opaque' for what has none.
    """

    id: str
    dtype: str
    shape: tuple[int, ...] | None
    storage: str | None
    nbytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Operator:
    """One kernel call.

    `inputs` and `outputs` are tensor ids in the kernel's order. `flops` counts a multiply-add as two.
    `moved_nbytes` are the bytes that the kernel reads and writes in its compute tier; `workspace_nbytes` what it
    allocates for itself while it runs. `cost_class` selects the machine's measured rates ('matmul', 'conv', ...),
    `dtype` the arithmetic. `measured_ns`, where a profile was taken, replaces the formula.
    """

    id: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cost_class: str = "elementwise"
    dtype: str = "float32"
    flops: int = 0
    moved_nbytes: int = 0
    workspace_nbytes: int = 0
    measured_ns: int | None = None


@dataclass(frozen=True)
class Graph:
    """Operators in a valid order over tensors and storages. `inputs` and `outputs` are tensor ids."""

    name: str
    storages: tuple[Storage, ...]
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def storage(self) -> dict[str, Storage]:
        """Storages by id."""
        return {s.id: s for s in self.storages}

    @cached_property
    def tensor(self) -> dict[str, Tensor]:
        """Tensors by id."""
        return {t.id: t for t in self.tensors}

    @cached_property
    def operator(self) -> dict[str, Operator]:
        """Operators by id."""
        return {o.id: o for o in self.operators}

    def storages_of(self, tensor_ids: Iterable[str]) -> tuple[str, ...]:
        """Distinct storage ids behind tensor ids, in order of first mention; tensors without a storage are left out."""
        found = (self.tensor[t].storage for t in tensor_ids)
        return tuple(dict.fromkeys(s for s in found if s is not None))

    def reads(self, op: Operator) -> tuple[str, ...]:
        """Storage ids that `op` reads."""
        return self.storages_of(op.inputs)

    def writes(self, op: Operator) -> tuple[str, ...]:
        """Storage ids that `op` writes."""
        return self.storages_of(op.outputs)

    def touches(self, op: Operator) -> tuple[str, ...]:
        """Storage ids that `op` reads or writes."""
        return self.storages_of(op.inputs + op.outputs)

    @property
    def nbytes(self) -> int:
        """Bytes of all storages together."""
        return sum(s.nbytes for s in self.storages)
