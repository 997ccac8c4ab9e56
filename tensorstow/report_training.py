"""What becomes of the activations, parameters and states of a planned training step, in numbers and as lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .ir.files import PlanFile
from .ir.graph import StorageKind
from .ir.program import OptimizerProgram, TrainingProgram
from .ir.sizes import format_seconds, format_size
from .ir.uses import storage_uses


@dataclass(frozen=True, slots=True)
class Share:
    """Some storages: how many, and their bytes."""

    count: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.count} ({format_size(self.nbytes)})"


@dataclass(frozen=True, slots=True)
class Fates:
    """What the forward makes and the backward reads: `kept` in memory, `offloaded` in between, or `recomputed`.

    What is given up in part, or both moved and made again, counts where it is first named: recomputed, offloaded.
    `calls` are the operators that run again, `again_ns` their time.
    """

    kept: Share
    offloaded: Share
    recomputed: Share
    calls: int
    again_ns: int


def fates(file: PlanFile, program: TrainingProgram) -> Fates:
    """What the plan does with the activations that wait for the backward."""
    plan, graph = file.plan, file.graph
    order = [s.op for s in plan.steps]
    turn = order.index(program.turn)
    uses = storage_uses(graph, order)
    moved = {t.storage for t in plan.transfers}
    found: dict[str, list[int]] = {"kept": [], "offloaded": [], "recomputed": []}
    for s in graph.storages:
        touches = uses[s.id].touches if s.id in uses else ()
        waits = s.nbytes > 0 and not s.homed and touches and touches[0] < turn < touches[-1]
        if waits:
            again = any(w > turn for w in uses[s.id].writes)
            found["recomputed" if again else "offloaded" if s.id in moved else "kept"].append(s.nbytes)
    seen: set[str] = set()
    again = [s for s in plan.steps if s.op in seen or seen.add(s.op)]
    shares = {name: Share(len(sizes), sum(sizes)) for name, sizes in found.items()}
    return Fates(**shares, calls=len(again), again_ns=sum(s.duration_ns for s in again))


def training_facts(file: PlanFile, program: TrainingProgram) -> dict[str, Any]:
    """The object `training` of `plan --json`."""
    found = fates(file, program)
    return {
        "activations": {
            name: {"count": share.count, "nbytes": share.nbytes}
            for name, share in (("kept", found.kept), ("offloaded", found.offloaded), ("recomputed", found.recomputed))
        },
        "recomputed_calls": found.calls,
        "recomputed_s": found.again_ns / 1e9,
        "kept_nbytes": program.kept_nbytes,
        "placed_parameters": len(program.parameters),
        "optimizer": None if program.optimizer is None else program.optimizer.kind,
        "hooked": None if program.hooked is None else program.hooked.why,
    }


def training_rows(file: PlanFile, program: TrainingProgram) -> list[tuple[str, str]]:
    """Lines for people."""
    found, graph = fates(file, program), file.graph
    if program.hooked is not None:
        return [
            ("not traced", program.hooked.why),
            ("saved tensors", f"for the backward {found.kept} kept, {found.offloaded} offloaded, by hooks"),
            ("kept in memory", f"{format_size(program.kept_nbytes)}: parameters, batch, gradients, what kernels take"),
        ]
    rows = [
        (
            "activations",
            f"for the backward {found.kept} kept, {found.offloaded} offloaded, {found.recomputed} recomputed",
        ),
        ("kept in memory", f"{format_size(program.kept_nbytes)}: {_kept(program)}"),
    ]
    if program.parameters:
        placed = [s.nbytes for s in graph.storages if s.kind is StorageKind.WEIGHT and s.nbytes]
        rows.append(("parameters", f"{Share(len(placed), sum(placed))} in {file.plan.home_tier}, brought as needed"))
    if program.optimizer is not None:
        states = sum(s.nbytes for s in graph.storages if s.kind is StorageKind.OPTIMIZER_STATE)
        where = (
            f"states of {format_size(states)} in {file.plan.home_tier}, brought as needed" if states else "in memory"
        )
        rows.append((program.optimizer.kind, f"{len(program.optimizer.updates)} updates in the step, {where}"))
        rows += _division(file, program.optimizer)
    return rows


def _division(file: PlanFile, optimizer: OptimizerProgram) -> list[tuple[str, str]]:
    """What updates on two units would take, where the machine has two; the plan runs them on one."""
    from .planner.training.interleave import division

    found = division(file.graph, optimizer, file.machine)
    if found is None:
        return []
    chosen = "none" if found.stride is None else f"one in {found.stride}"
    return [
        (
            "updates on two units",
            f"not planned: all are on {found.accelerator}. With their states beside {found.cpu} they take "
            f"{format_seconds(found.accelerator_s)} on {found.accelerator}, {format_seconds(found.cpu_s)} on "
            f"{found.cpu}, {format_seconds(found.divided_s)} with {chosen} on {found.accelerator} (the model of Deep "
            "Optimizer States)",
        )
    ]


def _kept(program: TrainingProgram) -> str:
    what = ["batch"] if program.parameters else ["parameters", "batch"]
    if program.optimizer is None:
        what.append("gradients")
    return f"{', '.join(what)}, buffers, small values; all the time"
