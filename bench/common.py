"""What the benchmarks share: networks with real (random) weights, the command line as a user runs it, tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tensorstow.ir.paths import cache_dir
from tests.models import light_models, write_gpt
from tests.networks import randomised

MIB = 1 << 20
MEMCAP = Path(os.environ.get("TENSORSTOW_MEMCAP", Path(__file__).parents[2] / "shared" / "tools" / "memcap.py"))


def model_folder() -> Path:
    """Where benchmark models are kept between runs."""
    folder = cache_dir() / "bench"
    folder.mkdir(exist_ok=True)
    return folder


def network(name: str) -> Path:
    """A network by name: 'gpt' (12 layers of 768, 128 tokens), or one of the light networks with random weights."""
    path = model_folder() / f"{name}.onnx"
    if not path.exists():
        if name == "gpt":
            write_gpt(path, layers=12, width=768, heads=12, vocabulary=50257, sequence=128, external=True)
        else:
            randomised(light_models()[name], path)
    return path


def command(*arguments: str) -> dict[str, Any]:
    """Run `tensorstow ARGUMENTS --json` in a process of its own: its JSON object; 'error' holds what went wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "tensorstow", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"error": done.stderr.strip()[-400:], "exit_status": done.returncode}


def capped(limit_mib: int, arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Run a command under a hard memory limit: the kernel's report, and what the command printed."""
    done = subprocess.run(
        [sys.executable, str(MEMCAP), str(limit_mib), *arguments], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]), "\n".join(lines[:-1])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and leave it readable in a log."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    Console(width=200).print(made)


def resident_nbytes(path: Path) -> int:
    """Bytes that the network takes when everything stays in memory: weights, live activations, workspace."""
    planned = command("plan", str(path), "--strategy", "resident", "--tier", "dram=1TiB")
    return int(planned["peak_nbytes"]["dram"])


def smallest_nbytes(path: Path) -> int:
    """The smallest feasible budget, as the error of a hopeless one names it."""
    refused = command("plan", str(path), "--tier", "dram=64KiB")
    return int(refused["smallest_nbytes"])
