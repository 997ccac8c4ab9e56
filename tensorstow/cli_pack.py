"""`tensorstow pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, report
from .cli_options import Json, Seed, TimeLimit, app, check_output
from .ir.sizes import parse_size


@app.command(short_help="Give buffers with lifetimes their offsets.")
def pack(
    buffers: Annotated[
        Path,
        typer.Argument(
            metavar="BUFFERS.csv", help="Columns id,lower,upper,size: name, first step, step behind the last, bytes."
        ),
    ],
    capacity: Annotated[str | None, typer.Option(metavar="N", help="Stop at any packing within this size.")] = None,
    time_limit: TimeLimit = 10.0,
    seed: Seed = 0,
    start: Annotated[
        Path | None,
        typer.Option(metavar="OLD.csv", help="An earlier OUT.csv: keep its offsets where that costs nothing."),
    ] = None,
    banks: Annotated[
        int, typer.Option(metavar="N", min=1, help="Memories to spread the buffers over, each of --capacity.")
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.csv", help="The same with offsets.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give buffers with lifetimes their offsets: the least peak, and the proof of how low it could be."""
    from .pack import pack_file

    check_output(output)
    limit = None if capacity is None else parse_size(capacity)
    outcome = pack_file(
        buffers,
        capacity=limit,
        time_limit_s=time_limit,
        seed=seed,
        output=output,
        banks=banks,
        start=start,
        progress=console.note,
    )
    if outcome.detail:
        console.note(outcome.detail)
    if as_json:
        console.print_json(outcome.facts())
    else:
        report.print_packing(outcome)
    raise typer.Exit(outcome.exit_status)
