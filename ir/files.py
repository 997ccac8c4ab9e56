"""The plan file: one JSON document that holds all that showing, checking and running a plan needs but the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .codec import digest, dumps, from_json, loads, to_json
from .errors import InputError, PlanMismatchError
from .graph import Graph
from .machine import Machine, TierKind
from .paths import write_atomic
from .plan import Plan
from .program import ModelSource, ModuleProgram, Program, TrainingProgram
from .sizes import format_seconds, format_size

SCHEMA = "tensorstow-plan/1"


@dataclass(frozen=True)
class PlanFile:
    """A plan with its graph and machine, and, where it can be executed, its program (`module` for a PyTorch module,
    `training` for a training step of one) and the model it came from.

    `fixed_nbytes` is the measured memory of the process that runs it, beside what the plan manages: interpreter,
    libraries, kernel sessions, the user's input and output arrays. 0 where no process of this box would run it.
    """

    plan: Plan
    graph: Graph
    machine: Machine
    program: Program | None
    source: ModelSource | None
    fixed_nbytes: int
    module: ModuleProgram | None = None
    training: TrainingProgram | None = None

    @property
    def promised_peak_nbytes(self) -> int:
        """What the process that runs the plan holds at most: its fixed part, the arena and the largest workspace. Where
        the plan computes from a device's memory, the arena is the one in the host's."""
        unit = next(u for u in self.machine.units if u.name == self.plan.steps[0].unit) if self.plan.steps else None
        tier = unit.tier if unit else self.machine.units[0].tier
        if self.machine.tier[tier].kind is TierKind.HBM:
            tier = next((t.name for t in self.machine.tiers if t.kind is TierKind.DRAM), tier)
        return self.fixed_nbytes + self.plan.certificate.peak_nbytes.get(tier, 0)

    def __str__(self) -> str:
        """What is promised and what is proven: peak, time, bound and gap, a line each."""
        certificate, graph = self.plan.certificate, self.graph
        peaks = ", ".join(f"{format_size(n)} of {tier}" for tier, n in certificate.peak_nbytes.items()) or "nothing"
        process = f"; the process {format_size(self.promised_peak_nbytes)}" if self.fixed_nbytes else ""
        moved = ", ".join(f"{format_size(n)} {link}" for link, n in certificate.moved_nbytes.items()) or "nothing moves"
        gap = "equal to the bound" if certificate.status == "optimal" else f"{certificate.gap:.1%} above the bound"
        return "\n".join(
            (
                f"plan of {graph.name} ({len(graph.operators)} operators, {format_size(graph.nbytes)}) "
                f"on {self.machine.name} by {self.plan.strategy}",
                f"  peak   {peaks}{process}",
                f"  time   {format_seconds(certificate.simulated_s)} a pass, simulated; {moved}",
                f"  bound  {format_seconds(certificate.bound_s)} ({certificate.bound_kind})",
                f"  gap    {gap}",
            )
        )


def write_plan(file: PlanFile, path: Path) -> None:
    """Write `file` to `path`, whole or not at all. Equal plan files give equal bytes."""
    body = to_json(file)
    try:
        write_atomic(path, dumps({"schema": SCHEMA, "digest": digest(body), "body": body}) + b"\n")
    except OSError as error:
        raise InputError(f"cannot write the plan to {path}: {error.strerror}") from error


def read_plan(path: Path) -> PlanFile:
    """Read a plan file. One InputError says what is wrong with a file that is none, is of another schema, was changed
    by hand, or whose parts do not belong together."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the plan {path}: {error.strerror}") from error
    document: Any = loads(content, str(path))
    if not isinstance(document, dict) or "schema" not in document:
        raise InputError(f"{path}: not a plan file; `tensorstow plan MODEL -o {path.name}` writes one")
    if document["schema"] != SCHEMA:
        raise InputError(f"{path}: schema {document['schema']!r}, this version reads {SCHEMA!r}; plan the model again")
    try:
        actual = digest(document.get("body"))
    except RecursionError as error:
        raise InputError(f"{path}: nested too deep for a plan file ({error}); plan the model again") from error
    if document.get("digest") != actual:
        raise PlanMismatchError(
            f"{path}: the file was changed after it was written (digest {str(document.get('digest'))[:12]}, "
            f"contents {actual[:12]}); plan the model again"
        )
    file = from_json(PlanFile, document["body"], str(path))
    for what, stated, actual in (
        ("graph", file.plan.graph, digest(file.graph)),
        ("machine", file.plan.machine, digest(file.machine)),
    ):
        if stated != actual:
            raise PlanMismatchError(
                f"{path}: the plan is for {what} {stated[:12]}, the file holds {what} {actual[:12]}; "
                "plan the model again"
            )
    return file
