"""The command line: a thin skin over `workflow`. Results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

# Each of these registers its commands.
from . import cli_compare, cli_doctor, cli_experts, cli_machine, cli_pack, cli_plan, cli_show, console
from ._version import __version__
from .cli_options import app
from .ir.errors import InputError, TensorstowError

__all__ = [
    "app",
    "cli_compare",
    "cli_doctor",
    "cli_experts",
    "cli_machine",
    "cli_pack",
    "cli_plan",
    "cli_show",
    "run_cli",
]


USAGE = 2
"""The exit status of what the parser of arguments refuses; no command of ours ends with it but by an error."""


VERBOSE = "--verbose"


def run_cli(arguments: list[str]) -> int:
    """Run the command line and return its exit status. `--verbose` may stand anywhere."""
    wants_json = "--json" in arguments
    verbose = VERBOSE in arguments
    arguments = [a for a in arguments if a != VERBOSE]
    try:
        app(args=arguments, prog_name="tensorstow")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich ends the process where nobody reads on
            return 0
        if not _by_the_parser(stop):
            said = f"the model's own code ended the process: SystemExit: {stop.code}{_line_of(stop)}"
            console.done()
            console.error(f"{said}; it must return", InputError.exit_status, as_json=wants_json)
            return InputError.exit_status
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if status == USAGE and wants_json:  # typer has said on stderr what is wrong
            console.print_json({"error": "wrong usage; stderr says what", "exit_status": USAGE})
        return status
    except TensorstowError as error:
        console.done()
        smallest = getattr(error, "smallest_nbytes", None)
        console.error(str(error), error.exit_status, as_json=wants_json, smallest_nbytes=smallest)
        if verbose:
            console.causes(error)
        return error.exit_status
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: our own bug, told as such
        traceback.print_exc(file=sys.stderr)
        console.error(f"internal error: {type(error).__name__}: {error}; please report it", 1, as_json=wants_json)
        return 1
    return 0


def _by_the_parser(stop: SystemExit) -> bool:
    """Whether typer ended the command, as it ends each, and not a module that was being traced or run."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(stop.__traceback__)]
    return frames[-1].partition(".")[0] in ("typer", "click")


def _line_of(stop: SystemExit) -> str:
    last = traceback.extract_tb(stop.__traceback__)[-1]
    return f" ({last.filename}, line {last.lineno})"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tensorstow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option(VERBOSE, help="Behind an error, what it was raised from. May stand anywhere.")
    ] = False,
) -> None:
    del version, verbose
