"""AdamW on a GPT of 160 million parameters with its states on disk, beside torch.optim.AdamW with all in memory.

Gradients are those of linear layers over random activations: each takes the three products that forward and backward of
such a layer take, and nothing else of a model is computed. The same numbers go to every variant, so parameters must
have the same hash behind the last step. Every variant runs in a process of its own (peaks are the kernel's VmHWM), and
the variants take turns, round by round. Controls come from the planned process: the steps with nothing moved, and the
transfers with nothing computed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensorstow.runtime.memory import peak_rss_nbytes, reset_peak, trim_heap

from .common import MIB, table
from .optimizer_step import OPTIONS, Parameters, Planned, Work

VARIANTS = ("torch", "torch, updated in the backward", "planned")


def run_one(given: argparse.Namespace) -> dict[str, Any]:
    """One variant in this process."""
    module = Parameters(given.blocks, given.width, given.vocabulary)
    work = Work(given.tokens, 4 * given.width)
    found: dict[str, Any] = {"variant": given.one, "parameters": sum(p.numel() for p in module.parameters())}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        planned: Planned | None = None
        if given.one == "planned":
            planned = Planned(module, given, work, Path(folder))
            certificate = planned.plan.certificate
            found |= {
                "predicted_s": certificate.simulated_s,
                "bound_s": certificate.bound_s,
                "moved_nbytes": certificate.moved_nbytes,
                "arena_nbytes": planned.plan.arena_nbytes["dram"],
            }
            run = planned.step
        else:
            run = _plain(module, work, in_backward=given.one != "torch")
        trim_heap()
        reset_peak()  # what making the parameters and the plan took is over
        seconds: list[float] = []
        for number in range(given.steps):
            begin = time.perf_counter()
            run(number)
            seconds.append(time.perf_counter() - begin)
        found |= {"step_s": seconds, "peak_nbytes": peak_rss_nbytes(), "sha256": _hash(module)}
        if planned is not None:
            found |= planned.controls()
            planned.memory.close()
    return found


def _plain(module: Parameters, work: Work, *, in_backward: bool) -> Callable[[int], None]:
    """torch's own step: all gradients, then all updates; or each parameter's own optimizer as soon as it may."""
    order = list(module.backward_order())
    if in_backward:
        optimizers = [torch.optim.AdamW([p], **OPTIONS) for _, p in order]
    else:
        optimizers = [torch.optim.AdamW(module.parameters(), **OPTIONS)]

    def step(number: int) -> None:
        for index, (_, p) in enumerate(order):
            p.grad = work.gradient(p, number, torch.empty_like(p))
            if in_backward:
                optimizers[index].step()
                p.grad = None
        if not in_backward:
            optimizers[0].step()
            optimizers[0].zero_grad()

    return step


def _hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for p in module.parameters():
        digest.update(p.detach().numpy().data)
    return digest.hexdigest()


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.optimizer", description=__doc__)
    for name, value in (
        ("blocks", 12), ("width", 896), ("vocabulary", 50304), ("tokens", 512), ("steps", 3), ("rounds", 3),
        ("piece-mib", 8), ("window-mib", 96),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--time-limit", type=float, default=20.0)
    parser.add_argument("--strategy", default="stow")
    parser.add_argument("--folder", default=None, help="where states go; by default the temporary folder")
    parser.add_argument("--one", choices=VARIANTS, help="run this variant in this process and print its JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Rounds of all variants; the table on the terminal."""
    argv = [] if argv is None else argv
    given = _arguments(argv)
    runs: dict[str, list[dict[str, Any]]] = {v: [] for v in VARIANTS}
    for _ in range(given.rounds):
        for variant in VARIANTS:
            command = [sys.executable, "-m", "bench.optimizer", *argv, "--one", variant]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{variant}: {done.stderr.strip()[-800:]}")
            runs[variant].append(json.loads(done.stdout.splitlines()[-1]))
    result = summary(runs)
    rows = [
        [v, f"{r['step_s']:.2f}", f"{r['time_ratio']:.3f}", f"{r['peak_nbytes'] / MIB:.0f}", f"{r['peak_change']:+.0%}"]
        for v, r in result["rows"].items()
    ]
    title = f"AdamW, {result['parameters'] / 1e6:.0f} M parameters, same hash: {result['same_hash']}"
    table(title, ("variant", "step s", "ratio", "peak MiB", "change"), rows)
    controls = result["controls"]
    print(f"nothing moved {controls['compute_s']:.2f} s, transfers alone {controls['io_s']:.2f} s")
    print(f"predicted {controls['predicted_s']:.2f} s (bound {controls['bound_s']:.2f} s)")
    return result


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds; the first step of a process is left out, as torch makes its states in it."""
    hashes = {r["sha256"] for found in runs.values() for r in found}
    steps = {v: statistics.median(s for r in found for s in r["step_s"][1:]) for v, found in runs.items()}
    peaks = {v: max(r["peak_nbytes"] for r in found) for v, found in runs.items()}
    rows = {
        v: {
            "step_s": steps[v],
            "time_ratio": steps[v] / steps["torch"],
            "peak_nbytes": peaks[v],
            "peak_change": peaks[v] / peaks["torch"] - 1,
        }
        for v in runs
    }
    planned = runs["planned"]
    names = ("compute_s", "io_s", "predicted_s", "bound_s")
    controls = {k: statistics.median(r[k] for r in planned) for k in names}
    plan = {k: planned[0][k] for k in ("moved_nbytes", "arena_nbytes")}
    return {
        "parameters": planned[0]["parameters"],
        "same_hash": len(hashes) == 1,
        "rows": rows,
        "controls": controls,
        "plan": plan,
        "runs": runs,
    }


if __name__ == "__main__":
    chosen = _arguments(sys.argv[1:])
    if chosen.one:
        print(json.dumps(run_one(chosen)))
    else:
        print(json.dumps(main(sys.argv[1:]), indent=1))
