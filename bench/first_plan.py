"""Seconds from a clone to the first executed plan on a machine that has nothing but Python, git and make.

`python -m bench.first_plan [--keep FOLDER]` clones the last commit of this repository into an empty folder and calls
`make demo` there: a virtual environment, the dependencies, which pip downloads or takes from its cache (`--no-cache`:
none), and a model that is planned and run. What the environment takes on the disk is told, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import MIB, table

ROOT = Path(__file__).parents[1]
STAGES = {
    "clone": ["git", "clone", "-q", "--no-hardlinks", str(ROOT), "."],
    "environment and dependencies": ["make", ".venv/.installed"],
    "first plan, made and run": ["make", "demo"],
    "the same again": ["make", "demo"],
}


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Time the stages in an empty folder, with caches of their own; print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_plan", description="from a clone to a plan that ran")
    parser.add_argument("--keep", type=Path, help="work in this folder, which must be empty, and leave it there")
    parser.add_argument("--no-cache", action="store_true", help="pip takes nothing from its cache")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary) / "clone"
        folder.mkdir(exist_ok=True)
        seconds = _stages(folder, no_cache=given.no_cache)
        nbytes = sum(p.lstat().st_size for p in (folder / ".venv").rglob("*") if p.is_file() and not p.is_symlink())
    cells = [[name, f"{s:.1f}"] for name, s in seconds.items()]
    table(f"from a clone to the first plan; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", ["", "s"], cells)
    print(f"the environment takes {nbytes / MIB:.0f} MiB")
    return {"seconds": seconds, "environment_nbytes": nbytes, "load": os.getloadavg()}


def _stages(folder: Path, *, no_cache: bool) -> dict[str, float]:
    """Seconds of each stage. Raises CalledProcessError where one fails."""
    environment = {
        **os.environ,
        "TENSORSTOW_CACHE": str(folder / ".cache"),
        "NUMBA_CACHE_DIR": str(folder / ".cache" / "numba"),
        "PYTHON": sys.executable,
        **({"PIP_NO_CACHE_DIR": "1"} if no_cache else {}),
    }
    seconds: dict[str, float] = {}
    for name, command in STAGES.items():
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
        seconds[name] = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:])
