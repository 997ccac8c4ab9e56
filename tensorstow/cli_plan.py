"""`tensorstow plan` and `tensorstow run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import console, report
from .cli_options import (
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


@app.command()
def plan(
    model: ModelName,
    machine: MachineName = "host",
    tier: Tiers = None,
    dim: Dims = None,
    mode: Mode = "inference",
    strategy: Annotated[
        str | None, typer.Option(help="Which strategy plans; see `compare`. Default: stow; in training stow-recompute.")
    ] = None,
    profile: Profile = False,
    time_limit: TimeLimit = 20.0,
    seed: Seed = 0,
    engine: Engine = "auto",
    process_limit: ProcessLimit = None,
    new: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens to generate after a prompt of --dim length tokens (hf:DIR).")
    ] = None,
    sparse_ffn: Annotated[
        int | None,
        typer.Option(
            "--sparse-ffn",
            metavar="ROWS",
            help="Of feed-forward layers behind ReLU read only active neurons, and keep so many of each.",
        ),
    ] = None,
    routing: Annotated[
        Path | None,
        typer.Option(metavar="TRACE.npz", help="Predict the hits of a cache of experts by this routing."),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option("--clip-norm", metavar="NORM", help="Training with an optimizer: clip gradients by their norm."),
    ] = None,
    clip_value: Annotated[
        float | None,
        typer.Option("--clip-value", metavar="V", help="Training with an optimizer: clip each element of a gradient."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the plan.")] = None,
    as_json: Json = False,
) -> None:
    """Plan a model on a machine: what lives where and when, how long it takes, and how near that is to the limit."""
    from .workflow import limit_process, make_plan

    check_output(output)
    request = make_request(model, machine, tier, dim, mode, profile, time_limit, seed, engine, new)
    if sparse_ffn is not None:
        from .sparse_rows import with_sparse_rows

        request = replace(request, model=with_sparse_rows(request.model, sparse_ffn))
    if clip_norm is not None or clip_value is not None:
        from .training import with_clip

        request = replace(request, model=with_clip(request.model, clip_norm, clip_value))
    if routing is not None:
        from .moe_runs import with_routing

        request = replace(request, model=with_routing(request.model, routing))
    if process_limit is not None:
        planned = limit_process(request, parse_size(process_limit), strategy, console.progress)
    else:
        planned = make_plan(request, strategy=strategy, progress=console.progress)
    if output is not None:
        from .ir.files import write_plan

        write_plan(planned.file, output)
    console.done()
    generation = None if new is None else request.model.predict(planned.file)
    if as_json:
        facts = {**report.plan_facts(planned), "plan": None if output is None else str(output)}
        if generation is not None:
            from .generation import generation_facts

            facts["generation"] = generation_facts(generation)
        console.print_json(facts)
    else:
        report.print_plan(planned, output, generation)


@app.command()
def run(
    plan_path: PlanPath,
    model: Annotated[Path | None, typer.Option(help="Where the model lies, if it moved.")] = None,
    input_path: Annotated[
        Path | None, typer.Option("--input", metavar="X.npz", help="Inputs by name; else random.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="Y.npz", help="Where to write outputs.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Passes to measure.")] = 5,
    verify: Annotated[bool, typer.Option("--verify", help="Compare with the unconstrained run, bit by bit.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute; default: all cores.")] = None,
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
