"""Plans that leave experts in the store: how one is made, run, compared, and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.machine import Machine, TierKind
from .ir.program import ExpertCaching, ModuleProgram
from .ir.sizes import format_seconds, format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from .models import Model
    from .modules import ModuleModel
    from .planner.experts.record import Recorder
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
        return replace(model, last=replace(model.last, routing=path))
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
    from .planner.pytorch.experts import choose_caching, leave_experts

    found, layers = _layers(found, lowered, module, machine, lists)
    caching = choose_caching(found, layers, machine, beside_nbytes=beside_nbytes)
    if caching is None:
        return found
    return leave_experts(found, caching if routing is None else _replayed(caching, routing))


def _replayed(caching: ExpertCaching, path: Path) -> ExpertCaching:
    """With the hit rate that its policy has on a trace, from empty caches on. Raises InputError for one of another
    model, or where all layers share their slots, which traces are not replayed with."""
    from .planner.experts.trace import read_trace
    from .solvers.caching.counted import LRU, Counted, replay_counted

    counts = {layer.experts for layer in caching.layers}
    trace = read_trace(path, max(counts))
    if trace.layers != len(caching.layers) or len(counts) > 1:
        raise InputError(
            f"{path} has {trace.layers} layers, the model {len(caching.layers)} with {sorted(counts)} experts; give a "
            "trace that was recorded of this model"
        )
    if caching.shared or caching.slots < trace.top_k:
        raise InputError(
            f"{path}: a token asks for up to {trace.top_k} experts in a layer, and {caching.slots} slots are kept "
            f"{'for all layers' if caching.shared else 'in each'}, for which no trace is replayed; give more memory, "
            "or leave --routing out"
        )
    policy = LRU if caching.decay is None else Counted(decay=caching.decay)
    rate = replay_counted(trace.requests(), caching.slots, policy).hit_rate(slice(None))
    return replace(caching, hit_rate=rate, rests_on=f"on the {trace.tokens} tokens of {path.name}")


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


def _caching(file: PlanFile) -> ExpertCaching | None:
    return None if file.module is None else file.module.experts


def _running(executor: object) -> ExpertForwards | None:
    """The experts of an executor, or of what holds one."""
    return getattr(getattr(executor, "executor", executor), "experts", None)


def experts_text(file: PlanFile) -> str | None:
    """One line about the experts of a plan; None where it caches none."""
    caching = _caching(file)
    if caching is None:
        return None
    layers = len(caching.layers)
    count = sum(layer.experts for layer in caching.layers)
    where = f"{caching.slots} in all" if caching.shared else f"{caching.slots} a layer"
    policy = "least recent goes" if caching.decay is None else f"least used goes (decay {caching.decay:g} an event)"
    return (
        f"{count} in {layers} layers, {format_size(caching.nbytes)}, stay in the store; slots for {where}, {policy}; "
        f"hit rate {caching.hit_rate:.2f} {caching.rests_on}; computed one by one ('eager')"
    )


def reads_text(file: PlanFile) -> str | None:
    """What a token reads of experts, as predicted, and how long the link takes for it; None where none are cached."""
    caching = _caching(file)
    if caching is None:
        return None
    nbytes, reads_s = expected_read_nbytes(caching), _expected_read_s(file, caching)
    both_s = file.plan.certificate.simulated_s + reads_s
    return (
        f"{format_size(round(nbytes))} a token expected, {format_seconds(reads_s)} at the link's rate; the times below "
        f"are without them: a pass of one token takes {format_seconds(both_s)} with them, if nothing overlaps"
    )


def _expected_read_s(file: PlanFile, caching: ExpertCaching) -> float:
    """Seconds that the link from the store takes for what a token is expected to read."""
    tier, home = file.machine.units[0].tier, file.plan.home_tier
    link = next(k for k in file.machine.links if (k.origin, k.target) == (home, tier))
    return expected_read_nbytes(caching) / link.bytes_per_s


def experts_facts(file: PlanFile) -> dict[str, Any] | None:
    """As `plan --json` has it; None where the plan caches none."""
    caching = _caching(file)
    if caching is None:
        return None
    return {
        "layers": len(caching.layers),
        "experts": [layer.experts for layer in caching.layers],
        "top_k": max(layer.top_k for layer in caching.layers),
        "expert_nbytes": max(layer.nbytes for layer in caching.layers),
        "nbytes": caching.nbytes,
        "slots": caching.slots,
        "shared": caching.shared,
        "policy": caching.policy,
        "ahead": caching.ahead,
        "hit_rate": caching.hit_rate,
        "rests_on": caching.rests_on,
        "read_nbytes_expected": expected_read_nbytes(caching),
        "read_s_expected": _expected_read_s(file, caching),
    }


def run_facts(file: PlanFile, executor: object) -> dict[str, Any] | None:
    """What an executor's experts have done so far, as `run --json` has it; None where none are cached."""
    caching, experts = _caching(file), _running(executor)
    if caching is None or experts is None:
        return None
    stats = experts.stats
    return {
        "hits": stats.hits,
        "misses": stats.misses,
        "hit_rate": stats.hit_rate,
        "predicted_hit_rate": caching.hit_rate,
        "ahead": stats.ahead,
        "ahead_used": stats.ahead_used,
        "read_nbytes": stats.read_nbytes,
        "stalled_s": stats.stalled_ns * 1e-9,
    }


def record_routing(experts: ExpertForwards) -> Recorder:
    """From now on record what routers choose; `recorder.trace()` is it. A prompt begins where the first layer is asked
    by more tokens than in the call before. Raises InputError where routing is not seen."""
    from .planner.experts.record import Recorder

    layers = experts.reading.layers
    recorder = Recorder(len(layers), max(x.experts for x in layers), max(x.top_k for x in layers))
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


class RoutingFile:
    """Routing of a run, to be written to `path`. Raises InputError for a plan that caches no experts."""

    def __init__(self, file: PlanFile, path: Path) -> None:
        if _caching(file) is None:
            raise InputError(
                "--record-routing records what experts tokens choose; the plan caches none: plan a "
                "mixture-of-experts model for less memory than its experts take"
            )
        self._path = path
        self._experts: ExpertForwards | None = None
        self._recorder: Recorder | None = None

    def begin(self, executor: object) -> None:
        """Record from now on what `executor` runs."""
        self._experts = _running(executor)
        assert self._experts is not None
        self._recorder = record_routing(self._experts)

    def write(self) -> None:
        """Write what was recorded, and record no more."""
        from .planner.experts.trace import write_trace

        assert self._recorder is not None
        assert self._experts is not None
        self._experts.record(None)
        write_trace(self._recorder.trace(), self._path)


def expected_read_nbytes(caching: ExpertCaching) -> float:
    """Bytes of experts that a token reads at the predicted hit rate."""
    return (1 - caching.hit_rate) * sum(layer.top_k * layer.nbytes for layer in caching.layers)
