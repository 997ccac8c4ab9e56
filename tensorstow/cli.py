"""The command line: a thin skin over `workflow`. Results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from . import report
from ._version import __version__
from .ir.errors import InputError, TensorstowError
from .ir.sizes import parse_size

app = typer.Typer(
    help="Plan where every tensor lives, and when; prove how good the plan is; run it as printed.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
machine_app = typer.Typer(help="Machine profiles: list, show, calibrate.", no_args_is_help=True)
app.add_typer(machine_app, name="machine")

ModelName = Annotated[
    str,
    typer.Argument(
        help="An ONNX file; hf:DIR, a Hugging Face directory; file.py:callable or pkg.module:callable, which returns "
        "(module, example_inputs), and for training also a loss and an optimizer.",
        metavar="MODEL",
    ),
]
MachineName = Annotated[str, typer.Option("--machine", help="A profile's name, or a TOML file.")]
Tiers = Annotated[
    list[str] | None, typer.Option("--tier", metavar="NAME=SIZE", help="Capacity of a tier, e.g. dram=300MiB.")
]
Dims = Annotated[list[str] | None, typer.Option("--dim", metavar="NAME=N", help="A symbolic dimension of the model.")]
Mode = Annotated[str, typer.Option(help="inference; training of a PyTorch module: a whole step.")]
Profile = Annotated[bool, typer.Option("--profile", help="Measure every operator on this box.")]
TimeLimit = Annotated[float, typer.Option("--time-limit", metavar="S", min=0.1, help="Seconds the solver may take.")]
Seed = Annotated[int, typer.Option(help="Seed of what is random in a strategy.")]
Engine = Annotated[
    str, typer.Option(help="What solves linear and integer programs: auto, highs, glop, cbc, cpsat.", metavar="NAME")
]
Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON object on stdout.")]
ProcessLimit = Annotated[
    str | None, typer.Option("--process-limit", metavar="SIZE", help="Bound the whole process instead of a tier.")
]
PlanPath = Annotated[Path, typer.Argument(help="A plan file that `plan` wrote.", metavar="PLAN")]

USAGE = 2
"""The exit status of what the parser of arguments refuses; no command of ours ends with it but by an error."""


def run_cli(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    wants_json = "--json" in arguments
    try:
        app(args=arguments, prog_name="tensorstow")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if status == USAGE and wants_json:  # typer has said on stderr what is wrong
            report.print_json({"error": "wrong usage; stderr says what", "exit_status": USAGE})
        return status
    except TensorstowError as error:
        report.done()
        smallest = getattr(error, "smallest_nbytes", None)
        report.error(str(error), error.exit_status, as_json=wants_json, smallest_nbytes=smallest)
        return error.exit_status
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: our own bug, told as such
        traceback.print_exc(file=sys.stderr)
        report.error(f"internal error: {type(error).__name__}: {error}; please report it", 1, as_json=wants_json)
        return 1
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tensorstow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def _pairs(entries: list[str] | None, what: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries or []:
        name, sign, value = entry.rpartition("=")
        if not sign or not name or not value:
            raise InputError(f"--{what} {entry}: write it as NAME={'SIZE' if what == 'tier' else 'N'}")
        if name in found:
            raise InputError(f"--{what} {name} is given twice, as {found[name]} and as {value}; give it once")
        found[name] = value
    return found


def check_output(path: Path | None) -> None:
    """Refuse a place that cannot be written before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: the folder {path.parent} may not be written")


def _dims(entries: list[str] | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, text in _pairs(entries, "dim").items():
        if not text.isascii() or not text.isdigit():
            raise InputError(f"--dim {name}={text}: a dimension is a whole number of 0 or more")
        found[name] = int(text)
    return found


def _request(
    model: str,
    machine: str,
    tiers: list[str] | None,
    dims: list[str] | None,
    mode: str,
    profile: bool,
    time_limit: float,
    seed: int,
    engine: str,
    new: int | None = None,
) -> Any:
    from .hosts import get_machine
    from .workflow import Request

    sizes = {name: parse_size(size) for name, size in _pairs(tiers, "tier").items()}
    found = get_machine(machine, progress=report.progress).with_capacity(sizes)
    return Request(_model(model, _dims(dims), mode, new), found, mode, profile, time_limit, seed, engine)


def _model(model: str, dims: dict[str, int], mode: str, new: int | None) -> Any:
    if new is None:
        from .models import find_model

        found = find_model(model, dims)
        if mode != "training":
            return found
        from .training import training_model

        return training_model(found)
    from .generation import generating

    return generating(model, dims, new)


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
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the plan.")] = None,
    as_json: Json = False,
) -> None:
    """Plan a model on a machine: what lives where and when, how long it takes, and how near that is to the limit."""
    from .workflow import limit_process, make_plan

    check_output(output)
    request = _request(model, machine, tier, dim, mode, profile, time_limit, seed, engine, new)
    if process_limit is not None:
        planned = limit_process(request, parse_size(process_limit), strategy, report.progress)
    else:
        planned = make_plan(request, strategy=strategy, progress=report.progress)
    if output is not None:
        from .ir.files import write_plan

        write_plan(planned.file, output)
    report.done()
    generation = None if new is None else request.model.predict(planned.file)
    if as_json:
        facts = {**report.plan_facts(planned), "plan": None if output is None else str(output)}
        if generation is not None:
            from .generation import generation_facts

            facts["generation"] = generation_facts(generation)
        report.print_json(facts)
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
    as_json: Json = False,
    fixed: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Execute a plan inside its memory; print predicted beside measured."""
    from .execute import run_plan

    if fixed is not None:
        from .rehearse import fixed_nbytes

        report.print_json({"fixed_nbytes": fixed_nbytes(plan_path, rehearse=fixed == "rehearsed")})
        return
    check_output(output)
    check_output(trace)
    found = run_plan(
        plan_path,
        model=model,
        input_path=input_path,
        output_path=output,
        repeat=repeat,
        verify=verify,
        threads=threads,
        trace=trace is not None,
        progress=report.progress,
    )
    if trace is not None:
        from .page.trace import measured_bars, write_trace

        write_trace(found.file, trace, measured=measured_bars(found.file, found.events))
    report.done()
    if as_json:
        report.print_json(found.facts())
    else:
        report.print_run(found)
    if found.verified is not None and not found.verified.bit_identical:
        raise typer.Exit(1)


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
    repeat: Annotated[int, typer.Option(min=1, help="Run each this often: seeds from --seed on.")] = 1,
    engine: Engine = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Runs at once, a process each; 0: in this process.")] = 1,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that a run may take beyond what a process begins with.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Exactly the table on stdout, as Markdown.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="The table as CSV; -: exactly that on stdout.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score strategies side by side: one simulator, one bound."""
    from . import report_compare as tables
    from .planner.compare import Trials, chosen_names
    from .workflow import make_comparison

    to_stdout = csv_file is not None and str(csv_file) == "-"
    if as_json + markdown + to_stdout > 1:
        raise InputError("--json, --markdown and --csv - each want stdout for themselves; give one of them")
    check_output(None if to_stdout else csv_file)
    memory = None if memory_limit is None else parse_size(memory_limit)
    trials = Trials(_seeds(seed, seeds, repeat), _limits(limits), workers, memory)
    request = _request(model, machine, tier, dim, mode, profile, time_limit, seed, engine)
    chosen = chosen_names(names, mode)
    comparison = make_comparison(request, chosen, report.progress, trials=trials)
    report.done()
    if csv_file is not None and not to_stdout:
        tables.write_csv(comparison, request.machine, csv_file)
    if as_json:
        report.print_json(tables.comparison_facts(comparison))
    elif to_stdout:
        tables.print_csv(comparison, request.machine)
    elif markdown:
        tables.print_markdown(comparison, request.machine)
    else:
        tables.print_comparison(comparison, request.machine)


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
    return {name: _limit(name, text) for name, text in _pairs(entries, "limit").items()}


def _limit(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--limit {name}={text}: write seconds, as {name}=5") from error


@machine_app.command("list")
def machine_list() -> None:
    """Names of the built-in profiles, and of this box."""
    from .ir.profiles import load_machine, machine_names
    from .runtime.calibrate import host_profile_path

    known = [n for n in machine_names() if n != "host" or host_profile_path().exists()]
    report.print_machines([load_machine(n) for n in known], host_measured="host" in known)


@machine_app.command("show")
def machine_show(name: Annotated[str, typer.Argument(help="A profile's name, or a TOML file.")]) -> None:
    """Every figure of a profile, and where it comes from."""
    from .hosts import get_machine

    machine = get_machine(name, progress=report.progress)
    report.done()
    report.print_machine(machine)


@machine_app.command("calibrate")
def machine_calibrate(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Also write the profile here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few seconds, with fewer repeats.")] = False,
) -> None:
    """Measure this box: disk, memory, arithmetic, overheads. Plans for --machine host use the result."""
    from .ir.profiles import write_machine
    from .runtime.calibrate import calibrate, host_profile_path

    check_output(output)
    machine = calibrate(progress=report.progress, quick=quick)
    write_machine(machine, host_profile_path())
    if output is not None:
        try:
            write_machine(replace(machine, name=output.stem), output)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror}") from error
    report.done()
    report.print_machine(machine)


@app.command()
def pack(
    buffers: Annotated[Path, typer.Argument(metavar="BUFFERS.csv", help="Columns id,lower,upper,size.")],
    capacity: Annotated[str | None, typer.Option(metavar="N", help="Stop at any packing within this size.")] = None,
    time_limit: TimeLimit = 10.0,
    seed: Seed = 0,
    start: Annotated[
        Path | None,
        typer.Option(metavar="OLD.csv", help="An earlier OUT.csv: keep its offsets where that costs nothing."),
    ] = None,
    banks: Annotated[int, typer.Option(min=1, help="Memories to spread the buffers over, each of --capacity.")] = 1,
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
        progress=report.note,
    )
    if outcome.detail:
        report.note(outcome.detail)
    if as_json:
        report.print_json(outcome.facts())
    else:
        report.print_packing(outcome)
    raise typer.Exit(outcome.exit_status)


from . import cli_show as _cli_show  # noqa: E402, F401 # pyright: ignore[reportUnusedImport] - registers its command
