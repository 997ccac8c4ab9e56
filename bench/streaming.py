"""A Llama of 3.4 GB streamed through little memory, beside accelerate and mmap under the same hard limit.

For each limit and each shape of input: plan for the limit, then rounds in which ours and the peers take turns, each
in a fresh process under the kernel's memory limit. Ours reports computing alone and transfers alone from that process.

What each run gave is kept in a JSON file. A bench that was cut short, by --minutes or by hand, goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorstow.ir.paths import write_atomic

from .common import MEMCAP, model_folder, table
from .streaming_units import MODELS, PEERS, Case, model, plan_path, run, units

CAPS_MB = (1200, 2200)
SHAPES = ((1, 1), (1, 128))
LONG_SHAPES = ((8, 256),)
OUTPUT = Path(__file__).parent / "results" / "streaming.json"
COLUMNS = ("cap MB", "input", "pass", "/limit", "plan/limit", "/predicted", "GB read", "/planned", "peak/promised")

Runs = dict[str, dict[str, Any]]
"""What came of each run, by `Unit.key`."""


def _of(runs: Runs, case: Case, who: str) -> list[dict[str, Any]]:
    return [found for key, found in runs.items() if key.startswith(f"{case.name} {who} ")]


def _seconds(runs: list[dict[str, Any]]) -> float | None:
    times = [r["median_s"] for r in runs if "median_s" in r]
    return statistics.median(times) if times else None


def cells(runs: Runs, case: Case) -> list[str]:
    """A row of the table, as far as it is known."""
    head = [f"{case.cap_mb}", f"{case.batch}x{case.length}"]
    planned, ours = _of(runs, case, "plan"), _of(runs, case, "tensorstow")
    mine = [r for r in ours if "median_s" in r]
    if not mine:
        refused = [r["error"] for r in (*planned, *ours) if "error" in r]
        killed = f"killed (rc {ours[0].get('rc')})" if ours else "not run yet"
        return [*head, str(refused[0] if refused else killed)[-100:]]
    pass_s = _seconds(mine)
    assert pass_s is not None
    over = statistics.median(r["median_s"] / max(r["limit_s"].values()) for r in mine)
    as_planned = statistics.median(r["as_planned"] for r in mine)
    predicted = statistics.median(r["median_s"] / r["predicted_s"] for r in mine)
    read = statistics.median(r["read_nbytes"] / len(r["measured_s"]) for r in mine)
    moved = sum(n for link, n in planned[0]["moved_nbytes"].items() if link.startswith("ssd->"))
    row = [f"{pass_s:.2f} s", f"{over:.3f}", f"{as_planned:.3f}", f"{predicted:.3f}", f"{read / 1e9:.2f}"]
    row.append(f"{read / moved:.3f}" if moved else "-")
    row.append(f"{max(r['peak_rss_nbytes'] / r['promised_peak_nbytes'] for r in mine):.3f}")
    return [*head, *row, *(_peer(_of(runs, case, peer), pass_s) for peer in PEERS)]


def _peer(runs: list[dict[str, Any]], pass_s: float) -> str:
    theirs = _seconds(runs)
    if theirs is not None:
        return f"{theirs:.2f} s = {theirs / pass_s:.2f}x"
    return f"killed (rc {runs[0]['rc']})" if runs else "-"


def kept(output: Path, of: dict[str, Any], folder: Path, cases: list[Case]) -> Runs:
    """Runs of an earlier call of the same bench; those of cases whose plan is gone are not among them."""
    if not output.exists():
        return {}
    found = json.loads(output.read_text())
    if found.get("of") != of:
        return {}
    there = tuple(f"{case.name} " for case in cases if plan_path(folder, case).exists())
    return {key: one for key, one in found["runs"].items() if key.startswith(there) and there}


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.streaming")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--caps", default=",".join(map(str, CAPS_MB)), help="MB of the whole process")
    parser.add_argument("--shapes", default=",".join(f"{b}x{n}" for b, n in SHAPES), help="BATCHxLENGTH,...")
    parser.add_argument("--long", action="store_true", help="also 8x256, of which a pass takes half a minute")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, of these; '' for none")
    parser.add_argument("--model", default=next(iter(MODELS)), choices=MODELS)
    parser.add_argument("--folder", type=Path, default=None, help="where the model is made, once")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no run is begun")
    parser.add_argument("--anew", action="store_true", help="forget what earlier calls have found")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="the JSON file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table; empty where there is no tool to set a limit with. `python -m bench.streaming --help` selects."""
    given = _arguments(arguments)
    if not MEMCAP.exists():
        print(f"streaming: skipped, {MEMCAP.name} is not at hand (set TENSORSTOW_MEMCAP)")
        return {"rows": []}
    shapes = [tuple(map(int, s.split("x"))) for s in given.shapes.split(",")] + list(LONG_SHAPES if given.long else ())
    peers = tuple(filter(None, given.peers.split(",")))
    folder = model(given.model, given.folder or model_folder())
    cases = [Case(cap, batch, length) for cap in map(int, given.caps.split(",")) for batch, length in shapes]
    of = {"model": given.model}
    runs = {} if given.anew else kept(given.output, of, folder, cases)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * given.minutes
    left = 0
    for unit in units(cases, peers, given.rounds):
        if unit.key in runs:
            continue
        if unit.who == "tensorstow" and "error" in runs.get(f"{unit.case.name} plan 0", {"error": "none"}):
            continue
        if time.monotonic() > until:
            left += 1
            continue
        began = time.monotonic()
        runs[unit.key] = run(unit, folder)
        write_atomic(given.output, json.dumps({"of": of, "runs": runs}, indent=1).encode() + b"\n")
        said = "  ".join(cells(runs, unit.case))
        print(f"{unit.key}, {time.monotonic() - began:.0f} s: {said}", file=sys.stderr, flush=True)
    title = f"{given.model} (fp32) under a hard memory limit, per pass"
    table(title, (*COLUMNS, *PEERS), [cells(runs, case) for case in cases])
    if left:
        print(f"{left} runs are left; the same command goes on with them")
    print(f"JSON: {given.output}")
    return {"rows": [{"case": case.name, "cells": cells(runs, case)} for case in cases], "runs": runs, "left": left}


if __name__ == "__main__":
    main(sys.argv[1:])
