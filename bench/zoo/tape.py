"""Gradients of a graph as they come: where each lies, and how those of one value are summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tensorstow.ir.errors import InputError
from tensorstow.ir.graph import HOMED_KINDS, Graph, Operator, Storage, StorageKind, Tensor

from .builder import tensor_nbytes

PARAMETERS = frozenset({StorageKind.WEIGHT, StorageKind.EXPERT})


@dataclass
class Tape:
    """A forward graph, the operators that were added to it, and the gradient of each of its storages so far.

    Gradients are kept by storage, as views share theirs; a gradient has the layout of the forward value.
    `in_place`: sums are written over one of their terms where nothing else reads it, as autograd does it.
    """

    forward: Graph
    in_place: bool = True
    storages: dict[str, Storage] = field(default_factory=dict[str, Storage])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    operators: list[Operator] = field(default_factory=list[Operator])
    gradients: dict[str, str] = field(default_factory=dict[str, str])
    shared: set[str] = field(default_factory=set[str])
    statistics: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    needed: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        self.storages |= self.forward.storage
        self.tensors |= self.forward.tensor
        self.needed |= {s.id for s in self.forward.storages if s.kind in PARAMETERS}
        for op in self.forward.operators:
            if any(self.wants(x) for x in op.inputs):
                self.needed.update(
                    self.storage(x) for x in op.outputs if self.tensors[x].dtype.startswith(("float", "bfloat"))
                )

    def storage(self, x: str) -> str:
        """The storage of a tensor; one that has none has no gradient either."""
        found = self.tensors[x].storage
        if found is None:
            raise InputError(f"tensor '{x}' of '{self.forward.name}' lies outside the plan; it cannot be trained")
        return found

    def shape(self, x: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[x].shape or ()

    def elements(self, x: str) -> int:
        """Number of elements of a tensor."""
        tensor = self.tensors[x]
        return tensor.nbytes // tensor_nbytes(tensor.dtype, ())

    def wants(self, x: str) -> bool:
        """Whether a parameter stands behind `x`, so that its gradient is computed."""
        return self.storage(x) in self.needed

    def gradient(self, x: str) -> str | None:
        """The gradient of `x` so far, in its shape; None where there is none."""
        whole = self.gradients.get(self.storage(x))
        if whole is None:
            return None
        like, base = self.tensors[x], self.tensors[whole]
        if like.shape == base.shape and not like.offset:
            return whole
        name = f"{whole}@{x}"
        if name not in self.tensors:
            self.tensors[name] = replace(like, id=name, storage=base.storage)
        return name

    def new(self, name: str, like: Tensor, kind: StorageKind) -> str:
        """A tensor of its own, formed like another one."""
        return self.make(name, like.dtype, like.shape or (), kind)

    def make(self, name: str, dtype: str, shape: Sequence[int], kind: StorageKind) -> str:
        """A tensor of its own."""
        if name in self.tensors:
            raise InputError(f"'{name}' is a name of graph '{self.forward.name}' and of its training; rename it")
        nbytes = tensor_nbytes(dtype, shape)
        self.storages[name] = Storage(name, nbytes, kind)
        self.tensors[name] = Tensor(name, dtype, tuple(shape), name, nbytes)
        return name

    def version(self, x: str, name: str) -> str:
        """A new value of `x` in the same place."""
        self.tensors[name] = replace(self.tensors[x], id=name)
        return name

    def add(self, op: Operator) -> None:
        """Append an operator; its traffic is its operands and results where it does not say otherwise."""
        if not op.moved_nbytes:
            op = replace(op, moved_nbytes=sum(self.tensors[t].nbytes for t in op.inputs + op.outputs))
        self.operators.append(op)

    def emit(
        self,
        op: Operator,
        part: str,
        reads: Sequence[str],
        targets: Sequence[str],
        *,
        flops: int,
        cost_class: str | None = None,
        workspace_nbytes: int = 0,
    ) -> None:
        """A backward operator of `op`: reads these tensors and makes the gradients of those `targets` that want one."""
        targets = [x for x in dict.fromkeys(targets) if self.wants(x)]
        if not targets:
            return
        made = [self._fresh(x) for x in targets]
        self.add(
            Operator(
                f"{op.id}.{part}",
                f"{op.op_type}Backward",
                tuple(dict.fromkeys(reads)),
                tuple(made),
                cost_class or op.cost_class,
                op.dtype,
                flops,
                workspace_nbytes=workspace_nbytes,
            )
        )
        for x, gradient in zip(targets, made, strict=True):
            self.contribute(x, gradient)

    def _fresh(self, x: str) -> str:
        at = self.storages[self.storage(x)]
        if self.tensors[x].nbytes != at.nbytes:
            raise InputError(
                f"'{x}' is {self.tensors[x].nbytes} of the {at.nbytes} bytes of '{at.id}'; the gradient of a part of a "
                "storage is not derived: give the part a storage of its own"
            )
        kind = StorageKind.GRADIENT if at.kind in PARAMETERS else StorageKind.ACTIVATION
        return self.new(self._name(f"d:{at.id}"), self.tensors[x], kind)

    def _name(self, stem: str) -> str:
        name, n = stem, 1
        while name in self.tensors:
            name, n = f"{stem}:{n}", n + 1
        return name

    def pass_on(self, gradient: str, targets: Sequence[str]) -> None:
        """`gradient` is that of every one of `targets`, without an operator: what a sum does."""
        targets = [x for x in targets if self.wants(x)]
        if len(targets) > 1:
            self.shared.add(self.storage(gradient))
        for x in targets:
            self.contribute(x, gradient)

    def contribute(self, x: str, gradient: str) -> None:
        """One more term of the gradient of `x`."""
        at = self.storage(x)
        before = self.gradients.get(at)
        if before is None:
            self.gradients[at] = gradient
            return
        own = [g for g in (before, gradient) if self.storage(g) not in self.shared]
        name = self._name(f"d:{at}:sum")
        if own and self.in_place:
            total = self.version(own[0], name)
        else:
            kind = self.storages[self.storage(before)].kind
            total = self.new(name, self.tensors[before], kind)
        self.add(
            Operator(name, "Add", (before, gradient), (total,), "elementwise", self.tensors[x].dtype, self.elements(x))
        )
        self.gradients[at] = total

    def homed(self, x: str) -> bool:
        """Whether `x` begins every pass in its home tier."""
        return self.storages[self.storage(x)].kind in HOMED_KINDS
