"""What the commands of the command line share: the application, options by name, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .ir.errors import InputError
from .ir.sizes import parse_size

app = typer.Typer(
    help="Plan where every tensor lives, and when; prove how good the plan is; run it as printed.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete_machine(incomplete: str) -> list[str]:
    """Names of machines for the shell, which completes files by itself."""
    from .ir.profiles import machine_names

    return [name for name in machine_names() if name.startswith(incomplete)]


ModelName = Annotated[
    str,
    typer.Argument(
        help="An ONNX file; hf:DIR, a Hugging Face directory; file.py:callable or pkg.module:callable, which returns "
        "(module, example_inputs), and for training also a loss and an optimizer.",
        metavar="MODEL",
    ),
]
MachineName = Annotated[
    str,
    typer.Option(
        "--machine",
        metavar="NAME|FILE.toml",
        help="A profile of `machine list`, or a file.",
        autocompletion=complete_machine,
    ),
]
Tiers = Annotated[
    list[str] | None,
    typer.Option("--tier", metavar="NAME=SIZE", help="Capacity of a tier, e.g. dram=300MiB. Again for more."),
]
Dims = Annotated[
    list[str] | None, typer.Option("--dim", metavar="NAME=N", help="A symbolic dimension of the model. Again for more.")
]
Mode = Annotated[str, typer.Option(metavar="NAME", help="inference; or training: a whole step of a PyTorch module.")]
Profile = Annotated[bool, typer.Option("--profile", help="Measure every operator on this box.")]
TimeLimit = Annotated[float, typer.Option("--time-limit", metavar="S", min=0.1, help="Seconds the solver may take.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of what is random.")]
Engine = Annotated[
    str,
    typer.Option(
        help="What solves linear and integer programs: auto, highs, glop, cbc, cpsat. HiGHS does what it cannot, and "
        "the programs that choose what is computed again.",
        metavar="NAME",
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Take weights of hf:DIR from a pickle too, which you trust.")
]
Json = Annotated[bool, typer.Option("--json", help="Exactly one JSON object on stdout.")]
ProcessLimit = Annotated[
    str | None, typer.Option("--process-limit", metavar="SIZE", help="Bound the whole process instead of a tier.")
]
PlanPath = Annotated[Path, typer.Argument(help="A plan file that `plan` wrote.", metavar="PLAN")]


def pairs(entries: list[str] | None, what: str) -> dict[str, str]:
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


def dims_of(entries: list[str] | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, text in pairs(entries, "dim").items():
        if not text.isascii() or not text.isdigit():
            raise InputError(f"--dim {name}={text}: a dimension is a whole number of 0 or more")
        found[name] = int(text)
    return found


def make_request(
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
    allow_pickle: bool = False,
) -> Any:
    from .hosts import get_machine
    from .workflow import Request

    sizes = {name: parse_size(size) for name, size in pairs(tiers, "tier").items()}
    found = get_machine(machine, progress=console.progress).with_capacity(sizes)
    chosen = _model(model, dims_of(dims), mode, new, allow_pickle)
    return Request(chosen, found, mode, profile, time_limit, seed, engine)


def _model(model: str, dims: dict[str, int], mode: str, new: int | None, allow_pickle: bool) -> Any:
    if new is None:
        from .models import find_model

        found = find_model(model, dims, allow_pickle=allow_pickle)
        if mode != "training":
            return found
        from .training import training_model

        return training_model(found)
    from .generation import generating

    return generating(model, dims, new, allow_pickle=allow_pickle)
