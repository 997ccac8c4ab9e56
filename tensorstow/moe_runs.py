"""Plans that leave experts in the store: how one is made, profiled and run; `moe_predict` says how it is timed, and
`moe_bounds` what none of them is below."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ir.errors import InputError
from .ir.machine import Machine, TierKind
from .ir.program import ExpertCaching, ModuleProgram
from .moe_recording import running

if TYPE_CHECKING:
    from torch import nn

    from .executors import Executor
    from .models import Model
    from .modules import ModuleModel
    from .moe_predict import Expected, Passing
    from .planner.pytorch import ModuleLowered, OpLowered
    from .planner.pytorch.experts import Routed
    from .planner.pytorch.experts_list import Listed
    from .runtime.module.executor import ModuleExecutor
    from .runtime.module.experts_stats import Seen
    from .runtime.profile import Profile


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


def cache_experts(passing: Passing, lists: tuple[Listed, ...] = (), *, beside_nbytes: int = 0) -> ModuleLowered:
    """The pass with its experts left in the store, where the machine computes from dram, they do not fit its budget,
    and reading chosen ones moves fewer bytes than reading all. Raises InfeasibleError."""
    from .moe_predict import expected_best, recall_memory
    from .planner.pytorch.experts import choose_caching
    from .runtime.module.experts_recall import recall_nbytes

    found, layers = _layers(passing.found, passing.lowered, passing.module, passing.machine, lists)
    planned = choose_caching(found, layers, passing.machine, beside_nbytes=beside_nbytes)
    if planned is None:
        return found
    memory, remembering = recall_memory(planned), None
    if memory:
        more = recall_nbytes([r.layer.experts for r in layers], memory)
        smaller = choose_caching(found, layers, passing.machine, beside_nbytes=beside_nbytes + more)
        if smaller is not None and not smaller.shared:
            remembering = replace(smaller, memory=memory)
    tokens = max(routed.tokens for routed in layers)
    return _left(expected_best(planned, remembering, replace(passing, found=found), tokens), passing.machine)


def cache_like(passing: Passing, like: ExpertCaching) -> ModuleLowered:
    """Another pass of the module whose experts are cached as `like` says, with what that pass waits for."""
    from .moe_predict import expected
    from .planner.pytorch.experts import find_fused

    tokens = max((routed.tokens for routed in find_fused(passing.module, passing.lowered)), default=like.tokens)
    return _left(expected(like, passing, tokens), passing.machine)


def _left(expected: Expected, machine: Machine) -> ModuleLowered:
    """The pass with its experts in the store, and what they are waited for in the times of its operators."""
    from .planner.pytorch.experts import leave_experts
    from .planner.pytorch.experts_time import expert_operators, with_waits
    from .runtime.module.experts_recall import recall_nbytes

    caching = expected.caching
    operators = expert_operators(expected.found, caching.layers)
    counts = [layer.experts for layer in caching.layers]
    remembered_nbytes = recall_nbytes(counts, caching.memory) if caching.memory else 0
    left = leave_experts(expected.found, caching, remembered_nbytes=remembered_nbytes)
    return replace(left, graph=with_waits(left.graph, operators, caching.wait_ns, machine.units[0]))


def profile_passes(executor: Executor, passes: int) -> tuple[Profile, Seen | None]:
    """The executor's profile of so many passes, and what these read of their experts and waited for them; None where
    no experts are cached."""
    experts = running(executor)
    if experts is None:
        return executor.profile(passes), None
    from .runtime.module.experts_stats import seen_in

    noted = experts.note()
    profile = executor.profile(passes)
    return profile, seen_in(noted, len(experts.layers), passes)


def as_profiled(program: ModuleProgram, seen: Seen | None) -> ModuleProgram:
    """The program of a plan whose operators' times were measured in the passes of which `seen` is: waits for experts
    are in these times, and no more than it says."""
    if program.experts is None or seen is None:
        return program
    caching = replace(
        program.experts,
        wait_ns=seen.wait_ns,
        hit_rate=seen.hit_rate,
        read_nbytes=seen.read_nbytes,
        rests_on="in the passes of a profile, all with the same inputs",
    )
    return replace(program, experts=caching)


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
