"""Graphs of real networks at operator level, for benchmarks: `cases()` lists them, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tensorstow.ir.graph import Graph

from .builder import Builder, parameters, total_flops
from .onnx_networks import LIGHT, light
from .training import training_graph
from .transformers import LLAMA_1B, LLAMA_8B, LLAMA_TINY, MIXTRAL, MOE_SMALL, LlamaConfig, gpt2, llama
from .vision import densenet121, resnet50, unet

__all__ = [
    "LLAMA_1B",
    "LLAMA_8B",
    "LLAMA_TINY",
    "MIXTRAL",
    "MOE_SMALL",
    "Builder",
    "Case",
    "LlamaConfig",
    "cases",
    "densenet121",
    "gpt2",
    "light",
    "llama",
    "parameters",
    "resnet50",
    "total_flops",
    "training_graph",
    "unet",
]


@dataclass(frozen=True, slots=True)
class Case:
    """A graph to plan, `mode` 'inference' or 'training', and the machines on which it is of interest.

    `machines` are specifications of `machines.machine_for`: 'rtx4090/2' is the profile's unit and two tiers.
    """

    name: str
    mode: str
    build: Callable[[], Graph]
    machines: tuple[str, ...]


GPU = ("rtx4090/2", "rtx4090/2~balanced", "rtx4090/3")
STREAMED = ("rtx4090/2", "rtx4090/3")
EDGE = ("jetson-orin/2", "jetson-orin/2~balanced")
SCRATCHPAD = ("npu-2mib/2",)


def cases() -> tuple[Case, ...]:
    """All cases. Batches and lengths are such that computing takes about as long as moving what exceeds a budget of
    one half on the machine named first; those called 'decode' are one token, and bound by the link."""
    found: list[Case] = []

    def add(name: str, build: Callable[[], Graph], machines: tuple[str, ...]) -> None:
        found.append(Case(name, "inference", build, machines))

    def train(name: str, build: Callable[[], Graph], machines: tuple[str, ...]) -> None:
        found.append(Case(name, "training", lambda: training_graph(build()), machines))

    add("gpt2", partial(gpt2, batch=8, sequence=512, head_parts=8), GPU)
    add("gpt2-decode", partial(gpt2, sequence=1, head_parts=8), STREAMED)
    add("llama-1b", partial(llama, LLAMA_1B, batch=2, sequence=2048, head_parts=8), GPU)
    add("llama-8b", partial(llama, LLAMA_8B, sequence=4096, head_parts=8), GPU)
    add("llama-8b-decode", partial(llama, LLAMA_8B, sequence=1, head_parts=8), STREAMED)
    add("moe", partial(llama, MOE_SMALL, name="moe", batch=4, sequence=1024, head_parts=4), GPU)
    add("mixtral-8", partial(llama, replace(MIXTRAL, layers=8), name="mixtral", sequence=2048, head_parts=4), STREAMED)
    fixed = partial(llama, replace(MIXTRAL, layers=8), name="mixtral", sequence=1, head_parts=4, routing="fixed")
    add("mixtral-8-decode", fixed, STREAMED)
    for name, network in (("resnet50", resnet50), ("densenet121", densenet121)):
        add(name, partial(network, batch=4, dtype="float16"), EDGE)
        add(f"{name}-int8", partial(network, dtype="int8"), SCRATCHPAD)
    add("unet", partial(unet, dtype="float16"), EDGE)
    add("unet-int8", partial(unet, dtype="int8"), SCRATCHPAD)
    for name in LIGHT:
        add(f"onnx-{name}", partial(light, name), ("jetson-orin/2",))
    train("gpt2-train", partial(gpt2, batch=8, sequence=512, logits="all"), GPU)
    train("llama-1b-train", partial(llama, LLAMA_1B, sequence=2048, logits="all"), GPU)
    train("moe-train", partial(llama, MOE_SMALL, name="moe", sequence=1024, logits="all"), GPU)
    train("resnet50-train", partial(resnet50, batch=32, folded=False), GPU)
    train("densenet121-train", partial(densenet121, batch=32, folded=False), GPU)
    train("unet-train", partial(unet, batch=4, folded=False), GPU)
    return tuple(found)
