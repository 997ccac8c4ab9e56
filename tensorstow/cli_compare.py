"""`tensorstow compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console
from .cli_options import (
    AllowPickle,
    Dims,
    Engine,
    Json,
    MachineName,
    Mode,
    ModelName,
    Profile,
    Seed,
    Tiers,
    TimeLimit,
    app,
    check_output,
    make_request,
    pairs,
)
from .ir.errors import InputError
from .ir.sizes import parse_size

if TYPE_CHECKING:
    from .planner.compare import Trials
    from .workflow import Request


@app.command()
def compare(
    model: ModelName,
    machine: MachineName = "host",
    tier: Tiers = None,
    dim: Dims = None,
    mode: Mode = "inference",
    names: Annotated[
        str | None,
        typer.Option("--strategies", metavar="A,B,...", help="Which; default: some for the mode; all: every one."),
    ] = None,
    profile: Profile = False,
    time_limit: TimeLimit = 20.0,
    limits: Annotated[
        list[str] | None, typer.Option("--limit", metavar="STRATEGY=S", help="Another time limit for one strategy.")
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,...", help="Run each strategy with each of these.")] = None,
    repeat: Annotated[int, typer.Option(metavar="N", min=1, help="Run each this often: seeds from --seed on.")] = 1,
    engine: Engine = "auto",
    allow_pickle: AllowPickle = False,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Runs at once, a process each; 0: in this process.")
    ] = 1,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that a run may take beyond what a process begins with.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Exactly the table on stdout, as Markdown.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="The table as CSV; -: exactly that on stdout.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also one self-contained page with pictures.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="B,B,...", help="Compare under several budgets: sizes, or shares of what a pass takes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score strategies side by side: one simulator, one bound."""
    from .planner.compare import Trials, chosen_names

    to_stdout = csv_file is not None and str(csv_file) == "-"
    if as_json + markdown + to_stdout > 1:
        raise InputError("--json, --markdown and --csv - each want stdout for themselves; give one of them")
    if sweep is not None and csv_file is not None:
        raise InputError("--sweep has no --csv; give --json or --markdown")
    check_output(None if to_stdout else csv_file)
    check_output(html)
    memory = None if memory_limit is None else parse_size(memory_limit)
    trials = Trials(_seeds(seed, seeds, repeat), _limits(limits), workers, memory)
    request = make_request(
        model, machine, tier, dim, mode, profile, time_limit, seed, engine, allow_pickle=allow_pickle
    )
    chosen = chosen_names(names, mode)
    if sweep is not None:
        _sweep(request, sweep, chosen, trials, html, as_json=as_json, markdown=markdown)
    else:
        output = "json" if as_json else "csv" if to_stdout else "markdown" if markdown else "table"
        _compare(request, chosen, trials, html, None if to_stdout else csv_file, output)


def _compare(
    request: Request, chosen: tuple[str, ...], trials: Trials, html: Path | None, csv_file: Path | None, output: str
) -> None:
    from . import report_compare as tables
    from .workflow import make_comparison

    comparison = make_comparison(request, chosen, console.progress, trials=trials)
    console.done()
    if csv_file is not None:
        tables.write_csv(comparison, request.machine, csv_file)
    if html is not None:
        from .page.compare_page import write_comparison_page

        write_comparison_page(_title(request), comparison, html)
    if output == "json":
        console.print_json(tables.comparison_facts(comparison))
    elif output == "csv":
        tables.print_csv(comparison, request.machine)
    elif output == "markdown":
        tables.print_markdown(comparison, request.machine)
    else:
        tables.print_comparison(comparison, request.machine)


def _sweep(
    request: Request,
    budgets: str,
    chosen: tuple[str, ...],
    trials: Trials,
    html: Path | None,
    *,
    as_json: bool,
    markdown: bool,
) -> None:
    from . import report_sweep as tables
    from .sweep import make_sweep

    found = make_sweep(request, budgets, chosen, console.progress, trials=trials)
    console.done()
    if html is not None:
        from .page.compare_page import write_sweep_page

        write_sweep_page(_title(request), found, html)
    if as_json:
        console.print_json(tables.sweep_facts(found))
    elif markdown:
        tables.print_sweep_markdown(found)
    else:
        tables.print_sweep(found)


def _title(request: Request) -> str:
    return f"{request.model.name} on {request.machine.name}"


def _seeds(first: int, listed: str | None, repeat: int) -> tuple[int, ...]:
    if listed is None:
        return tuple(range(first, first + repeat))
    if repeat > 1:
        raise InputError(f"--seeds {listed} and --repeat {repeat} both say how often to run; give one of them")
    try:
        return tuple(int(text) for text in listed.split(","))
    except ValueError as error:
        raise InputError(f"--seeds {listed}: write whole numbers with commas between them, as 0,1,2") from error


def _limits(entries: list[str] | None) -> dict[str, float]:
    return {name: _limit(name, text) for name, text in pairs(entries, "limit").items()}


def _limit(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--limit {name}={text}: write seconds, as {name}=5") from error
