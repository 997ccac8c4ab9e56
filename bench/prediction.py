"""Predicted against measured: models, limits of memory, batches and lengths, each run under a hard limit.

A plan says how long a pass takes before anything has run. Here is how far from the truth that is: the median over all
cases of |predicted / measured - 1|. The box is measured anew at the beginning, into a cache of this benchmark's own.
Beside each case stands what the error is made of: arithmetic alone and transfers alone, predicted and measured.

The cases of all models and inputs take turns, so that a run that is cut short, by --minutes or by hand, has seen all
kinds; what it found so far is in the JSON file, which is written anew after each case.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorstow.ir.paths import write_atomic

from .common import MEMCAP, MIB, capped, model_folder, table

if TYPE_CHECKING:
    from tensorstow.ir.files import PlanFile
    from tensorstow.ir.machine import Machine
    from tensorstow.modules import ModuleModel

SHARES = (0.35, 0.5, 0.7, 0.9)
"""Of the bytes of the weights: the budget of the plan beside the workspace that the pass takes anyway."""
SHAPES = ((1, 1), (1, 128), (4, 64), (8, 256))
LONG_TOKENS = 1024
"""From so many on a pass takes seconds: two shares are enough, and fewer passes."""
LONG_SHARES = (0.5, 0.9)
OUTPUT = Path(__file__).parent / "results" / "prediction.json"
SLACK = 1.05
AIM = 0.06
MINUTES = 24.0
SOLVE_S = 5.0
"""Seconds a plan may search: those for a few dozen parts are proven, or all but, before."""


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=16, num_key_value_heads=8, vocab_size=16000))


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=8, n_head=16, vocab_size=16000))


MODELS: dict[str, Callable[[], Any]] = {"llama-109m": _llama, "gpt2-118m": _gpt2}


def directory(name: str) -> Path:
    """The model, random, in fp32 shards; made once."""
    folder = model_folder() / name
    if not (folder / "config.json").exists():
        import torch

        torch.manual_seed(0)
        MODELS[name]().save_pretrained(folder, max_shard_size="200MB")
    return folder


class Subject:
    """A model with inputs of one shape on this box, lowered and measured once for all shares of memory."""

    def __init__(self, name: str, shape: tuple[int, int], whole: ModuleModel, machine: Machine) -> None:
        from tensorstow.modules import with_sizes

        self.name, self.shape, self.machine = name, shape, machine
        self.model = with_sizes(whole, {"batch": shape[0], "length": shape[1]})
        self.tier = machine.units[0].tier
        self._fixed_nbytes: int | None = None
        self._needs: tuple[int, int] | None = None

    def path(self, share: float) -> Path:
        """Where the plan is kept."""
        batch, length = self.shape
        return model_folder() / f"{self.name}.{batch}x{length}.{100 * share:.0f}.plan.json"

    def _budget(self, share: float) -> int:
        from tensorstow.planner.instance import make_instance

        if self._needs is None:
            graph = self.model.parts(self.machine, looked_up=frozenset()).graph
            roomy = self.machine.with_capacity({self.tier: 1 << 50})
            self._needs = graph.nbytes, make_instance(graph, roomy).workspace_nbytes
        weights, workspace = self._needs
        return int(share * weights) + workspace + self.machine.tier[self.tier].reserve_nbytes

    def make(self, share: float) -> tuple[PlanFile, float]:
        """The plan for `share` of the weights' bytes, above what the pass takes beside them, and the seconds it took.

        The process's fixed part is rehearsed for the first plan and holds for the others, which differ in managed
        memory alone: a rehearsal takes as long as a case.
        """
        from dataclasses import replace

        from tensorstow.disk_now import with_disk_now
        from tensorstow.executors import measure_fixed
        from tensorstow.ir.files import PlanFile, write_plan
        from tensorstow.planner.build import plan_graph

        began = time.perf_counter()
        machine, _ = with_disk_now(self.machine, self.model.source())
        machine = machine.with_capacity({self.tier: self._budget(share)})
        lowered = self.model.lower(machine, "inference")
        plan = plan_graph(lowered.graph, machine, strategy="stow", time_limit_s=SOLVE_S)
        file = PlanFile(plan, lowered.graph, machine, None, self.model.source(), 0, lowered.module)
        if self._fixed_nbytes is None:
            self._fixed_nbytes = measure_fixed(file)
        file = replace(file, fixed_nbytes=self._fixed_nbytes)
        write_plan(file, self.path(share))
        return file, time.perf_counter() - began


def case(name: str, shape: tuple[int, int], share: float, file: PlanFile, path: Path) -> dict[str, Any]:
    """One plan run under its promise and 5%."""
    passes = 6 if shape[0] * shape[1] < LONG_TOKENS else 2
    limit = int(file.promised_peak_nbytes * SLACK) // MIB + 1
    run = [sys.executable, "-m", "tensorstow", "run", str(path), "--repeat", str(passes), "--json"]
    kernel, said = capped(limit, run)
    row: dict[str, Any] = {"model": name, "shape": shape, "share": share, "limit_mib": limit, "kernel": kernel}
    ran: dict[str, Any] = json.loads(said) if said else {"error": f"killed (rc {kernel['rc']})"}
    if "error" in ran:
        return row | {"failed": ran["error"]}
    moved = file.plan.certificate.moved_nbytes
    planned = sum(moved.values())
    link = file.machine.link
    io_s = sum(n / link[tuple(k.split("->"))].bytes_per_s for k, n in moved.items() if n)  # pyright: ignore
    compute_s = 1e-9 * sum(step.duration_ns for step in file.plan.steps)
    return row | {
        "predicted_s": ran["predicted_s"],
        "measured_s": ran["measured_s"],
        "median_s": ran["median_s"],
        "error": ran["predicted_s"] / ran["median_s"] - 1,
        "compute_s": {"predicted": compute_s, "measured": ran["limit_s"]["compute"]},
        "io_s": {"predicted": io_s, "measured": ran["limit_s"]["io"]},
        "read_over_planned": ran["read_nbytes"] / len(ran["measured_s"]) / planned if planned else None,
        "peak_over_promised": ran["peak_rss_nbytes"] / ran["promised_peak_nbytes"],
    }


def _cells(row: dict[str, Any]) -> list[str]:
    head = [row["model"], "x".join(map(str, row["shape"])), f"{row['share']:.0%}"]
    if "error" not in row:
        return [*head, str(row["failed"])[:60], *[""] * 6]
    return [
        *head,
        f"{row['predicted_s']:.3f}",
        f"{row['median_s']:.3f}",
        f"{100 * row['error']:+.1f}%",
        *(f"{row[k]['predicted']:.3f}/{row[k]['measured']:.3f}" for k in ("compute_s", "io_s")),
        "-" if row["read_over_planned"] is None else f"{row['read_over_planned']:.3f}",
        f"{row['peak_over_promised']:.3f}",
    ]


def _subjects(names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> list[Subject]:
    """All models with all inputs."""
    from tensorstow.hosts import get_machine
    from tensorstow.modules import module_from_entry

    machine = get_machine("host")
    wholes = {name: module_from_entry(f"hf:{directory(name)}", {}) for name in names}
    return [Subject(name, shape, wholes[name], machine) for shape in shapes for name in names]


def _rows(subjects: Sequence[Subject], shares: Sequence[float], until: float, output: Path) -> list[dict[str, Any]]:
    """Every subject at every share, share by share, as far as they begin before `until`."""
    rows: list[dict[str, Any]] = []
    for turn in range(len(shares)):
        for k, one in enumerate(subjects):
            share = shares[(turn + k) % len(shares)]
            tokens = one.shape[0] * one.shape[1]
            if (tokens >= LONG_TOKENS and share not in LONG_SHARES) or time.monotonic() > until:
                continue
            file, plan_s = one.make(share)
            rows.append(case(one.name, one.shape, share, file, one.path(share)) | {"plan_s": plan_s})
            print("  ".join(_cells(rows[-1])), f"  planned in {plan_s:.1f} s", file=sys.stderr, flush=True)
            write_atomic(output, json.dumps(_summary(rows), indent=1).encode() + b"\n")
    return rows


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [abs(r["error"]) for r in rows if "error" in r]
    return {"rows": rows, "cases": len(errors), "median_error": statistics.median(errors) if errors else None}


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table; empty where there is no tool to set a limit with. `python -m bench.prediction --help` selects."""
    parser = argparse.ArgumentParser(prog="python -m bench.prediction")
    parser.add_argument("--models", default=",".join(MODELS), help="which, of these")
    parser.add_argument("--shapes", default=",".join(f"{b}x{n}" for b, n in SHAPES), help="BATCHxLENGTH,...")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="of the bytes of the weights")
    parser.add_argument("--keep", action="store_true", help="use what an earlier run has measured of the box")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which no case is begun")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help="the JSON file")
    given = parser.parse_args(arguments)
    if not MEMCAP.exists():
        print(f"prediction: skipped, {MEMCAP.name} is not at hand (set TENSORSTOW_MEMCAP)")
        return {"rows": []}
    shapes = [(int(b), int(n)) for b, n in (s.split("x") for s in given.shapes.split(","))]
    names = given.models.split(",")
    for name in names:
        directory(name)
    before, own = os.environ.get("TENSORSTOW_CACHE"), model_folder() / "prediction"
    if not given.keep:
        shutil.rmtree(own, ignore_errors=True)
    (own / "bench").mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (own / "bench" / name).exists():
            (own / "bench" / name).symlink_to(directory(name))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * given.minutes
    os.environ["TENSORSTOW_CACHE"] = str(own)
    try:
        rows = _rows(_subjects(names, shapes), tuple(map(float, given.shares.split(","))), until, given.output)
    finally:
        os.environ.pop("TENSORSTOW_CACHE") if before is None else os.environ.update(TENSORSTOW_CACHE=before)
    columns = (
        "model",
        "input",
        "memory",
        "predicted s",
        "measured s",
        "error",
        "compute p/m",
        "io p/m",
        "read",
        "peak",
    )
    table("a pass predicted and measured (p/m), under a hard memory limit", columns, [_cells(r) for r in rows])
    found = _summary(rows)
    print(f"JSON: {given.output}")
    if found["median_error"] is not None:
        print(f"median error {found['median_error']:.1%} over {found['cases']} cases (aim: {AIM:.0%})")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
