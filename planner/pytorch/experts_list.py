"""Module lists of experts behind a router of the module's own, which no tracing can follow.

Which experts such a module calls depends on values. So the module is run once on its example inputs, with its weights,
to see which lists are called by choice; and to trace it, the module that owns such a list is stood in for: by what
reads its other weights, and gives results of the shapes that were seen.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from ...ir.program import ExpertLayer
from .experts import Routed
from .parts import ModuleLowered


@dataclass(frozen=True)
class Listed:
    """A list of experts; `owner` is the module that calls them.

    One call of it took `seconds` and made tensors of `made_nbytes` in all; `result` is what it returned, on 'meta'.
    """

    routed: Routed
    owner: str
    seconds: float
    made_nbytes: int
    result: Any


def find_lists(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Listed, ...]:
    """Lists of alike modules of which a call of the owner uses some, or each for some of its rows alone.

    The module is run twice. Empty where there is no such list, or the module has no values. What the module raises
    comes through.
    """
    found = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    alike = {name: names for name, part in found.items() if (names := _alike(part))}
    if not alike or any(p.is_meta for p in module.parameters()):
        return ()
    calls = {name: _Calls(name.rpartition(".")[0]) for name in alike}
    for _ in range(2):  # the first time, what is made once is made
        _watch(module, calls, args, kwargs)
    listed: list[Listed] = []
    for name, names in alike.items():
        call, experts = calls[name], len(found[name])
        if not call.rows or not (call.least_rows < call.rows or len(call.used) < experts):
            continue
        top_k = min(experts, max(1, round(call.taken_rows / call.rows)))
        sizes = dict(found[name][0].named_parameters())
        nbytes = sum(sizes[n].numel() * sizes[n].element_size() for n in names)
        layer = ExpertLayer(name, experts, top_k, names, nbytes, False)
        listed.append(Listed(Routed(layer, call.rows), call.owner, call.seconds, call.made_nbytes, call.result))
    return tuple(listed)


def _alike(part: nn.ModuleList) -> tuple[str, ...]:
    """Names of the parameters that every member of a list has, of one shape and type, each its own; else nothing."""
    members = list(part.children())
    if len(members) < 2 or len(members) != len(part):
        return ()
    forms = [{n: (p.shape, p.dtype) for n, p in m.named_parameters(remove_duplicate=False)} for m in members]
    own = {id(p) for m in members for p in m.parameters()}
    if any(form != forms[0] for form in forms) or len(own) != len(members) * len(forms[0]):
        return ()
    return tuple(forms[0])


@dataclass
class _Calls:
    """What a call of `owner` does with its list."""

    owner: str
    rows: int = 0
    taken_rows: int = 0
    least_rows: int = 0
    used: set[int] = field(default_factory=set[int])
    seconds: float = 0.0
    made_nbytes: int = 0
    result: Any = None
    open: bool = False


class _Made(TorchDispatchMode):
    """Counts bytes of tensors that operators make."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.nbytes += sum(t.nbytes for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor))
        return result


def _rows(values: Any) -> int:
    """Rows of the first tensor of floating point among some arguments."""
    for value in tree_flatten(values)[0]:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim():
            return value.numel() // max(value.shape[-1], 1)
    return 0


def _watch(module: nn.Module, calls: Mapping[str, _Calls], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    modules = dict(module.named_modules())
    made = _Made()
    handles: list[Any] = []
    for name, call in calls.items():
        handles += _watch_owner(modules[call.owner], call, made)
        for number, member in enumerate(modules[name].children()):
            handles.append(member.register_forward_pre_hook(_member_hook(call, number), with_kwargs=True))
    try:
        given, named = copy.deepcopy((args, dict(kwargs)))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), made:
            module(*given, **named)
    finally:
        for handle in handles:
            handle.remove()


def _watch_owner(owner: nn.Module, call: _Calls, made: _Made) -> list[Any]:
    began = [0.0, 0]

    def enter(_: nn.Module, given: Any, named: Any) -> None:
        began[:] = time.perf_counter(), made.nbytes
        call.rows, call.taken_rows, call.open = _rows((given, named)), 0, True
        call.least_rows = call.rows

    def leave(_: nn.Module, __: Any, result: Any) -> None:
        call.seconds, call.open = time.perf_counter() - began[0], False
        call.made_nbytes = int(made.nbytes - began[1])
        call.result = tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device="meta"), result)

    return [owner.register_forward_pre_hook(enter, with_kwargs=True), owner.register_forward_hook(leave)]


def _member_hook(call: _Calls, number: int) -> Any:
    def enter(_: nn.Module, given: Any, named: Any) -> None:
        rows = _rows((given, named))
        call.used.add(number)
        call.taken_rows += rows
        call.least_rows = min(call.least_rows, rows)

    return enter


@contextmanager
def without_choices(module: nn.Module, lists: tuple[Listed, ...]) -> Generator[None]:
    """While this lasts, owners of lists read their other weights, and give zeros."""
    modules = dict(module.named_modules())
    before: list[tuple[nn.Module, Any]] = []
    try:
        for listed in lists:
            owner = modules[listed.owner]
            experts = {id(p) for p in modules[listed.routed.layer.module].parameters()}
            others = [n for n, p in owner.named_parameters() if id(p) not in experts]
            before.append((owner, owner.__dict__.get("forward")))
            owner.__dict__["forward"] = _stand_in(owner, others, listed.result)
        yield
    finally:
        for owner, forward in before:
            if forward is None:
                owner.__dict__.pop("forward", None)
            else:
                owner.__dict__["forward"] = forward


def _stand_in(owner: nn.Module, names: list[str], result: Any) -> Any:
    def forward(*_: Any, **__: Any) -> Any:
        device = next(owner.parameters()).device
        read = torch.zeros((), device=device)
        for name in names:
            read = read + owner.get_parameter(name).sum().to(read.dtype)

        def like(seen: torch.Tensor) -> torch.Tensor:
            return torch.zeros(seen.shape, dtype=seen.dtype, device=device) + (read * 0).to(seen.dtype)

        return tree_map_only(torch.Tensor, like, result)

    return forward


def with_lists(found: ModuleLowered, lists: tuple[Listed, ...]) -> tuple[ModuleLowered, tuple[Routed, ...]]:
    """`found`, traced `without_choices`, with the time and the memory of the owners' calls; and the layers of experts.

    Of an expert's parameters those are cached that the program places of every expert; the others stay in the module.
    """
    placed = {p.names[0] for p in found.program.parameters if len(p.names) == 1 and p.strides is None}
    layers: list[Routed] = []
    stay: set[str] = set()
    for listed in lists:
        layer = listed.routed.layer
        every = {n: [f"{layer.module}.{e}.{n}" for e in range(layer.experts)] for n in layer.parameters}
        cached = tuple(n for n in layer.parameters if placed.issuperset(every[n]))
        stay.update(x for n in layer.parameters if n not in cached for x in every[n])
        if cached:
            tensors = {p.names[0]: found.graph.tensor[p.tensor].nbytes for p in found.program.parameters}
            nbytes = sum(tensors[every[n][0]] for n in cached)
            layers.append(replace(listed.routed, layer=replace(layer, parameters=cached, nbytes=nbytes)))
    return _with_calls(_left_in_module(found, stay), lists), tuple(layers)


def _left_in_module(found: ModuleLowered, names: set[str]) -> ModuleLowered:
    left = [p for p in found.program.parameters if p.names[0] in names]
    storages = {found.graph.tensor[p.tensor].storage for p in left}
    blobs = {s.blob for s in found.graph.storages if s.id in storages}
    graph = replace(
        found.graph,
        storages=tuple(s for s in found.graph.storages if s.id not in storages),
        tensors=tuple(t for t in found.graph.tensors if t.storage is None or t.storage not in storages),
    )
    kept = {s.blob for s in graph.storages}
    program = replace(
        found.program,
        parameters=tuple(p for p in found.program.parameters if p.names[0] not in names),
        blobs=tuple(b for b in found.program.blobs if b.blob not in blobs or b.blob in kept),
    )
    more = sum(s.nbytes for s in found.graph.storages if s.id in storages)
    return ModuleLowered(_with_workspace(graph, more), program)


def _with_calls(found: ModuleLowered, lists: tuple[Listed, ...]) -> ModuleLowered:
    graph = _with_workspace(found.graph, max((x.made_nbytes for x in lists), default=0))
    first = {module: op for op, module in reversed(found.program.calls.items())}
    more: dict[str, int] = {}
    for listed in lists:
        op = first.get(listed.owner)
        if op is not None:
            more[op] = more.get(op, 0) + round(listed.seconds * 1e9)
    operators = tuple(
        replace(o, measured_ns=(o.measured_ns or 0) + more[o.id]) if o.id in more else o for o in graph.operators
    )
    return replace(found, graph=replace(graph, operators=operators))


def _with_workspace(graph: Any, nbytes: int) -> Any:
    operators = tuple(replace(o, workspace_nbytes=o.workspace_nbytes + nbytes) for o in graph.operators)
    return replace(graph, operators=operators)
