"""`tensorstow machine`: profiles of machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from . import console, report_machine
from .cli_options import Json, app, check_output
from .ir.codec import to_json
from .ir.errors import InputError
from .ir.machine import Machine

machine_app = typer.Typer(help="Machine profiles: list, show, calibrate.", no_args_is_help=True)
app.add_typer(machine_app, name="machine")


@machine_app.command("list")
def machine_list(as_json: Json = False) -> None:
    """Names of the built-in profiles, and of this box."""
    from .ir.profiles import load_machine, machine_names
    from .runtime.calibrate import host_profile_path

    known = [n for n in machine_names() if n != "host" or host_profile_path().exists()]
    machines = [load_machine(n) for n in known]
    if as_json:
        console.print_json({"machines": [to_json(m) for m in machines]})
    else:
        report_machine.print_machines(machines, host_measured="host" in known)


@machine_app.command("show")
def machine_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A profile's name, or a TOML file.")],
    as_json: Json = False,
) -> None:
    """Every figure of a profile, and where it comes from."""
    from .hosts import get_machine

    machine = get_machine(name, progress=console.progress)
    console.done()
    _say(machine, as_json=as_json)


@machine_app.command("calibrate")
def machine_calibrate(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.toml", help="Also write the profile here.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, with fewer repeats.")] = False,
    as_json: Json = False,
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
    _say(machine, as_json=as_json)


def _say(machine: Machine, *, as_json: bool) -> None:
    if as_json:
        console.print_json(to_json(machine))
    else:
        report_machine.print_machine(machine)
