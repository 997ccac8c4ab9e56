"""Modules with graphs made by watching them run once: parts in the order in which weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tensorstow.ir.graph import Graph, Operator, Storage, StorageKind, Tensor
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan
from tensorstow.ir.program import BlobSource, Lookup, ModuleProgram, Parameter
from tensorstow.planner.build import plan_graph
from tensorstow.runtime.module import ModuleExecutor
from tensorstow.runtime.store import WeightStore

from ..graphs import machine
from .build import IDENTITY

PAGE = 4096


@dataclass
class Recorded:
    """What an executor needs of one module: graph, program, and a store of its weights as they were."""

    module: nn.Module
    graph: Graph
    program: ModuleProgram
    store: WeightStore

    @property
    def nbytes(self) -> int:
        """Of all placed weights, in whole blocks."""
        return sum(-(-s.nbytes // PAGE) * PAGE for s in self.graph.storages)

    @property
    def smallest(self) -> int:
        """The largest working set of a part."""
        sizes = {s.id: -(-s.nbytes // PAGE) * PAGE for s in self.graph.storages}
        return max(sum(sizes[s] for s in self.graph.reads(o)) for o in self.graph.operators)

    def plan(self, share: float) -> tuple[Plan, Machine]:
        """A plan with this share of what lies between the smallest budget and all weights."""
        budget = self.smallest + int(share * (self.nbytes - self.smallest))
        at = machine(budget + PAGE, bytes_per_s=2e9)
        return plan_graph(self.graph, at, time_limit_s=2), at

    def execute(self, share: float) -> ModuleExecutor:
        """An executor of such a plan; the module's own weights become useless."""
        plan, at = self.plan(share)
        release(self.module, self.program)
        return ModuleExecutor(plan, self.graph, self.program, self.store, at, self.module)


def release(module: nn.Module, program: ModuleProgram) -> None:
    """Leave placed weights their shape, and one wrong value for all elements."""
    for parameter in program.parameters:
        for name in parameter.names:
            held = _named(module)[name]
            wrong = torch.full((), 7, dtype=held.dtype) if not held.is_floating_point() else torch.tensor(float("nan"))
            held.data = wrong.to(held.dtype).expand(held.shape)


def _named(module: nn.Module) -> dict[str, torch.Tensor]:
    values = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return dict(values)


@dataclass
class _Watch(TorchDispatchMode):
    """Notes which weights each operator reads, and in which module."""

    names: Mapping[int, str]  # by storage
    where: list[str]
    reads: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list[tuple[str, str, tuple[str, ...]]])

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            found = [self.names.get(_storage(t)) for t in _tensors((args, kwargs or {}))]
            read = tuple(dict.fromkeys(n for n in found if n is not None))
            if read:
                self.reads.append((self.where[-1], func.overloadpacket.__name__, read))
        return func(*args, **(kwargs or {}))


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v)


@contextmanager
def _innermost(module: nn.Module) -> Any:
    """The names of the modules whose forward runs, the innermost last."""
    stack = [""]
    handles: list[Any] = []
    for name, part in module.named_modules():

        def enter(*_: Any, name: str = name) -> None:
            stack.append(name)

        def leave(*_: Any) -> None:
            stack.pop()

        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def record(
    module: nn.Module,
    run: Callable[[], object],
    folder: Path,
    *,
    kept_nbytes: int = 0,
    looked_up: Iterable[str] = (),
) -> Recorded:
    """`run` calls the module once. Weights above `kept_nbytes` are placed; tables of the embeddings in `looked_up`
    (by their names) are read by rows there."""
    tied: dict[int, list[str]] = {}
    named = _named(module)
    for name, value in named.items():
        if isinstance(value, nn.Parameter) and value.nbytes > kept_nbytes:
            tied.setdefault(_storage(value), []).append(name)
    with torch.no_grad(), _innermost(module) as where:
        watch = _Watch({key: names[0] for key, names in tied.items()}, where)
        with watch:
            run()
    graph_parts, calls, lookups = _parts(watch.reads, {n: named[n] for ns in tied.values() for n in ns}, set(looked_up))
    storages = tuple(
        Storage(names[0], named[names[0]].nbytes, StorageKind.WEIGHT, blob=names[0]) for names in tied.values()
    )
    tensors = tuple(_tensor(names[0], named[names[0]]) for names in tied.values())
    tensors += tuple(Tensor(token, "opaque", None, None, 0) for op in graph_parts for token in op.outputs)
    graph = Graph("recorded", storages, tensors, graph_parts, (), ())
    blobs = tuple(_blob(folder, names[0], named[names[0]]) for names in tied.values())
    parameters = tuple(Parameter(tuple(names), names[0]) for names in tied.values())
    program = ModuleProgram("test", None, False, blobs, parameters, calls, lookups)
    store = WeightStore.open_or_build(program, identity=IDENTITY, folder=folder / "stores" / "module")
    return Recorded(module, graph, program, store)


def _tensor(name: str, value: torch.Tensor) -> Tensor:
    return Tensor(name, str(value.dtype).removeprefix("torch."), tuple(value.shape), name, value.nbytes)


def _blob(folder: Path, name: str, value: torch.Tensor) -> BlobSource:
    path = folder / f"{name}.bin"
    path.write_bytes(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    dtype = str(value.dtype).removeprefix("torch.")
    return BlobSource(name, value.nbytes, dtype, tuple(value.shape), path=str(path))


def _parts(
    reads: list[tuple[str, str, tuple[str, ...]]], named: Mapping[str, torch.Tensor], looked_up: set[str]
) -> tuple[tuple[Operator, ...], dict[str, str], dict[str, Lookup]]:
    operators: list[Operator] = []
    calls: dict[str, str] = {}
    lookups: dict[str, Lookup] = {}
    present: set[str] = set()
    for where, kind, read in reads:
        if set(read) <= present:
            continue
        op = f"{where or 'whole'}#{len(operators)}"
        calls[op] = where
        if where in looked_up and kind == "embedding":
            table = named[read[0]]
            lookups[op] = Lookup(read[0], table.shape[0], table.nbytes // table.shape[0])
            operators.append(Operator(op, "lookup", _order(operators), (f"{op} is done",), measured_ns=1000))
            continue
        present = set(read)
        measured_ns = max(1000, sum(named[n].nbytes for n in read) // 2)
        given = (*read, *_order(operators))
        operators.append(Operator(op, kind, given, (f"{op} is done",), measured_ns=measured_ns))
    return tuple(operators), calls, lookups


def _order(before: list[Operator]) -> tuple[str, ...]:
    """The token that keeps the next part behind these: the module's Python has one order."""
    return before[-1].outputs if before else ()
