"""`tensorstow machine`: profiles of machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import console, report_machine
from .cli_options import app, check_output
from .ir.errors import InputError

machine_app = typer.Typer(help="Machine profiles: list, show, calibrate.", no_args_is_help=True)
app.add_typer(machine_app, name="machine")


@machine_app.command("list")
def machine_list() -> None:
    """Names of the built-in profiles, and of this box."""
    from .ir.profiles import load_machine, machine_names
    from .runtime.calibrate import host_profile_path

    known = [n for n in machine_names() if n != "host" or host_profile_path().exists()]
    report_machine.print_machines([load_machine(n) for n in known], host_measured="host" in known)


@machine_app.command("show")
def machine_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile's name, or a TOML file.")],
) -> None:
    """Every figure of a profile, and where it comes from."""
    from .hosts import get_machine

    machine = get_machine(name, progress=console.progress)
    console.done()
    report_machine.print_machine(machine)


@machine_app.command("calibrate")
def machine_calibrate(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.toml", help="Also write the profile here.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, with fewer repeats.")] = False,
) -> None:
    """Measure this box: disk, memory, arithmetic, overheads. Plans for --machine host use the result."""
    from .ir.profiles import write_machine
    from .runtime.calibrate import calibrate, host_profile_path

    check_output(output)
    machine = calibrate(progress=console.progress, quick=quick)
    write_machine(machine, host_profile_path())
    if output is not None:
        try:
            write_machine(replace(machine, name=output.stem), output)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}") from error
    console.done()
    report_machine.print_machine(machine)
