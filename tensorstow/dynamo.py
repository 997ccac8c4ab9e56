"""`torch.compile(model, backend="tensorstow", options={"budget": "2GiB"})`: training steps inside a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .ir.errors import InputError
from .ir.files import PlanFile

if TYPE_CHECKING:
    from torch import fx

    from .ir.machine import Machine
    from .runtime.training.joint_graph import Joint, Sections

OPTIONS = ("budget", "machine", "strategy", "time_limit_s")


def backend(
    graph: fx.GraphModule, inputs: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend that PyTorch finds under the name 'tensorstow'.

    `options`: `budget` is what parameters, gradients, batch and activations may take ('2GiB', or bytes; by default the
    memory of the machine), `machine` a name or file as for `Machine.load` (by default this box), `strategy` and
    `time_limit_s` as for `plan`. Forward and backward are planned when they are compiled, and run by that plan; what is
    compiled without gradients runs as it is. Parameters, gradients and the optimizer are the caller's. The budget is
    one for all graphs of a call of `torch.compile` (see `dynamo_budget`).

    Raises InputError for other options, for a `mode`, and for a graph break: with several graphs no plan would know
    what the others hold. InfeasibleError where the budget is too small.
    """
    from .runtime.training.joint import compiled_graph

    chosen = dict(options or {})
    unknown = sorted(set(chosen) - set(OPTIONS))
    if mode is not None or unknown:
        what = f"mode '{mode}'" if mode is not None else f"option '{unknown[0]}'"
        raise InputError(f"backend 'tensorstow' knows no {what}; its options are {', '.join(OPTIONS)}")
    return compiled_graph(graph, inputs, lambda joint: _planned(joint, options))


def _planned(joint: Joint, options: Mapping[str, Any] | None) -> Sections:
    """Forward and backward of `joint` by a plan that is made now, in the budget of all graphs with these options."""
    from .dynamo_budget import PlannedGraph, budget_of

    file = plan_joint(joint, options or {})
    tier = file.machine.tier[file.machine.units[0].tier]
    return PlannedGraph(file, joint, budget_of(options, tier.usable_nbytes)).sections()


def plan_joint(joint: Joint, options: Mapping[str, Any]) -> PlanFile:
    """The plan for a joint graph, with the `options` of `backend`."""
    from .planner.build import plan_graph
    from .planner.training import KEPT, lower_joint, placed
    from .planner.training.in_place import results_in_place
    from .workflow import DEFAULT_STRATEGY

    machine = _machine(options)
    step = results_in_place(lower_joint(joint, name="compiled graph"), joint)
    lowered = placed(step, KEPT, key=joint.key)
    plan = plan_graph(
        lowered.graph,
        machine,
        strategy=options.get("strategy", DEFAULT_STRATEGY["training"]),
        mode="training",
        time_limit_s=float(options.get("time_limit_s", 20.0)),
    )
    return PlanFile(plan, lowered.graph, machine, None, None, 0, training=lowered.program)


def _machine(options: Mapping[str, Any]) -> Machine:
    from .hosts import get_machine, require_host
    from .ir.sizes import parse_size

    machine = get_machine(str(options.get("machine", "host")))
    require_host(machine)
    if "budget" not in options:
        return machine
    return machine.with_capacity({machine.units[0].tier: parse_size(str(options["budget"]))})
