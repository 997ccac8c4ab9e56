"""Caching of experts on real routing: `python -m bench experts`.

Reads routing/gptoss20b_decode.npz (TENSORSTOW_DATA, else ../shared/data). The options of `recall` were chosen on the
data sets of `TUNED`; the table is of the others, one cold start for each data set, its prompts in their order, and of
the whole file. Waits are of a link that takes 0.53 ms for an expert behind layers of 0.15 ms, warm. `python -m
bench.experts --quick` takes minutes: the three gpqa sets, four policies, and the waits of one set.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tensorstow.ir.profiles import load_machine
from tensorstow.planner.experts.placement import place_experts
from tensorstow.planner.experts.policies import chosen_policies
from tensorstow.planner.experts.replay import replay_all
from tensorstow.planner.experts.stall import LinkModel, stall_rows
from tensorstow.planner.experts.trace import Trace, read_trace

from .common import table

DATA = Path(os.environ.get("TENSORSTOW_DATA", Path(__file__).parents[2] / "shared" / "data"))
TUNED = ("mmlu_dev", "mmlu_pro_validation")
CACHES = (8, 12, 16, 24)
SHOWN = "lru,lfu,decayed,advice,next-layer,recall,advice-true,sch,belady"
QUICK = ("gpqa_main", "gpqa_diamond", "gpqa_extended")
QUICKLY = "lru,decayed,recall,belady"
LINK = LinkModel(load_ms=0.53, compute_ms=0.15)
TIMED = 400


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Replay, time and place; the rows of the three tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.experts")
    parser.add_argument("--quick", action="store_true", help="the gpqa sets, four policies, the waits of one set")
    parser.add_argument("--sets", default="", help="data sets, with commas between them; default: all, and the whole")
    given = parser.parse_args(arguments)
    path = DATA / "routing" / "gptoss20b_decode.npz"
    if not path.exists():
        return {"skipped": f"there is no {path.name}; set TENSORSTOW_DATA to the folder that holds routing/"}
    trace = read_trace(path, 32)
    there = [kind for kind in dict.fromkeys(trace.classes) if kind not in TUNED]
    wanted = given.sets.split(",") if given.sets else list(QUICK) if given.quick else there
    kinds = [kind for kind in there if kind in wanted]
    parts = {kind: _of(trace, (kind,)) for kind in kinds}
    if kinds == there:
        parts["the whole file"] = trace
    shown = QUICKLY if given.quick else SHOWN
    hits = {name: [asdict(row) for row in _hits(name, part, shown)] for name, part in parts.items()}
    waits = {name: [asdict(row) for row in _waits(name, parts[name])] for name in kinds[: 1 if given.quick else 2]}
    return {"tuned_on": list(TUNED), "hit_rates": hits, "waits": waits, "placement": _placement()}


def _of(trace: Trace, kinds: tuple[str, ...]) -> Trace:
    return trace.take([p for p, kind in enumerate(trace.classes) if kind in kinds])


def _hits(name: str, trace: Trace, shown: str) -> list[Any]:
    rows = replay_all(trace, CACHES, chosen_policies(shown, trace, 0))
    by = {(row.policy, row.cache): row for row in rows}
    cells: list[list[str]] = []
    for policy in shown.split(","):
        rates = (f"{by[policy, c].hit_rate:.4f} {by[policy, c].gap_closed:5.0%}" for c in CACHES)
        cells.append([policy, *rates, f"{by[policy, CACHES[0]].ns_per_event / 1e3:.1f}"])
    head = [f"{c} of {trace.experts}" for c in CACHES]
    table(f"{name}: hit rate, share of LRU to Belady ({trace.tokens:,} tokens)", ["policy", *head, "us/event"], cells)
    return list(rows)


def _waits(name: str, trace: Trace) -> list[Any]:
    some = trace.take(list(range(min(14, trace.prompts))))
    rows = stall_rows(some, (8, 16), LINK, warm_tokens=some.tokens - TIMED)
    cells: list[list[str]] = []
    for row in rows:
        of_bound = "" if row.of_bound is None else f"{row.of_bound:.2f}"
        wait = (f"{row.stall_ms:.3f}", f"{row.of_lru:.0%}", of_bound, f"{row.decide_ms:.3f}")
        cells.append([f"{row.cache}", row.schedule, *wait])
    table(f"{name}: ms waited a token", ["cache", "schedule", "wait", "of LRU", "of bound", "deciding"], cells)
    return list(rows)


def _placement() -> dict[str, Any]:
    """58 layers of 256 experts of 42 MiB, uses skewed, on one H100 with its DRAM, processor and SSD."""
    machine = load_machine("h100")
    rng = np.random.default_rng(0)
    uses = rng.dirichlet(np.full(256, 0.3), size=58) * 8
    began = time.perf_counter()
    placed = place_experts(machine, np.full((58, 256), 42 << 20, np.int64), uses)
    seconds = time.perf_counter() - began
    where: dict[str, int] = {}
    for home in placed.experts:
        name = home.tier if home.unit is None else f"{home.tier} by {home.unit}"
        where[name] = where.get(name, 0) + 1
    cells = [[name, str(count)] for name, count in where.items()]
    table(f"14,848 experts placed in {seconds:.1f} s, {placed.gap:.3%} above the bound", ["home", "experts"], cells)
    return {"seconds": seconds, "gap": placed.gap, "experts": where, "cost_ns": placed.cost_ns}


if __name__ == "__main__":
    main(sys.argv[1:])
