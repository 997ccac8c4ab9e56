"""`tensorstow doctor`: what this box has, and what is missing."""

from __future__ import annotations

import typer
from rich.markup import escape

from . import console
from .cli_options import Json, app


@app.command(short_help="Say what this box has and what it lacks.")
def doctor(as_json: Json = False) -> None:
    """Say what this box has and what it lacks: packages, solvers, memory, disk, GPU, compiler."""
    from .doctor import State, examine

    console.progress("looking", 0.0)
    findings = examine()
    console.done()
    broken = [f for f in findings if f.state is State.BROKEN]
    if as_json:
        console.print_json({"findings": [f.facts() for f in findings], "broken": len(broken)})
    else:
        colours = {State.FINE: "green", State.LACKS: "yellow", State.BROKEN: "bold red"}
        for f in findings:
            mark = f"[{colours[f.state]}]{f.state.value:<6}[/]"
            console.out.print(f"{mark} [bold]{escape(f.subject):<16}[/] {escape(f.text)}")
            if f.advice:
                console.out.print(f"{'':>24}[dim]{escape(f.advice)}[/]")
    if broken:
        raise typer.Exit(1)
