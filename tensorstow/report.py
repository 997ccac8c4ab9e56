"""Plans, runs and packings: what people read of them, and the JSON object of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from .console import figure, out, percent, plain_table, print_rows
from .ir.files import PlanFile
from .ir.program import ModuleProgram
from .ir.sizes import format_seconds as seconds
from .ir.sizes import format_size
from .moe_report import experts_facts, experts_text, reads_text, run_texts, steady_nbytes
from .whole_experts import whole_experts

if TYPE_CHECKING:
    from .execute import RunReport
    from .pack import Outcome
    from .planner.onnx.uncounted import Uncounted
    from .planner.pytorch.generation import Generation
    from .workflow import Planned


def plan_facts(planned: Planned) -> dict[str, Any]:
    """The JSON object of `plan --json`, but for the path."""
    file = planned.file
    certificate = file.plan.certificate
    more: dict[str, Any] = {}
    experts = experts_facts(file)
    if experts is not None:
        more["experts"] = experts
    whole = whole_experts(file)
    if whole is not None:
        more["experts_read_whole"] = whole.facts
    if file.training is not None:
        from .report_training import training_facts

        more["training"] = training_facts(file, file.training)
    left_out = _left_out(file)
    if left_out is not None and left_out.text is not None:
        more["uncounted"] = {"values": len(left_out.values), "loops": list(left_out.loops)}
    return {
        "graph": {"ops": len(file.graph.operators), "tensors": len(file.graph.tensors), "nbytes": file.graph.nbytes},
        "strategy": file.plan.strategy,
        "status": certificate.status,
        "simulated_s": certificate.simulated_s,
        "first_pass_s": certificate.first_pass_s,
        "slowed_s": certificate.slowed_s,
        "bound_s": certificate.bound_s,
        "bound_kind": certificate.bound_kind,
        "gap": certificate.gap,
        "peak_nbytes": certificate.peak_nbytes,
        "moved_nbytes": certificate.moved_nbytes,
        "fixed_nbytes": file.fixed_nbytes,
        "promised_peak_nbytes": file.promised_peak_nbytes,
        "solve_s": planned.solve_s,
        **({} if planned.disk is None else {"disk": planned.disk.facts()}),
        **more,
    }


def print_plan(planned: Planned, output: Path | None, generation: Generation | None = None) -> None:
    """The summary of a plan, what was planned first, then what is promised and what is proven."""
    file = planned.file
    plan, graph = file.plan, file.graph
    certificate = plan.certificate
    out.print(
        f"[bold]{escape(graph.name)}[/]  {len(graph.operators)} operators, {format_size(graph.nbytes)} of tensors"
    )
    waited_s = file.module.experts.wait_s if file.module is not None and file.module.experts is not None else 0.0
    compute = sum(s.duration_ns for s in plan.steps) / 1e9 - waited_s
    rows = [("strategy", f"{plan.strategy}, in {seconds(planned.solve_s)}")]
    for tier, peak in certificate.peak_nbytes.items():
        budget = plan.capacity_nbytes.get(tier)
        rows.append(
            (f"peak in {tier}", format_size(peak) + (f" of {format_size(budget)}" if budget else " of scratch"))
        )
    if file.fixed_nbytes:
        promised, fixed = format_size(file.promised_peak_nbytes), format_size(file.fixed_nbytes)
        rows.append(("process peak", f"{promised}; {fixed} of it interpreter, libraries, kernels"))
    if file.module is not None:
        rows.append(("weights", _weights(file.module)))
    experts = experts_text(file)
    if experts is not None:
        rows += [("experts", experts), ("experts' reads", reads_text(file) or "")]
    whole = whole_experts(file)
    if whole is not None:
        rows.append(("experts", whole.text))
    if file.training is not None:
        from .report_training import training_rows

        rows += training_rows(file, file.training)
    left_out = _left_out(file)
    if left_out is not None and left_out.text is not None:
        rows.append(("not counted", left_out.text))
    for link, nbytes in certificate.moved_nbytes.items():
        rows.append((f"moved {link}", f"{format_size(nbytes)} a pass"))
    if planned.disk is not None:
        rows.append(("disk", planned.disk.text))
    slowed = f", {seconds(certificate.slowed_s)} more beside transfers" if certificate.slowed_s else ""
    time_s = seconds(certificate.simulated_s)
    rows.append(("time of a pass", f"{time_s} simulated; computing alone {seconds(compute)}{slowed}"))
    rows.append(("first pass", f"{seconds(certificate.first_pass_s)}, with what stays loaded first"))
    rows.append(("proven bound", f"{seconds(certificate.bound_s)} ({certificate.bound_kind})"))
    verdict = (
        "optimal: equal to the bound" if certificate.status == "optimal" else f"{percent(certificate.gap)} above it"
    )
    rows.append(("this plan", verdict))
    if generation is not None:
        rows += _generation_rows(generation)
    if output is not None:
        rows.append(("written to", str(output)))
    print_rows(rows)


def _left_out(file: PlanFile) -> Uncounted | None:
    """What formulas do not count of an ONNX model."""
    if file.program is None:
        return None
    from .planner.onnx import uncounted

    return uncounted(file.graph, file.program)


def _weights(program: ModuleProgram) -> str:
    """How they are read, and what that takes on the disk."""
    nbytes = format_size(sum(b.nbytes for b in program.blobs))
    if program.direct:
        return "read from their files where they lie"
    if all(b.path is None and not b.pieces for b in program.blobs):
        return f"{nbytes} moved from memory to a nameless file in the cache, when the plan is applied"
    return f"{nbytes} repacked into the cache, once: in their files they do not begin at multiples of 64 bytes"


def _generation_rows(found: Generation) -> list[tuple[str, str]]:
    work = found.workload
    bound = found.decode_bound_tokens_per_s
    limit = f"; no plan exceeds {figure(bound)}" if bound else ""
    return [
        ("generation", f"{work.new} tokens after {work.prompt}, {work.batch} at once: {figure(found.tokens_per_s)}/s"),
        ("prompt", f"{seconds(found.prefill_s)}; keys and values take {format_size(found.cache_nbytes)} in the end"),
        ("a token", f"{seconds(found.token_s)}: {figure(found.decode_tokens_per_s)} tokens/s{limit}"),
    ]


def print_run(found: RunReport) -> None:
    """Predicted beside measured, with their ratio, and the verdict of the verification."""
    facts = found.facts()
    certificate = found.file.plan.certificate
    table = plain_table("", "predicted", "measured", "measured/predicted")

    def add(name: str, predicted: float, measured: float, show: Any) -> None:
        ratio = f"{measured / predicted:.3f}" if predicted else "-"
        table.add_row(name, show(predicted), show(measured), ratio)

    def whole(nbytes: float) -> str:
        return format_size(round(nbytes))

    add("time of a pass", certificate.simulated_s, found.median_s, seconds)
    promised = facts["promised_peak_nbytes"]
    add("process peak", promised, found.peak_rss_nbytes, format_size)
    passes = len(found.measured_s)
    loads = sum(n for link, n in certificate.moved_nbytes.items() if link.startswith(f"{found.file.plan.home_tier}->"))
    fetched = 0 if found.experts is None else found.experts["predicted_read_nbytes"]
    add("read a pass", loads + fetched, steady_nbytes(found.experts, found.read_nbytes, passes), whole)
    stored = sum(certificate.moved_nbytes.values()) - loads
    if stored:
        add("written a pass", stored, found.written_nbytes / passes, whole)
    out.print(table)
    if found.compute_s is not None and found.io_s is not None:
        reading_s = 0.0 if found.experts is None else found.experts["link_s"]
        limit = max(found.compute_s, found.io_s + reading_s)
        whole_limit = found.over_limit is None or found.experts is not None  # by block, experts' reads are not known
        times = found.median_s / limit if whole_limit else found.over_limit
        beside = f" and experts' reads {seconds(reading_s)} of the link" if found.experts is not None else ""
        out.print(
            f"{passes} passes; computing alone {seconds(found.compute_s)}, transfers alone {seconds(found.io_s)}"
            f"{beside}: {times:.2f} x the slower of them; first fill {seconds(found.load_s)}"
        )
    elif found.compute_s is not None:
        plain = f"without a plan {seconds(found.compute_s)}: {found.median_s / found.compute_s:.2f} x that"
        out.print(f"{passes} steps; {plain}")
    if found.experts is not None:
        for line in run_texts(found.experts):
            out.print(escape(line))
    if found.verified is not None:
        v = found.verified
        bits = "bits equal the unconstrained run" if v.bit_identical else "BITS DIFFER from the unconstrained run"
        out.print(f"[bold]{bits}[/]; largest difference {v.max_abs_err:.3g} from {v.reference}")


def print_packing(outcome: Outcome) -> None:
    """Peak, bound, and how they were found."""
    rows = [
        ("buffers", str(outcome.buffers)),
        ("load bound", str(outcome.load_bound)),
        ("peak", "-" if outcome.peak is None else str(outcome.peak)),
        ("status", outcome.status),
        ("found by", f"{outcome.method} in {seconds(outcome.seconds)}"),
    ]
    print_rows(rows)
