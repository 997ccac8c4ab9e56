"""What the streaming bench consists of: models, plans, and runs that are each measured in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .common import capped, command

MODELS: dict[str, dict[str, Any]] = {
    "llama-852m": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 32},
    "llama-60m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8, "num_attention_heads": 10},
}
"""By name; 8 or 2 heads of keys, a vocabulary of 32,000. The smaller one is for trying this bench out."""
MANY_TOKENS = 1024
"""From so many on a pass takes half a minute, and two passes are enough."""
PEERS = ("accelerate", "accelerate-dat", "mmap")
SLACK = 1.05
"""The hard limit of ours is 5% above the promised peak: what the promise must be good for."""
PEER_SHARES = (0.6, 0.45, 0.33)
"""Of the limit, what accelerate may keep in memory: the first that it survives with."""


@dataclass(frozen=True, slots=True)
class Case:
    """One limit (MB of the whole process) and one shape (batch, length) of input."""

    cap_mb: int
    batch: int
    length: int

    @property
    def cap_mib(self) -> int:
        """What the kernel is told."""
        return self.cap_mb * 1_000_000 >> 20

    @property
    def name(self) -> str:
        """As keys of the results and file names have it."""
        return f"{self.cap_mb}.{self.batch}x{self.length}"


def model(name: str, folder: Path) -> Path:
    """A random Llama in fp32 shards under `folder`, made once."""
    path = folder / name
    if not (path / "config.json").exists() or not any(path.glob("*.safetensors")):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        shape = MODELS[name]
        heads = shape["num_attention_heads"]
        config = LlamaConfig(**shape, num_key_value_heads=heads // 4 if heads % 4 == 0 else 2, vocab_size=32000)
        LlamaForCausalLM(config).save_pretrained(path, max_shard_size="1GB")
    return path


def forget(folder: Path) -> None:
    """Drop the folder's files from the page cache: what others had read before would cost the limit nothing."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plan_path(folder: Path, case: Case) -> Path:
    """Where the plan of a case is kept, beside the model."""
    return folder.parent / f"{folder.name}.{case.name}.plan.json"


def make_plan(folder: Path, case: Case) -> dict[str, Any]:
    """What `tensorstow plan` says."""
    dims = ("--dim", f"batch={case.batch}", "--dim", f"length={case.length}")
    limit = ("--process-limit", f"{case.cap_mib}MiB")
    return command("plan", f"hf:{folder}", *dims, *limit, "-o", str(plan_path(folder, case)))


def run_ours(folder: Path, case: Case) -> dict[str, Any]:
    """One run under the limit and 5%; 'as_planned' is the plan's own time at the rates of this run, over its limit."""
    forget(folder)
    plan = plan_path(folder, case)
    passes = 5 if case.batch * case.length < MANY_TOKENS else 2
    arguments = [sys.executable, "-m", "tensorstow", "run", str(plan), "--repeat", str(passes), "--json"]
    kernel, said = capped(int(case.cap_mib * SLACK), arguments)
    ran = kernel | (json.loads(said) if said else {})
    return ran | {"as_planned": at_rates(plan, ran["limit_s"])} if "limit_s" in ran else ran


def at_rates(path: Path, limit_s: dict[str, float]) -> float:
    """The simulated pass of the plan, on a box with the rates of `limit_s`, over the slower of computing and reading.

    What a measured pass takes beyond this is the executor's; this beyond 1 is the plan's.
    """
    from tensorstow.ir.files import read_plan
    from tensorstow.ir.simulate import simulate

    file = read_plan(path)
    before = simulate(file.plan, file.graph, file.machine)
    io_ns, measured_ns = max(before.lane_busy_ns.values(), default=0), 1e9 * limit_s["io"]
    rate = io_ns / measured_ns if io_ns and measured_ns else 1.0
    longer = 1e9 * limit_s["compute"] / before.compute_ns
    links = tuple(replace(link, bytes_per_s=link.bytes_per_s * rate) for link in file.machine.links)
    steps = tuple(replace(step, duration_ns=round(step.duration_ns * longer)) for step in file.plan.steps)
    found = simulate(replace(file.plan, steps=steps), file.graph, replace(file.machine, links=links))
    return found.pass_ns * 1e-9 / max(limit_s.values())


def run_peer(folder: Path, case: Case, peer: str, passes: int) -> dict[str, Any]:
    """One peer under the limit itself, with as much in memory as it survives with; 'share' says how much that is."""
    ran: dict[str, Any] = {}
    for share in PEER_SHARES if peer != "mmap" else (0.0,):
        forget(folder)
        arguments = ["bench.streaming_peers", peer, str(folder), str(case.batch), str(case.length)]
        arguments += [str(passes), str(int(share * case.cap_mib))]
        kernel, said = capped(case.cap_mib, [sys.executable, "-m", *arguments])
        ran = kernel | {"share": share} | (json.loads(said) if said else {})
        if "median_s" in ran:
            break
    return ran


@dataclass(frozen=True, slots=True)
class Unit:
    """One run: of a case, by `who` ('plan' and 'tensorstow' are ours), for the `turn`-th time."""

    case: Case
    who: str
    turn: int

    @property
    def key(self) -> str:
        """In the results."""
        return f"{self.case.name} {self.who} {self.turn}"


def units(cases: list[Case], peers: tuple[str, ...], rounds: int) -> Iterator[Unit]:
    """All runs, round by round, so that what is cut short has seen every case; ours and the peers take turns."""
    for turn in range(rounds):
        for case in cases:
            if turn == 0:
                yield Unit(case, "plan", 0)
            for who in ("tensorstow", *peers):
                yield Unit(case, who, turn)


def run(unit: Unit, folder: Path) -> dict[str, Any]:
    """What came of it; 'error' or a return code other than 0 where nothing did."""
    if unit.who == "plan":
        return make_plan(folder, unit.case)
    if unit.who == "tensorstow":
        return run_ours(folder, unit.case)
    return run_peer(folder, unit.case, unit.who, 2 if unit.case.batch * unit.case.length < MANY_TOKENS else 1)
