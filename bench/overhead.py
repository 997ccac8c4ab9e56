"""What an operator costs more when a plan runs the module: small models that stay resident, beside the same without.

Both run in one process and take turns, pass by pass, on one thread; nothing moves, so nothing waits, and the thread's
own time is taken, which other processes disturb less than the clock on the wall. The difference of the two lower
quartiles is divided by the operators of a pass that compute (views are none). Beside it stands a number that no load
disturbs: calls of functions, Python's and C's, that the interpreter sees in a pass more than without a plan, for each
operator. On a quiet box one takes 0.05 to 0.3 us.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import tensorstow as ts

from .common import table

PASSES = 400
LIMIT_US = 2.0
COMMON: dict[str, Any] = {"vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
GATED: dict[str, Any] = {**COMMON, **SIZES, "num_key_value_heads": 2, "intermediate_size": 256}


def _mlp(width: int = 256, layers: int = 12) -> nn.Module:
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.GELU())])


def _t5(t: Any) -> Any:
    sizes = {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 4, "num_heads": 4}
    return t.T5ForConditionalGeneration(t.T5Config(**COMMON, **sizes, decoder_start_token_id=0))


MODELS: dict[str, Callable[[Any], Any]] = {
    "mlp": lambda t: _mlp(),
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**GATED)),
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**COMMON, n_embd=128, n_layer=4, n_head=4, n_positions=64)),
    "mixtral": lambda t: t.MixtralForCausalLM(t.MixtralConfig(**GATED, num_local_experts=4)),
    "opt": lambda t: t.OPTForCausalLM(
        t.OPTConfig(**COMMON, **SIZES, ffn_dim=256, word_embed_proj_dim=128, max_position_embeddings=64)
    ),
    "bloom": lambda t: t.BloomForCausalLM(t.BloomConfig(**COMMON, hidden_size=128, n_layer=4, n_head=4)),
    "t5": _t5,
    "mamba": lambda t: t.MambaForCausalLM(t.MambaConfig(**COMMON, hidden_size=128, num_hidden_layers=4)),
}


def inputs(name: str, rows: int) -> dict[str, Any]:
    """One pass's keyword arguments: `rows` tokens, or rows."""
    if name == "mlp":
        return {"input": torch.randn(rows, 256)}
    tokens = torch.arange(rows)[None] + 3
    return {"input_ids": tokens, "use_cache": False} | ({"decoder_input_ids": tokens} if name == "t5" else {})


def case(name: str, passes: int, rows: int) -> dict[str, Any]:
    """One model: quartiles of both, operators of a pass."""
    import transformers

    from tensorstow.planner.pytorch import lower_module

    made: list[nn.Module] = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(MODELS[name](transformers).eval())
    eager, planned = made
    given = inputs(name, rows)
    operators = len(lower_module(eager, (), given, name=name).graph.operators)
    planned = ts.apply(ts.plan(planned, given, machine=ts.Machine.detect()), planned, threads=1)
    found: dict[str, list[float]] = {"eager": [], "planned": []}
    with torch.no_grad():
        for number in range(passes + 20):
            for kind, module in (("eager", eager), ("planned", planned))[:: 1 if number % 2 else -1]:
                begin = time.thread_time_ns()
                module(**given)
                taken = time.thread_time_ns() - begin
                if number >= 20:
                    found[kind].append(taken * 1e-3)
    more = calls(lambda: planned(**given)) - calls(lambda: eager(**given))
    eager_us, planned_us = (statistics.quantiles(found[k], n=4)[0] for k in ("eager", "planned"))
    executor: Any = planned.tensorstow
    executor.close()
    return {
        "model": name,
        "operators": operators,
        "eager_us": eager_us,
        "planned_us": planned_us,
        "ratio": planned_us / eager_us,
        "us_per_operator": (planned_us - eager_us) / operators,
        "calls_per_operator": more / operators,
    }


def calls(function: Callable[[], Any]) -> int:
    """Calls of functions, of Python and of C, that this thread makes in `function`, in its second run."""
    number = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    with torch.no_grad():
        function()
        before = sys.getprofile()
        sys.setprofile(seen)
        try:
            function()
        finally:
            sys.setprofile(before)
    return number


def main(arguments: Sequence[str] = ()) -> dict[str, Any]:
    """The table. `python -m bench.overhead --help` selects."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead")
    parser.add_argument("--models", default=",".join(MODELS), help="which, of these")
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--tokens", type=int, default=4, help="of a pass")
    given = parser.parse_args(arguments)
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    try:
        for name in given.models.split(","):
            gc.collect()
            torch.set_num_threads(1)
            rows.append(case(name, given.passes, given.tokens))
    finally:
        torch.set_num_threads(before)
    table(
        f"what an operator costs more by a plan, everything resident (aim: {LIMIT_US} us)",
        ("model", "operators", "eager us", "planned us", "ratio", "us/operator", "calls/operator"),
        [
            [
                r["model"],
                str(r["operators"]),
                f"{r['eager_us']:.0f}",
                f"{r['planned_us']:.0f}",
                f"{r['ratio']:.3f}",
                f"{r['us_per_operator']:.2f}",
                f"{r['calls_per_operator']:.2f}",
            ]
            for r in rows
        ],
    )
    return {"passes": given.passes, "tokens": given.tokens, "rows": rows}


if __name__ == "__main__":
    main(sys.argv[1:])
