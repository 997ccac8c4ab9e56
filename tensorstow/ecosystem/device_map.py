"""accelerate's `device_map`, out of a plan and into one.

A map says for each module on which device its weights rest: a number is an accelerator, 'cpu' and 'disk' are below
it. It is the shadow of a plan: which weights stay. When the others come, where they lie, and what else is in memory
then, a map cannot say; that is accelerate's to decide while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..hosts import Progress, silent
from ..ir.errors import InputError
from ..ir.files import PlanFile
from ..ir.graph import Graph
from ..ir.machine import Machine, TierKind
from ..ir.plan import Plan
from ..ir.program import ModuleProgram
from ..planner.fit import fit
from ..planner.instance import Instance
from ..planner.realise import realise
from ..planner.stays import Decisions
from ..planner.strategies import Effort

if TYPE_CHECKING:
    from torch import nn

Device = int | str
NAMES: dict[TierKind, Device] = {TierKind.HBM: 0, TierKind.DRAM: "cpu", TierKind.SSD: "disk"}


def device_map(plan: PlanFile, model: nn.Module | None = None) -> dict[str, Device]:
    """The map of a plan for inference of a PyTorch module: a module whose weights all stay in the fast tier rests
    there, any other in the tier below. Modules that agree are named by what they are part of.

    `model` is the module that was planned; a plan made from 'hf:DIR' or a callable makes it again. Raises InputError
    for a plan of anything else.
    """
    program = _program(plan)
    if model is None:
        from ..module_runs import remake

        model = remake(plan).module
    fast = plan.machine.tier[plan.machine.units[0].tier]
    below = plan.machine.tier[plan.plan.home_tier]
    for tier in (fast, below):
        if tier.kind not in NAMES:
            raise InputError(f"tier '{tier.name}' is of kind '{tier.kind.value}', for which a device_map has no name")
    moved_storages = {t.storage for t in plan.plan.transfers}
    placed = {p: plan.graph.tensor[p.tensor].storage for p in program.parameters}
    streamed = {n for p, storage in placed.items() if storage in moved_storages for n in p.names}
    streamed |= {f"{m}.weight" for op, m in program.calls.items() if op in program.lookups}
    tensors = list(model.state_dict(keep_vars=True))
    if unknown := sorted(streamed - set(tensors)):
        raise InputError(f"the plan places '{unknown[0]}', and the module has no such weight; give the one planned")
    moved = {_owner(name) for name in streamed}
    return _joined({_owner(n): NAMES[below.kind if _owner(n) in moved else fast.kind] for n in tensors})


def _program(plan: PlanFile) -> ModuleProgram:
    if plan.module is None:
        what = "a training step" if plan.training is not None else "an ONNX file"
        raise InputError(f"a device_map is for inference of a PyTorch module; the plan is for {what}")
    return plan.module


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _joined(devices: Mapping[str, Device]) -> dict[str, Device]:
    """Modules by their outermost parents all of whose modules agree."""
    found: dict[str, Device] = {}

    def add(prefix: str, names: list[str]) -> None:
        if len({devices[n] for n in names}) == 1:
            found[prefix] = devices[names[0]]
            return
        children: dict[str, list[str]] = {}
        for name in names:
            rest = name[len(prefix) + 1 :] if prefix else name
            if name == prefix:  # weights of its own beside those of its children: it is named, and so are they
                found[prefix] = devices[name]
            else:
                child = rest.partition(".")[0]
                children.setdefault(f"{prefix}.{child}" if prefix else child, []).append(name)
        for child, below in children.items():
            add(child, below)

    if devices:
        add("", list(devices))
    return found


@dataclass(frozen=True, slots=True)
class Mapped:
    """Weights whose storages are in `streamed` come for each use, as early as addresses allow; all others stay."""

    name: ClassVar[str] = "device-map"
    streamed: frozenset[str] = frozenset()

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the map. Raises InfeasibleError where what stays does not fit beside the rest."""
        evicted = frozenset(
            (g.item, g.before) for g in instance.gaps if g.clean and instance.items[g.item].storage in self.streamed
        )
        decided = Decisions(evicted, {}, prefetch=True)
        placed = fit(
            instance, lambda _: decided, packing_time_s=effort.time_limit_s / 4, seed=effort.seed, strategy=self.name
        )
        return realise(instance, placed, self.name)


def from_device_map(
    model: nn.Module | str,
    example_inputs: object = None,
    *,
    devices: Mapping[str, Any],
    machine: Machine,
    time_limit_s: float = 20.0,
    progress: Progress = silent,
) -> PlanFile:
    """A plan that keeps what `devices` keeps on the device that computes, and streams the rest: certified, and run by
    `ts.apply`, so that a map can be timed, bounded and compared before it is used.

    On a machine that computes from DRAM 'cpu' stays and 'disk' is streamed; on one with a device, what is on the device
    stays. Small weights that plans do not place stay in any case. Raises InputError for a weight that the map does not
    cover, InfeasibleError where what stays does not fit.
    """
    from ..models import NO_DIMS, find_model
    from ..planner.bounds import find_bound
    from ..planner.build import instance_for, run_strategy
    from ..workflow import Request, prepare

    request = Request(find_model(model, NO_DIMS, example_inputs), machine, time_limit_s=time_limit_s)
    lowered, machine = prepare(request, progress)
    if lowered.module is None:
        raise InputError("a device_map is for a PyTorch module; an ONNX file has no modules")
    strategy = Mapped(_streamed(lowered.graph, lowered.module, devices, machine))
    instance = instance_for((strategy,), lowered.graph, machine, mode="inference")
    bound = find_bound(instance, time_limit_s=time_limit_s)
    plan = run_strategy(strategy, instance, bound, Effort(time_limit_s))
    return PlanFile(plan, lowered.graph, machine, None, request.model.source(), 0, lowered.module)


def _streamed(graph: Graph, program: ModuleProgram, devices: Mapping[str, Any], machine: Machine) -> frozenset[str]:
    computes_from = machine.tier[machine.units[0].tier].kind
    stays = ("cpu",) if computes_from is TierKind.DRAM else ()
    found: set[str] = set()
    for parameter in program.parameters:
        on = {_device(devices, name) for name in parameter.names}
        kept = all(d in stays or (computes_from is TierKind.HBM and d not in ("cpu", "disk", "meta")) for d in on)
        storage = graph.tensor[parameter.tensor].storage
        if not kept and storage is not None:
            found.add(storage)
    return frozenset(found)


def _device(devices: Mapping[str, Any], name: str) -> str:
    """The device of a weight: that of the longest of its parents' names in the map, or of its own."""
    for prefix in _parents(name):
        if prefix in devices:
            return str(devices[prefix])
    raise InputError(f"the device_map has no device for weight '{name}'; add it, or one of what it is part of")


def _parents(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), -1, -1))
