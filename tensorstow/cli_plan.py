"""`tensorstow plan` and `tensorstow run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, report
from .cli_options import (
    AllowPickle,
    Dims,
    Engine,
    Json,
    MachineName,
    Mode,
    ModelName,
    PlanPath,
    ProcessLimit,
    Profile,
    Seed,
    Tiers,
    TimeLimit,
    app,
    check_output,
    make_request,
)
from .ir.sizes import parse_size

if TYPE_CHECKING:
    from .workflow import Planned


New = Annotated[
    int | None, typer.Option(metavar="N", help="Tokens to generate after a prompt of --dim length tokens (hf:DIR).")
]
SparseRows = Annotated[
    int | None,
    typer.Option(
        "--sparse-ffn",
        metavar="ROWS",
        help="Of feed-forward layers behind ReLU read only active neurons, and keep so many of each.",
    ),
]
Routing = Annotated[
    Path | None, typer.Option(metavar="TRACE.npz", help="Predict the hits of a cache of experts by this routing.")
]
ClipNorm = Annotated[
    float | None,
    typer.Option("--clip-norm", metavar="NORM", help="Training with an optimizer: clip gradients by their norm."),
]
ClipValue = Annotated[
    float | None,
    typer.Option("--clip-value", metavar="V", help="Training with an optimizer: clip each element of a gradient."),
]


@app.command(short_help="Plan a model on a machine, with a proven bound.")
def plan(
    model: ModelName,
    machine: MachineName = "host",
    tier: Tiers = None,
    dim: Dims = None,
    mode: Mode = "inference",
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Which strategy plans; see `compare`. Default: stow; in training stow-recompute."
        ),
    ] = None,
    profile: Profile = False,
    time_limit: TimeLimit = 20.0,
    seed: Seed = 0,
    engine: Engine = "auto",
    process_limit: ProcessLimit = None,
    new: New = None,
    sparse_ffn: SparseRows = None,
    routing: Routing = None,
    clip_norm: ClipNorm = None,
    clip_value: ClipValue = None,
    allow_pickle: AllowPickle = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write the plan; `run` and `show` read it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan a model on a machine: what lives where and when, how long it takes, and how near that is to the limit."""
    from .workflow import limit_process, make_plan

    check_output(output)
    request = make_request(model, machine, tier, dim, mode, profile, time_limit, seed, engine, new, allow_pickle)
    request = replace(request, model=_with_choices(request.model, sparse_ffn, routing, clip_norm, clip_value))
    if process_limit is not None:
        planned = limit_process(request, parse_size(process_limit), strategy, console.progress)
    else:
        planned = make_plan(request, strategy=strategy, progress=console.progress)
    if output is not None:
        from .ir.files import write_plan

        write_plan(planned.file, output)
    console.done()
    if routing is not None:
        _say_routing(planned, routing)
    _say_plan(planned, output, None if new is None else request.model.predict(planned.file), as_json=as_json)


def _with_choices(
    model: Any, sparse_rows: int | None, routing: Path | None, clip_norm: float | None, clip_value: float | None
) -> Any:
    """The model with what options ask for that not every model has; InputError from where it has it not."""
    if sparse_rows is not None:
        from .sparse_rows import with_sparse_rows

        model = with_sparse_rows(model, sparse_rows)
    if clip_norm is not None or clip_value is not None:
        from .training import with_clip

        model = with_clip(model, clip_norm, clip_value)
    if routing is not None:
        from .moe_runs import with_routing

        model = with_routing(model, routing)
    return model


def _say_routing(planned: Planned, routing: Path) -> None:
    from .moe_recording import caching_of

    if caching_of(planned.file) is None:
        console.note(
            f"--routing {routing.name} does not count: this plan caches no experts, since all of them fit the budget, "
            "or whole layers are read in fewer bytes"
        )


def _say_plan(planned: Planned, output: Path | None, generation: Any, *, as_json: bool) -> None:
    if not as_json:
        report.print_plan(planned, output, generation)
        return
    facts = {**report.plan_facts(planned), "plan": None if output is None else str(output)}
    if generation is not None:
        from .generation import generation_facts

        facts["generation"] = generation_facts(generation)
    console.print_json(facts)


@app.command(short_help="Execute a plan; predicted beside measured.")
def run(
    plan_path: PlanPath,
    model: Annotated[Path | None, typer.Option(metavar="PATH", help="Where the model lies, if it moved.")] = None,
    input_path: Annotated[
        Path | None, typer.Option("--input", metavar="X.npz", help="Inputs by name; else random.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="Y.npz", help="Where to write outputs.")
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Passes to measure.")] = 5,
    verify: Annotated[bool, typer.Option("--verify", help="Compare with the unconstrained run, bit by bit.")] = False,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads that compute; default: all cores.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="FILE.json", help="One more pass as a trace for Perfetto, beside the plan's."),
    ] = None,
    record_routing: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Write which experts tokens chose, for `tensorstow experts`."),
    ] = None,
    as_json: Json = False,
    fixed: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Execute a plan inside its memory; print predicted beside measured."""
    from .execute import run_plan

    if fixed is not None:
        from .rehearse import fixed_nbytes

        console.print_json({"fixed_nbytes": fixed_nbytes(plan_path, rehearse=fixed == "rehearsed")})
        return
    check_output(output)
    check_output(trace)
    check_output(record_routing)
    found = run_plan(
        plan_path,
        model=model,
        input_path=input_path,
        output_path=output,
        repeat=repeat,
        verify=verify,
        threads=threads,
        trace=trace is not None,
        routing=record_routing,
        progress=console.progress,
    )
    if trace is not None:
        from .page.trace import measured_bars, write_trace

        write_trace(found.file, trace, measured=measured_bars(found.file, found.events))
    console.done()
    if as_json:
        console.print_json(found.facts())
    else:
        report.print_run(found)
    if found.verified is not None and not found.verified.bit_identical:
        raise typer.Exit(1)
