"""A Llama of 3.4 GB streamed through little memory, beside accelerate and mmap under the same hard limit.

For each limit and each shape of input: plan for the limit, then rounds in which ours and the peers take turns, each
in a fresh process under the kernel's memory limit. Ours reports computing alone and transfers alone from that process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import MEMCAP, capped, command, model_folder, table

CAPS_MB = (1200, 2200)
SHAPES = ((1, 1), (1, 128), (8, 256))
MANY_TOKENS = 1024
"""From so many on a pass takes half a minute, and two passes are enough."""
PEERS = ("accelerate", "accelerate-dat", "mmap")
SLACK = 1.05
"""The hard limit of ours is 5% above the promised peak: what the promise must be good for."""


def llama() -> Path:
    """A Llama of hidden size 2048, 16 layers, 852M parameters, random, in fp32 shards."""
    folder = model_folder() / "llama-852m"
    if not (folder / "model.safetensors.index.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        shape = LlamaConfig(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=32000,
        )
        LlamaForCausalLM(shape).save_pretrained(folder, max_shard_size="1GB")
    return folder


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache: what others had read before would cost the limit nothing."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(folder: Path, cap_mib: int, shape: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    """The plan for a process of `cap_mib`, and the command that runs it."""
    batch, length = shape
    plan = model_folder() / f"llama.{cap_mib}.{batch}x{length}.plan.json"
    dims = ("--dim", f"batch={batch}", "--dim", f"length={length}")
    planned = command("plan", f"hf:{folder}", *dims, "--process-limit", f"{cap_mib}MiB", "-o", str(plan))
    passes = 5 if batch * length < MANY_TOKENS else 2
    run = [sys.executable, "-m", "tensorstow", "run", str(plan), "--repeat", str(passes), "--json"]
    return planned, run


def case(folder: Path, cap_mb: int, shape: tuple[int, int], peers: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """One limit and one shape: the plan, then everybody in turn."""
    cap_mib = cap_mb * 1_000_000 >> 20
    planned, run = ours(folder, cap_mib, shape)
    row: dict[str, Any] = {"cap_mb": cap_mb, "shape": shape, "plan": planned, "runs": {}}
    if "error" in planned:
        return row
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        kernel, said = capped(int(cap_mib * SLACK), run)
        found.setdefault("tensorstow", []).append(kernel | (json.loads(said) if said else {}))
        for peer in peers:
            forget(folder)
            arguments = ["bench.streaming_peers", peer, str(folder), *map(str, shape), "2", str(cap_mib // 3)]
            kernel, said = capped(cap_mib, [sys.executable, "-m", *arguments])
            found.setdefault(peer, []).append(kernel | (json.loads(said) if said else {}))
    row["runs"] = found
    return row


def _seconds(runs: list[dict[str, Any]]) -> float | None:
    times = [r["median_s"] for r in runs if "median_s" in r]
    return statistics.median(times) if times else None


def _cells(row: dict[str, Any]) -> list[str]:
    head = [f"{row['cap_mb']}", "x".join(map(str, row["shape"]))]
    if "error" in row["plan"]:
        return [*head, str(row["plan"]["error"])[:100]]
    mine = [r for r in row["runs"]["tensorstow"] if "median_s" in r]
    if not mine:
        return [*head, f"killed: {row['runs']['tensorstow'][0]}"[:100]]
    pass_s = _seconds(mine)
    assert pass_s is not None
    over = statistics.median(r["median_s"] / max(r["limit_s"].values()) for r in mine)
    predicted = statistics.median(r["median_s"] / r["predicted_s"] for r in mine)
    read = statistics.median(r["read_nbytes"] / len(r["measured_s"]) for r in mine)
    planned = sum(n for link, n in row["plan"]["moved_nbytes"].items() if link.startswith("ssd->"))
    peak = max(r["peak_rss_nbytes"] / r["promised_peak_nbytes"] for r in mine)
    cells = [f"{pass_s:.2f} s", f"{over:.3f}", f"{predicted:.3f}", f"{read / 1e9:.2f}", f"{read / planned:.3f}"]
    cells.append(f"{peak:.3f}")
    for peer in PEERS:
        theirs = _seconds(row["runs"].get(peer, []))
        cells.append(f"{theirs:.2f} s = {theirs / pass_s:.2f}x" if theirs else "-")
    return [*head, *cells]


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table; empty where there is no tool to set a limit with. `python -m bench.streaming --help` selects."""
    parser = argparse.ArgumentParser(prog="python -m bench.streaming")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--caps", default=",".join(map(str, CAPS_MB)), help="MB of the whole process")
    parser.add_argument("--shapes", default=",".join("x".join(map(str, s)) for s in SHAPES), help="BATCHxLENGTH,...")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, of these")
    given = parser.parse_args(arguments)
    shapes = [(int(b), int(n)) for b, n in (s.split("x") for s in given.shapes.split(","))]
    peers = tuple(filter(None, given.peers.split(",")))
    if not MEMCAP.exists():
        print(f"streaming: skipped, {MEMCAP.name} is not at hand (set TENSORSTOW_MEMCAP)")
        return {"rows": []}
    folder = llama()
    caps = map(int, given.caps.split(","))
    rows = [case(folder, cap, shape, peers, given.rounds) for cap in caps for shape in shapes]
    columns = ("cap MB", "input", "pass", "/limit", "/predicted", "GB read", "/planned", "peak/promised", *PEERS)
    table("a Llama of 3.4 GB (fp32) under a hard memory limit, per pass", columns, [_cells(r) for r in rows])
    return {"rows": rows}


if __name__ == "__main__":
    main(sys.argv[1:])
