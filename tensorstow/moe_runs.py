"""Plans that leave experts in the store: how one is made, timed, bounded and run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.machine import Machine, TierKind
from .ir.plan import Plan
from .ir.program import ExpertCaching, ModuleProgram

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from .models import Model
    from .modules import ModuleModel
    from .planner.experts.record import Recorder
    from .planner.experts.trace import Trace
    from .planner.pytorch import ModuleLowered, OpLowered
    from .planner.pytorch.experts import Routed
    from .planner.pytorch.experts_list import Listed
    from .runtime.module.executor import ModuleExecutor
    from .runtime.module.experts import ExpertForwards


def lower_experts(model: ModuleModel) -> tuple[OpLowered, tuple[Listed, ...]]:
    """The operators of a pass; and where it cannot be traced because a list of experts is called by choice, of all but
    these, with the lists. Raises InputError."""
    from .planner.pytorch import lower_module
    from .planner.pytorch.experts_list import find_lists, without_choices

    try:
        return lower_module(model.module, model.args, model.kwargs, name=model.name), ()
    except InputError:
        lists = find_lists(model.module, model.args, model.kwargs)
        if not lists:
            raise
    with without_choices(model.module, lists):
        return lower_module(model.module, model.args, model.kwargs, name=model.name), lists


def with_routing(model: Model, path: Path) -> Model:
    """The same model, with hit rates of caches of experts predicted by the routing in the file `path`."""
    from .generation import GeneratingModel
    from .modules import ModuleModel

    if isinstance(model, GeneratingModel):
        prefill, first, last = (replace(m, routing=path) for m in (model.prefill, model.first, model.last))
        return replace(model, prefill=prefill, first=first, last=last)
    if not isinstance(model, ModuleModel):
        raise InputError(f"--routing is of a mixture-of-experts model in PyTorch, '{model.name}' is none: leave it out")
    return replace(model, routing=path)


def cache_experts(
    found: ModuleLowered,
    lowered: OpLowered,
    module: nn.Module,
    machine: Machine,
    lists: tuple[Listed, ...] = (),
    *,
    routing: Path | None = None,
    beside_nbytes: int = 0,
) -> ModuleLowered:
    """`found` with its experts left in the store, where the machine computes from dram, they do not fit its budget, and
    reading chosen ones moves fewer bytes than reading all. `routing` is a trace by which to predict hits. Raises
    InfeasibleError."""
    from .planner.pytorch.experts import choose_caching

    found, layers = _layers(found, lowered, module, machine, lists)
    caching = choose_caching(found, layers, machine, beside_nbytes=beside_nbytes)
    if caching is None:
        return found
    tokens = max(routed.tokens for routed in layers)
    choices = [caching] if routing is None else [caching, replace(caching, ahead=0)]
    expected = [_predicted(choice, found, tokens, machine, routing) for choice in choices]
    return _left(found, min(expected, key=lambda choice: choice.wait_s), machine)


def cache_like(
    found: ModuleLowered,
    lowered: OpLowered,
    module: nn.Module,
    machine: Machine,
    like: ExpertCaching,
    *,
    routing: Path | None = None,
) -> ModuleLowered:
    """`found`, another pass of the module whose experts are cached as `like` says, with what that pass waits for."""
    from .planner.pytorch.experts import find_fused

    tokens = max((routed.tokens for routed in find_fused(module, lowered)), default=like.tokens)
    if tokens != like.tokens:
        like = _predicted(like, found, tokens, machine, routing)
    return _left(found, like, machine)


def _left(found: ModuleLowered, caching: ExpertCaching, machine: Machine) -> ModuleLowered:
    """`found` with its experts in the store, and what they are waited for in the times of its operators."""
    from .planner.pytorch.experts import leave_experts
    from .planner.pytorch.experts_time import expert_operators, with_waits

    operators = expert_operators(found, caching.layers)
    left = leave_experts(found, caching)
    return replace(left, graph=with_waits(left.graph, operators, caching.wait_ns, machine.units[0]))


def _predicted(
    caching: ExpertCaching, found: ModuleLowered, tokens: int, machine: Machine, routing: Path | None
) -> ExpertCaching:
    """`caching` with what is to be expected of a pass of `tokens`. Raises InputError for a trace of another model."""
    from .moe_forecast import drawn_passes, forecast, traced_passes
    from .planner.lookups import store_link
    from .planner.pytorch.experts_time import pace_of

    trace = None if routing is None else _trace_of(caching, routing)
    passes = drawn_passes(caching, tokens) if trace is None else traced_passes(trace, tokens)
    pace, link = pace_of(found, caching.layers, machine.units[0]), store_link(machine)
    expected = forecast(caching, pace, link, passes)
    caching = replace(
        caching,
        hit_rate=expected.hit_rate,
        tokens=tokens,
        wait_ns=tuple(round(ns) for ns in expected.wait_ns),
        read_nbytes=expected.read_nbytes,
    )
    if routing is None:
        return caching
    after = f" after {expected.warm}" if expected.warm else ""
    return replace(
        caching,
        least_nbytes=expected.least_nbytes,
        traced=True,
        rests_on=f"in the last {expected.passes} passes{after} of {routing.name}",
    )


def _trace_of(caching: ExpertCaching, path: Path) -> Trace:
    """The trace in the file `path`. Raises InputError for one of another model."""
    from .planner.experts.trace import read_trace

    counts = {layer.experts for layer in caching.layers}
    trace = read_trace(path, max(counts))
    if trace.layers != len(caching.layers) or len(counts) > 1:
        raise InputError(
            f"{path} has {trace.layers} layers, the model {len(caching.layers)} with {sorted(counts)} experts; give a "
            "trace that was recorded of this model"
        )
    return trace


def bounded(plan: Plan, caching: ExpertCaching, machine: Machine) -> Plan:
    """`plan` with a bound that holds however experts are cached and read ahead (`reads_hidden`)."""
    from .planner.build import OPTIMAL_GAP

    before = plan.certificate
    bound_s, kind = reads_hidden(before.bound_s, before.bound_kind, caching, machine)
    bound_s = min(bound_s, before.simulated_s)
    status = "optimal" if before.simulated_s <= bound_s * (1 + OPTIMAL_GAP) else "feasible"
    return replace(plan, certificate=replace(before, bound_s=bound_s, bound_kind=kind, status=status))


def reads_hidden(bound_s: float, kind: str, caching: ExpertCaching, machine: Machine) -> tuple[float, str]:
    """A bound, and its kind, for plans of any cache of experts: for what tokens choose in the trace, else for whatever
    they choose. `bound_s` is one for steps whose durations hold `caching.wait_ns`.

    Less the waits, it is one for the steps without them: a plan of these would take at most the waits longer with them.
    Beside it stands the time of the link for the bytes that Belady's caches of as many slots read.
    """
    from .planner.lookups import store_link

    link_s = caching.least_nbytes / store_link(machine).bytes_per_s
    hidden_s = max(0.0, bound_s - caching.wait_s)
    if link_s > hidden_s:
        return link_s, f"experts' reads: what caches of {caching.slots} slots that know the trace read, over the link"
    return hidden_s, f"{kind}; experts' reads behind it, or none"


def as_profiled(program: ModuleProgram) -> ModuleProgram:
    """The program of a plan whose operators' times were measured in passes: waits for experts are among them."""
    if program.experts is None:
        return program
    rests_on = f"{program.experts.rests_on}; times as in a profile, whose passes have the same inputs"
    return replace(program, experts=replace(program.experts, wait_ns=(), rests_on=rests_on))


def cache_least(
    found: ModuleLowered, lowered: OpLowered, module: nn.Module, machine: Machine, lists: tuple[Listed, ...] = ()
) -> ModuleLowered:
    """`found` with its experts left in the store and in memory one at a time."""
    from .planner.pytorch.experts import leave_experts, smallest_caching

    found, layers = _layers(found, lowered, module, machine, lists)
    caching = smallest_caching(layers)
    return found if caching is None else leave_experts(found, caching)


def _layers(
    found: ModuleLowered, lowered: OpLowered, module: nn.Module, machine: Machine, lists: tuple[Listed, ...]
) -> tuple[ModuleLowered, tuple[Routed, ...]]:
    from .planner.pytorch.experts import find_fused, placed_layers
    from .planner.pytorch.experts_list import with_lists

    host = machine.tier[machine.units[0].tier].kind is TierKind.DRAM
    if lists and not host:
        raise InputError(
            f"the experts of '{lists[0].routed.layer.module}' are called by choice and computed from dram, machine "
            f"'{machine.name}' does not compute there: plan for --machine host"
        )
    if lists:
        return with_lists(found, lists)
    if not host or found.program.sparse is not None:
        return found, ()
    return found, placed_layers(found, find_fused(module, lowered))


def install_experts(executor: ModuleExecutor, program: ModuleProgram) -> None:
    """Have the executor's module read its experts as they are chosen; they end with the executor."""
    from .runtime.module.experts import ExpertForwards

    if program.experts is not None:
        executor.experts = ExpertForwards(executor.module, program.experts, tier=executor.tier)
        executor.attach(executor.experts)


def compute_eagerly(module: Any) -> None:
    """Have transformers compute experts one by one, as a plan that caches them does: other ways add up in other orders
    and give other bits."""
    for part in module.modules():
        switch = getattr(part, "set_experts_implementation", None)
        if switch is not None:
            switch("eager")


def caching_of(file: PlanFile) -> ExpertCaching | None:
    return None if file.module is None else file.module.experts


def running(executor: object) -> ExpertForwards | None:
    """The experts of an executor, or of what holds one."""
    return getattr(getattr(executor, "executor", executor), "experts", None)


def record_routing(experts: ExpertForwards) -> Recorder:
    """From now on record what routers choose; `recorder.trace()` is it. A prompt begins where the first layer is asked
    by more tokens than in the call before. Raises InputError where routing is not seen."""
    from .planner.experts.record import Recorder

    layers = experts.reading.layers
    # of lists no router says how many experts a token may ask for
    width = max(x.top_k if x.fused else x.experts for x in layers)
    recorder = Recorder(len(layers), max(x.experts for x in layers), width)
    before = 0

    def add(layer: int, ids: NDArray[np.int64], gates: NDArray[np.float32] | None) -> None:
        nonlocal before
        if layer == 0:
            if len(ids) > before:
                recorder.begin()
            before = len(ids)
        recorder.add(layer, ids, gates)

    experts.record(add)
    return recorder


def narrowed(trace: Trace) -> Trace:
    """The same, as wide as its largest set: sets are filled up with -1 at their ends."""
    width = max(1, int((trace.ids >= 0).sum(axis=2).max()))
    gates = None if trace.gates is None else trace.gates[:, :, :width]
    return replace(trace, ids=trace.ids[:, :, :width], gates=gates)


class RoutingFile:
    """Routing of a run, to be written to `path`. Raises InputError for a plan that caches no experts."""

    def __init__(self, file: PlanFile, path: Path) -> None:
        if caching_of(file) is None:
            raise InputError(
                "--record-routing records what experts tokens choose; the plan caches none: plan a "
                "mixture-of-experts model for less memory than its experts take"
            )
        self._path = path
        self._experts: ExpertForwards | None = None
        self._recorder: Recorder | None = None

    def begin(self, executor: object) -> None:
        """Record from now on what `executor` runs."""
        self._experts = running(executor)
        assert self._experts is not None
        self._recorder = record_routing(self._experts)

    def write(self) -> None:
        """Write what was recorded, and record no more."""
        from .planner.experts.trace import write_trace

        assert self._recorder is not None
        assert self._experts is not None
        self._experts.record(None)
        write_trace(narrowed(self._recorder.trace()), self._path)
