"""Whether a plan, its graph, its program and a module belong together; looked at before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph, Tensor
from ...ir.machine import Machine, TierKind, Unit
from ...ir.plan import Plan
from ...ir.program import ModuleProgram, Parameter, row_major
from ..preflight import compute_unit
from ..reading import WeightReader
from .row_ranges import range_sources
from .weights import Lookups, Source


@dataclass(frozen=True)
class Place:
    """Parameter (or buffer) `attribute` of the module `owner`, which is called `prefix` in the whole."""

    owner: nn.Module
    prefix: str
    attribute: str
    parameter: bool

    @property
    def value(self) -> torch.Tensor:
        """What is there now."""
        held: Mapping[str, torch.Tensor | None]
        held = self.owner._parameters if self.parameter else self.owner._buffers  # pyright: ignore
        found = held[self.attribute]
        assert found is not None
        return found


@dataclass(frozen=True)
class Placed:
    """A weight that the plan places, and everywhere in the module where it stands. Where it is placed in `ranges` of
    its rows, `divided` is the module that is computed range by range."""

    source: Source
    places: tuple[Place, ...]
    ranges: tuple[Source, ...] = ()
    divided: str | None = None


def check_machine(plan: Plan, graph: Graph, machine: Machine) -> Unit:
    """The unit that runs the plan. Refuses tiers that this executor has no memory for, by their names."""
    unit = compute_unit(plan, graph, machine)
    kind = machine.tier[unit.tier].kind
    used = {r.tier for r in plan.residencies} | {tier for t in plan.transfers for tier in (t.origin, t.target)}
    extra = sorted(used - {unit.tier, plan.home_tier})
    if kind is TierKind.DRAM and extra:
        raise PlanMismatchError(
            f"the plan keeps weights in tier '{extra[0]}' beside '{unit.tier}' and '{plan.home_tier}'; this executor "
            "follows plans of two tiers: plan for a machine without it"
        )
    other = [t for t in extra if machine.tier[t].kind is not TierKind.DRAM]
    if other or len(extra) > 1:
        raise PlanMismatchError(
            f"the plan keeps weights in tiers {extra} between '{unit.tier}' and '{plan.home_tier}'; this executor has "
            "one there, the host's dram: plan for a machine with no more"
        )
    spilled = [t for t in plan.transfers if t.target == plan.home_tier]
    if spilled:
        raise PlanMismatchError(
            f"the plan writes '{spilled[0].storage}' to '{spilled[0].target}'; a module only reads its weights: plan "
            "again"
        )
    return unit


def bind(
    plan: Plan, graph: Graph, program: ModuleProgram, store: WeightReader, module: nn.Module, device: torch.device
) -> tuple[Placed, ...]:
    """Every parameter of `program`, found in `module` and in `graph`. Raises PlanMismatchError and InputError.

    What the plan computes on `device` may lie there, in the host's memory, or nowhere ('meta').
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("the module is compiled TorchScript, whose weights cannot be replaced; give the plain module")
    modules = dict(module.named_modules(remove_duplicate=False))
    steps = _steps(plan, graph, program)
    lookups = _lookups(plan, graph, program, store, modules)
    taken: dict[str, str] = {}
    held: dict[int, tuple[str, str]] = {}
    divided = {r.tensor: r for r in program.rows}
    placed: list[Placed] = []
    for parameter in program.parameters:
        places = tuple(_place(modules, name) for name in parameter.names)
        for name in parameter.names:
            if name in taken:
                raise PlanMismatchError(
                    f"'{name}' is placed twice, as '{taken[name]}' and as '{parameter.tensor}'; plan again"
                )
            taken[name] = parameter.tensor
        for name, place in zip(parameter.names, places, strict=True):
            other, tensor = held.setdefault(id(place.value), (name, parameter.tensor))
            if tensor != parameter.tensor:
                raise PlanMismatchError(
                    f"'{other}' and '{name}' are one tensor now, and were two when the plan was made; plan again"
                )
            _check_device(f"{place.prefix}.{place.attribute}".lstrip("."), place.value, device)
        source = _source(graph, parameter, places, steps, lookups, store)
        rows = divided.get(parameter.tensor)
        ranges = () if rows is None else range_sources(graph, rows, source, steps)
        placed.append(Placed(source, places, ranges, None if rows is None else rows.module))
    _check_rest(module, frozenset(taken), device)
    _check_read(steps, program)
    return tuple(placed)


def _steps(plan: Plan, graph: Graph, program: ModuleProgram) -> dict[str, tuple[int, ...]]:
    """Steps that read each tensor."""
    found: dict[str, list[int]] = {}
    for number, step in enumerate(plan.steps):
        if step.op in program.lookups:
            continue
        for tensor in graph.operator[step.op].inputs:
            if graph.tensor[tensor].storage is not None:
                found.setdefault(tensor, []).append(number)
    return {t: tuple(numbers) for t, numbers in found.items()}


def _check_read(steps: dict[str, tuple[int, ...]], program: ModuleProgram) -> None:
    known = {p.tensor for p in program.parameters} | {t for r in program.rows for t in r.ranges}
    for tensor, numbers in steps.items():
        if tensor not in known:
            raise PlanMismatchError(
                f"step {numbers[0]} reads '{tensor}', which is no parameter of the program; plan again"
            )


def _place(modules: Mapping[str, nn.Module], name: str) -> Place:
    prefix, _, attribute = name.rpartition(".")
    owner = modules.get(prefix)
    if owner is not None and owner._parameters.get(attribute) is not None:  # pyright: ignore[reportPrivateUsage]
        return Place(owner, prefix, attribute, True)
    if owner is not None and owner._buffers.get(attribute) is not None:  # pyright: ignore[reportPrivateUsage]
        return Place(owner, prefix, attribute, False)
    what = "no such module" if owner is None else f"a {type(owner).__name__} without it"
    raise PlanMismatchError(
        f"the plan places '{name}', and in the module there is {what} at '{prefix}'; it is another module: plan again"
    )


def dtype_name(dtype: torch.dtype) -> str:
    """The name that graphs use."""
    return str(dtype).removeprefix("torch.")


def _source(
    graph: Graph,
    parameter: Parameter,
    places: tuple[Place, ...],
    steps: Mapping[str, tuple[int, ...]],
    lookups: Mapping[str, Lookups],
    store: WeightReader,
) -> Source:
    name = parameter.names[0]
    tensor = graph.tensor.get(parameter.tensor)
    storage = None if tensor is None else graph.storage.get(tensor.storage or "")
    if tensor is None or storage is None or not storage.homed or tensor.shape is None:
        raise PlanMismatchError(
            f"'{name}' should be tensor '{parameter.tensor}', which is no weight of the graph; plan again"
        )
    _check_bytes(name, tensor, storage.nbytes)
    entry = store.entries.get(storage.blob or "")
    if entry is None or storage.blob_offset + tensor.offset + tensor.nbytes > entry.nbytes:
        raise PlanMismatchError(
            f"'{name}' should be {tensor.nbytes} bytes from {storage.blob_offset + tensor.offset} on of blob "
            f"'{storage.blob}', of which the store has {entry.nbytes if entry else 0}; plan again"
        )
    for place in places:
        _check_place(place, tensor)
    dtype = places[0].value.dtype
    strides = parameter.strides or row_major(tensor.shape)
    several = [lookups[n] for n in parameter.names if n in lookups]
    found: Lookups | None = None
    if several:
        at = tuple(sorted({step for one in several for step in one.steps}))
        rows = several[0].rows
        start = storage.blob_offset + tensor.offset if rows.blob == storage.blob else 0  # else the blob is the table
        found = Lookups(several[0].op, rows, start, at)
        if found.rows.rows * found.rows.row_nbytes != tensor.nbytes or found.rows.rows != tensor.shape[0]:
            raise PlanMismatchError(
                f"operator '{found.op}' looks up {found.rows.rows} rows of {found.rows.row_nbytes} bytes, '{name}' "
                f"has the shape {list(tensor.shape)} and {tensor.nbytes} bytes; plan again"
            )
    grad = places[0].value.requires_grad
    return Source(name, tensor, storage, dtype, strides, steps.get(tensor.id, ()), found, requires_grad=grad)


def _check_bytes(name: str, tensor: Tensor, held: int) -> None:
    if tensor.offset < 0 or tensor.offset + tensor.nbytes > held:
        raise PlanMismatchError(
            f"'{name}' takes bytes [{tensor.offset}, {tensor.offset + tensor.nbytes}) of '{tensor.storage}', which "
            f"has {held}; plan again"
        )


def _check_place(place: Place, tensor: Tensor) -> None:
    value = place.value
    name = f"{place.prefix}.{place.attribute}".lstrip(".")
    for what, planned, found in (
        ("dtype", tensor.dtype, dtype_name(value.dtype)),
        ("shape", list(tensor.shape or ()), list(value.shape)),
        ("number of bytes", tensor.nbytes, value.numel() * value.element_size()),
    ):
        if planned != found:
            raise PlanMismatchError(f"'{name}' was planned with {what} {planned}, the module has {found}; plan again")


def _check_device(name: str, value: torch.Tensor, device: torch.device) -> None:
    if value.device.type not in ("cpu", "meta") and value.device != device:
        raise InputError(
            f"'{name}' lies on '{value.device}', where no plan for {_called(device)} finds it: move it to 'cpu'"
        )


def _called(device: torch.device) -> str:
    return "the CPU" if device.type == "cpu" else f"'{device}'"


def _lookups(
    plan: Plan, graph: Graph, program: ModuleProgram, store: WeightReader, modules: Mapping[str, nn.Module]
) -> dict[str, Lookups]:
    """Tables that are looked up in the store, by the qualified name of one of their weights."""
    steps: dict[str, list[int]] = {}
    for number, step in enumerate(plan.steps):
        steps.setdefault(step.op, []).append(number)
    found: dict[str, Lookups] = {}
    for op, rows in program.lookups.items():
        name = program.calls.get(op, "")
        table = modules.get(name)
        if op not in graph.operator or not isinstance(table, nn.Embedding):
            kind = "no module" if table is None else f"a {type(table).__name__}"
            raise PlanMismatchError(f"operator '{op}' looks up rows of '{name}', which is {kind} here; plan again")
        entry = store.entries.get(rows.blob)
        if entry is None or entry.nbytes < rows.rows * rows.row_nbytes:
            raise PlanMismatchError(
                f"operator '{op}' looks up rows in {rows.rows * rows.row_nbytes} bytes of blob '{rows.blob}', the "
                f"store has {entry.nbytes if entry else 0} of it; plan again"
            )
        weight = f"{name}.weight".lstrip(".")
        before = found[weight].steps if weight in found else ()
        found[weight] = Lookups(op, rows, 0, tuple(sorted({*before, *steps.get(op, ())})))
    for name in program.calls.values():
        if name not in modules:
            raise PlanMismatchError(f"the plan calls '{name}', which the module does not have; plan again")
    return found


def _check_rest(module: nn.Module, placed: frozenset[str], device: torch.device) -> None:
    """What is not placed has values, where `move_rest` finds them."""
    for name, value in _rest(module, placed):
        if value.is_meta:
            raise InputError(f"'{name}' is not placed by the plan and lies on 'meta': it has no values; load them")
        if value.device.type != "cpu" and value.device != device:
            where = "" if device.type == "cpu" else f" or '{device}'"
            raise InputError(
                f"'{name}' is not placed by the plan and lies on '{value.device}': move the module to 'cpu'{where}"
            )


def _rest(module: nn.Module, placed: frozenset[str]) -> list[tuple[str, torch.Tensor]]:
    values = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [(name, value) for name, value in values if name not in placed]


def move_rest(module: nn.Module, placed: Iterable[Placed], device: torch.device, undo: ExitStack) -> None:
    """Bring what is not placed to `device`, each object once and where it stands, so that ties stay. Closing `undo`
    puts it back where it was."""
    names = frozenset(f"{p.prefix}.{p.attribute}".lstrip(".") for one in placed for p in one.places)
    with torch.no_grad():
        for _, value in _rest(module, names):
            if value.device != device:
                undo.callback(setattr, value, "data", value.data)
                value.data = value.data.to(device)
