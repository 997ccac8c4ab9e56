"""`tensorstow experts` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .cli_options import Json, Seed, app, check_output


@app.command(short_help="Analyse a routing trace: hit rates of caches of experts.")
def experts(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE.npz", help="Expert ids [tokens, layers, top_k] as 'experts'.")
    ],
    count: Annotated[int, typer.Option("--experts", metavar="E", help="Experts of a layer.")],
    cache: Annotated[str, typer.Option(metavar="C[,C...]", help="Experts that a layer's cache holds; or sizes.")],
    policies: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Which; default: all that the trace allows.")
    ] = None,
    warm_prompts: Annotated[
        int, typer.Option("--warm-prompts", metavar="N", min=0, help="First prompts that are not counted.")
    ] = 0,
    cold: Annotated[bool, typer.Option("--cold", help="Empty the caches before each prompt.")] = False,
    window: Annotated[str | None, typer.Option(metavar="M,M,...", help="Tokens of the windows of SRP and SCH.")] = None,
    load_ms: Annotated[
        float | None,
        typer.Option("--load-ms", metavar="MS", help="Time of a load (of the mean size): also replay with time."),
    ] = None,
    layer_ms: Annotated[float, typer.Option("--layer-ms", metavar="MS", help="A layer's time, for --load-ms.")] = 0.15,
    timed: Annotated[
        int, typer.Option("--timed-tokens", metavar="N", min=1, help="Last tokens, which --load-ms counts.")
    ] = 400,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also one self-contained page with pictures.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="The curves as .png, .svg or .pdf.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Analyse a routing trace: hit rates of caching policies, and how near they are to the best possible."""
    from .experts import analyse, print_analysis
    from .planner.experts.stall import LinkModel

    for path in (html, picture):
        check_output(path)
    found = analyse(
        trace,
        experts=count,
        caches=cache,
        policies=policies,
        warm_prompts=warm_prompts,
        cold=cold,
        windows=window,
        seed=seed,
        progress=console.progress,
        link=None if load_ms is None else LinkModel(load_ms, layer_ms),
        stall_tokens=timed,
    )
    if html is not None or picture is not None:
        from .page.experts_page import write_experts_page, write_experts_picture

        title = f"Experts of {trace.name}"
        if html is not None:
            write_experts_page(title, found, html)
        if picture is not None:
            write_experts_picture(title, found, picture)
    console.done()
    if as_json:
        console.print_json(found.facts())
    else:
        print_analysis(found, console.out)
