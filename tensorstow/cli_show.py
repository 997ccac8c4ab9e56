"""`tensorstow show`: a plan as text, as a page, as a picture, or as a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .cli_options import Json, PlanPath, app, check_output
from .ir.sizes import format_size

File = Path | None


@app.command(short_help="Show a plan as text, a page, a picture or a trace.")
def show(
    plan_path: PlanPath,
    html: Annotated[File, typer.Option("--html", metavar="FILE", help="One self-contained page with pictures.")] = None,
    picture: Annotated[
        File, typer.Option("--picture", metavar="FILE", help="The map and the timeline as .png, .svg or .pdf.")
    ] = None,
    trace: Annotated[
        File, typer.Option("--trace", metavar="FILE.json", help="The timeline for Perfetto or chrome://tracing.")
    ] = None,
    memory_viz: Annotated[
        File, typer.Option("--memory-viz", metavar="FILE.pickle", help="A memory snapshot for PyTorch's memory_viz.")
    ] = None,
    measured: Annotated[
        File, typer.Option("--measured", metavar="FILE.json", help="A trace that `run --trace` wrote, to show beside.")
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="S", min=0.1, help="Seconds for each upgrade that the page tells.")
    ] = 5.0,
    as_json: Json = False,
) -> None:
    """Show a plan: what it promises, a map of the memory over time, and who waits for what."""
    from .executors import read_sound
    from .show import print_show, show_facts

    wanted = [p for p in (html, picture, trace, memory_viz) if p is not None]
    for path in wanted:
        check_output(path)
    file = read_sound(plan_path)
    ran = ()
    if measured is not None:
        from .page.trace import read_measured

        ran = read_measured(measured)
    if html is not None:
        from .page.page import write_page

        write_page(file, html, measured=ran, time_limit_s=time_limit, progress=console.progress)
    if picture is not None:
        from .page.picture import write_picture

        write_picture(file, picture)
    if trace is not None:
        from .page.trace import write_trace

        write_trace(file, trace, measured=ran)
    if memory_viz is not None:
        from .page.snapshot import write_snapshot

        write_snapshot(file, memory_viz)
    console.done()
    if as_json:
        console.print_json(show_facts(file))
    elif not wanted:
        print_show(file)
    for path in wanted:
        console.note(f"{path}: {format_size(path.stat().st_size)}")
