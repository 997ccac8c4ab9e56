"""A mixture-of-experts model of 3.6 GB that generates text in a third of that: experts cached by our policy, by LRU on
demand in the same runtime, and accelerate's disk offload, each in fresh processes under the kernel's memory limit.

The weights are random, so routing has no meaning, but it has habits: some experts are chosen far more often than
others. It is recorded on some texts, the plan predicts by that, and what is measured are other texts of the same
length: the prompts' passes, and new tokens a second after them, each beside what was predicted. Tokens are sampled: the
likeliest ones of random weights soon repeat, and so do their experts. The quick run is `python -m bench.moe --rounds 1
--caps 1200`; `--help` selects.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .common import MEMCAP, capped, command, model_folder, table
from .streaming_units import SLACK, forget

CAPS_MB = (1200, 1700)
KINDS = ("cached", "lru", "accelerate")
PROMPT, NEW, WARM = 16, 32, 8
ACCELERATED = 6
"""New tokens of accelerate's text: it takes seconds for each, and for each the same."""
RECORDED = range(4)
"""Seeds of the texts that are recorded; those measured, and the one before them, have others."""
TOLD = ("prefill_s", "token_s", "hit_rate", "read_nbytes", "stalled_s", "decided_s")
"""Of what a worker says, what the table has."""
WARMING, MEASURED = 8, (9, 10, 11)


def moe() -> Path:
    """An OLMoE of 8 layers with 32 experts of 12.6 MB, of which a token chooses 4; random, in fp32 shards."""
    folder = model_folder() / "olmoe-32"
    if not (folder / "model.safetensors.index.json").exists():
        import torch
        from transformers import OlmoeConfig, OlmoeForCausalLM

        torch.manual_seed(0)
        shape = OlmoeConfig(
            hidden_size=1024,
            intermediate_size=1024,
            num_hidden_layers=8,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_experts=32,
            num_experts_per_tok=4,
            vocab_size=32000,
            max_position_embeddings=1024,
        )
        OlmoeForCausalLM(shape).save_pretrained(folder, max_shard_size="1GB")
    return folder


def planned(folder: Path, cap_mib: int) -> tuple[Path, dict[str, Any]]:
    """The plan for a process of `cap_mib` by the routing of other texts, with its store made, and what `plan --json`
    says of it; `blind_hit_rate` is what it said before it knew that routing."""
    path = model_folder() / f"olmoe-32.{cap_mib}.plan.json"
    trace = path.with_suffix(".routing.npz")
    dims = ("--dim", f"length={PROMPT}", "--new", str(NEW))
    wanted = ("plan", f"hf:{folder}", *dims, "--process-limit", f"{cap_mib}MiB", "-o", str(path))
    blind = command(*wanted)
    if "error" in blind or "experts" not in blind:
        return path, blind
    recording = [sys.executable, "-m", "bench.moe", "--record", str(path), str(trace)]
    subprocess.run(recording, check=True)  # this makes the weight store too, outside the limit
    said = command(*wanted, "--routing", str(trace))
    return path, said | {"blind_hit_rate": blind["experts"]["hit_rate"]}


def record(path: Path, trace: Path) -> None:
    """Generate texts by the plan in `path`, and write what their tokens choose to `trace`."""
    import tensorstow as ts
    from tensorstow.ir.files import read_plan
    from tensorstow.moe_recording import narrowed, record_routing
    from tensorstow.planner.experts.trace import write_trace

    model = ts.apply(read_plan(path))
    try:
        recorder = record_routing(model.tensorstow.experts)
        for seed in RECORDED:
            _generate(model, NEW, seed)
        model.tensorstow.experts.record(None)
        write_trace(narrowed(recorder.trace()), trace)
    finally:
        model.tensorstow.close()


def case(folder: Path, cap_mb: int, kinds: Sequence[str], rounds: int) -> dict[str, Any]:
    """One limit: the plan, then everybody in turn."""
    cap_mib = cap_mb * 1_000_000 >> 20
    path, said = planned(folder, cap_mib)
    row: dict[str, Any] = {"cap_mb": cap_mb, "plan": said, "runs": {}}
    for _ in range(0 if "error" in said else rounds):
        for kind in kinds:
            forget(folder)
            limit = cap_mib if kind == "accelerate" else int(cap_mib * SLACK)
            worker = [sys.executable, "-m", "bench.moe", "--worker", kind, str(folder), str(path), str(cap_mib // 3)]
            kernel, printed = capped(limit, worker)
            row["runs"].setdefault(kind, []).append(kernel | (json.loads(printed) if printed else {}))
    return row


def work(kind: str, folder: Path, path: Path, mib: int) -> dict[str, Any]:
    """Generate text as `kind` does: seconds of the prompt's pass and of a new token, and what the cache of experts did
    in the latter."""
    with tempfile.TemporaryDirectory(dir=model_folder()) as scratch:
        if kind == "accelerate":
            from .streaming_peers import accelerated

            return _generate(accelerated(folder, mib, Path(scratch), own_format=False), ACCELERATED, MEASURED[0])
        import tensorstow as ts
        from tensorstow.ir.files import read_plan

        file = read_plan(path)
        assert file.module is not None
        assert file.module.experts is not None, "the experts fit: nothing to compare"
        if kind == "lru":
            on_demand = replace(file.module.experts, decay=None, ahead=0, memory=0)
            file = replace(file, module=replace(file.module, experts=on_demand))
        model = ts.apply(file)
        try:
            _generate(model, WARM, WARMING)
            texts = [_generate(model, NEW, seed) for seed in MEASURED]
            return {key: statistics.mean(text[key] for text in texts) for key in texts[0]}
        finally:
            model.tensorstow.close()


def _generate(model: Any, new: int, seed: int) -> dict[str, Any]:
    """Seconds of a text of `new` tokens, by pass; counters of its new tokens' passes, where experts are cached."""
    import torch

    prompt = torch.randint(3, model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    experts = getattr(getattr(model, "tensorstow", None), "experts", None)
    ends: list[float] = []
    counts: list[Any] = []

    def passed(*_: Any) -> None:
        ends.append(time.perf_counter())
        counts.append(None if experts is None else replace(experts.stats))

    handle = model.register_forward_hook(passed)
    try:
        began = time.perf_counter()
        model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0)
    finally:
        handle.remove()
    tokens = len(ends) - 1
    told = {"prefill_s": ends[0] - began, "token_s": (ends[-1] - ends[0]) / tokens}
    return told if experts is None else told | _since(counts[-1], counts[0], tokens)


def _since(now: Any, before: Any, tokens: int) -> dict[str, Any]:
    hits, misses = now.hits - before.hits, now.misses - before.misses
    return {
        "hit_rate": hits / max(hits + misses, 1),
        "ahead": (now.ahead - before.ahead) / tokens,
        "ahead_used": (now.ahead_used - before.ahead_used) / tokens,
        "read_nbytes": (now.read_nbytes - before.read_nbytes) / tokens,
        "stalled_s": (now.stalled_ns - before.stalled_ns) * 1e-9 / tokens,
        "decided_s": (now.decided_ns - before.decided_ns) * 1e-9 / tokens,
    }


def _cells(row: dict[str, Any]) -> list[list[str]]:
    plan = row["plan"]
    if "error" in plan:
        return [[str(row["cap_mb"]), str(plan["error"])[:100]]]
    told, planned = plan.get("experts", {"slots": 0, "hit_rate": 1.0, "policy": ""}), plan["generation"]
    found: list[list[str]] = []
    for kind, runs in row["runs"].items():
        done = [r for r in runs if "token_s" in r]
        ours = kind == "cached"
        head = [str(row["cap_mb"]), told["policy"] if ours else kind, str(told["slots"])]
        if not done:
            found.append([*head, f"killed: {runs[0]}"[:80]])
            continue
        middle = {key: statistics.median(r[key] for r in done) for key in TOLD if key in done[0]}
        cells = [f"{1 / middle['token_s']:.2f}"]
        cells += (
            [f"{planned['decode_tokens_per_s']:.2f}", f"{middle['token_s'] / planned['token_s']:.3f}"]
            if ours
            else ["", ""]
        )
        cells.append(f"{middle['prefill_s']:.2f}" + (f" ({planned['prefill_s']:.2f})" if ours else ""))
        if "hit_rate" in middle:
            blind = plan.get("blind_hit_rate", told["hit_rate"])
            cells += [
                f"{middle['hit_rate']:.3f}" + (f" ({told['hit_rate']:.3f}, blind {blind:.3f})" if ours else ""),
                f"{middle['read_nbytes'] / 1e6:.0f}" + (f" ({told['read_nbytes_expected'] / 1e6:.0f})" if ours else ""),
                f"{middle['stalled_s'] * 1e3:.0f}" + (f" ({told['wait_s_expected'] * 1e3:.0f})" if ours else ""),
                f"{middle['decided_s'] * 1e3:.1f}",
            ]
        found.append(head + cells)
    return found


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table; empty where there is no tool to set a limit with."""
    parser = argparse.ArgumentParser(prog="python -m bench.moe")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--caps", default=",".join(map(str, CAPS_MB)), help="MB of the whole process")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, of these")
    given = parser.parse_args(arguments)
    if not MEMCAP.exists():
        print(f"moe: skipped, {MEMCAP.name} is not at hand (set TENSORSTOW_MEMCAP)")
        return {"rows": []}
    folder = moe()
    kinds = tuple(filter(None, given.kinds.split(",")))
    rows = [case(folder, int(cap), kinds, given.rounds) for cap in given.caps.split(",")]
    speed = ("tokens/s", "predicted", "measured/predicted s", "prompt s")
    columns = ("cap MB", "who", "slots a layer", *speed, "hit rate", "MB read", "ms waited", "ms deciding")
    title = (
        "an OLMoE of 3.6 GB (fp32) under a hard memory limit; of a new token after the prompt (in brackets: predicted)"
    )
    table(title, columns, [c for r in rows for c in _cells(r)])
    return {"rows": rows}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        record(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit(0)
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
    else:
        main(sys.argv[1:])
