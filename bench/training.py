"""A GPT trained in less memory: eager, PyTorch's checkpoints and memory budgets, hooks that write to disk, and ours.

For each batch size: the peak of the eager step, plans for shares of it, then rounds in which everybody takes a turn,
each in a fresh process. Peaks are the kernel's (VmHWM, reset after set-up). Ours must give the very bits of eager's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorstow.ir.paths import write_atomic

from .common import MIB, command, model_folder, table
from .training_worker import WAYS

SHARES = (0.9, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25)
PEERS = ("checkpoint", "hooks", "budget 0.5", "budget 0.25", "budget 0.1", "budget 0.0")
STEPS = 3


def worker(way: str, batch: int, steps: int, plan: Path | None = None) -> dict[str, Any]:
    """One process: its JSON object, or 'error'."""
    arguments = [sys.executable, "-m", "bench.training_worker", way, str(batch), str(steps)]
    done = subprocess.run([*arguments, *([str(plan)] if plan else [])], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": done.stderr.strip()[-400:]}


def plan_for(batch: int, budget: int, time_limit_s: float) -> tuple[Path, dict[str, Any]]:
    """A plan for `budget` bytes of memory beside the process's own."""
    path = model_folder() / f"training.{batch}.{budget // MIB}.plan.json"
    entry = f"{Path(__file__).with_name('training_models.py')}:gpt{batch}"
    limits = ("--tier", f"dram={budget}", "--time-limit", str(time_limit_s))
    return path, command("plan", entry, "--mode", "training", *limits, "-o", str(path))


def measure(
    batch: int, shares: Sequence[float], peers: Sequence[str], rounds: int, time_limit_s: float
) -> dict[str, Any]:
    """Everything at one batch size."""
    first = worker("eager", batch, 1)
    eager = first["peak_nbytes"]
    ways: dict[str, tuple[str, Path | None, dict[str, Any]]] = {"eager": ("eager", None, {})}
    ways |= {peer: (peer, None, {}) for peer in peers}
    fixed = first["before_nbytes"] - parameter_nbytes()
    for share in shares:
        path, said = plan_for(batch, int(share * eager) - fixed, time_limit_s)
        ways[f"ours {share:.0%}"] = ("tensorstow", path, said)
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, (way, path, said) in ways.items():
            if "error" not in said:
                runs.setdefault(name, []).append(worker(way, batch, STEPS, path))
    return {
        "batch": batch,
        "eager_peak_nbytes": eager,
        "fixed_nbytes": fixed,
        "plans": {name: said for name, (_, _, said) in ways.items() if said},
        "runs": runs,
    }


def parameter_nbytes() -> int:
    """Bytes of the parameters: a plan counts them, so they are no part of what the process takes by itself."""
    from .training_models import gpt

    return sum(p.numel() * p.element_size() for p in gpt(1)[0].parameters())


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table, and all that was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--batches", type=lambda t: [int(n) for n in t.split(",")], default=[8, 16])
    parser.add_argument("--shares", type=lambda t: [float(n) for n in t.split(",")], default=list(SHARES))
    parser.add_argument("--peers", type=lambda t: [n for n in t.split(",") if n], default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=30.0)
    given = parser.parse_args(arguments)
    unknown = set(given.peers) - set(WAYS)
    if unknown:
        parser.error(f"no way is called {sorted(unknown)}; there are {', '.join(WAYS)}")
    found = [measure(b, given.shares, given.peers, given.rounds, given.time_limit) for b in given.batches]
    for case in found:
        show(case)
    return {"cases": found}


def show(case: dict[str, Any]) -> None:
    """Seconds and peak as multiples of eager's in the same rounds; what was predicted and promised as multiples of what
    was measured."""
    eager_s = _median(case["runs"]["eager"])
    digest = case["runs"]["eager"][0]["digest"]
    rows: list[list[str]] = []
    for name, runs in case["runs"].items():
        good = [r for r in runs if "error" not in r]
        if not good:
            rows.append([name, *["-"] * 7, runs[0]["error"].splitlines()[-1][:60]])
            continue
        seconds, peak = _median(good), max(r["peak_nbytes"] for r in good)
        said = case["plans"].get(name)
        promised = said["fixed_nbytes"] + said["peak_nbytes"]["dram"] if said else 0
        rows.append(
            [
                name,
                f"{seconds:.2f}",
                f"{seconds / eager_s:.3f}",
                f"{peak / MIB:.0f}",
                f"{peak / case['eager_peak_nbytes']:.3f}",
                f"{said['simulated_s'] / seconds:.3f}" if said else "-",
                f"{promised / peak:.3f}" if said else "-",
                f"{said['gap']:.1%}" if said else "-",
                "equal" if all(r["digest"] == digest for r in good) else "other",
            ]
        )
    rows += [[name, *["-"] * 7, said["error"][:60]] for name, said in case["plans"].items() if "error" in said]
    columns = (
        "way",
        "s a step",
        "x eager",
        "peak MiB",
        "x eager",
        "predicted/s",
        "promised/peak",
        "above bound",
        "bits",
    )
    table(f"GPT, 12 blocks of 512, {case['batch']} x 512 tokens", columns, rows)


def _median(runs: list[dict[str, Any]]) -> float:
    return statistics.median(s for r in runs if "error" not in r for s in r["steps_s"])


if __name__ == "__main__":
    write_atomic(model_folder() / "training.json", json.dumps(main(sys.argv[1:])).encode())
