"""How long the loop over experts takes here: a layer's own code, run on made-up experts that come from memory.

What torch.export records of such a layer is one grouped product, and a cache of experts runs the loop that transformers
calls 'eager' instead: several small operators an expert, whose weights are in no cache of the processor. So the loop
itself is timed, as `ExpertForwards` runs it, over a ring of experts that is larger than the last of these caches.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from ...ir.caches import cache_nbytes
from ...ir.program import ExpertLayer
from ..memory import available_nbytes, settle_allocator

_ROUNDS = 9
_WARM = 2
_CACHES = 2
"""How many times the processor's last cache the ring is larger than one expert."""
_MEETS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a layer's own code may raise for made-up tokens: the formulas' times remain then."""


@dataclass(frozen=True, slots=True)
class LoopTime:
    """Nanoseconds of a call of a layer's loop over experts: `fixed_ns`, and `each_ns` for every expert that its tokens
    ask for."""

    fixed_ns: float
    each_ns: float

    def call_ns(self, asked: float) -> float:
        """Of a call that asks for so many experts."""
        return self.fixed_ns + asked * self.each_ns


def time_loops(
    module: nn.Module, layers: Sequence[ExpertLayer], tokens: int, *, slots: int, threads: int
) -> tuple[LoopTime, ...] | None:
    """By layer, the time of a call of `tokens` tokens on `threads` threads, where `slots` experts of each layer lie in
    memory; layers that are alike are measured once. The module may be on 'meta'.

    None where that cannot be said: a list of experts, code that does not run on made-up tokens, too little memory.
    """
    parts = dict(module.named_modules())
    known: dict[tuple[Any, ...], LoopTime | None] = {}
    found: list[LoopTime] = []
    for layer in layers:
        if not layer.fused:
            return None
        part = parts[layer.module]
        kind = (type(part), layer.experts, layer.top_k, layer.nbytes, _forms(part))
        if kind not in known:
            held = min(slots * len(layers) * layer.nbytes, layer.nbytes + _CACHES * cache_nbytes(3))
            known[kind] = _time_loop(part, layer, tokens, held_nbytes=held, threads=threads)
        time_of = known[kind]
        if time_of is None:
            return None
        found.append(time_of)
    return tuple(found)


def _forms(part: nn.Module) -> tuple[Any, ...]:
    return tuple((n, tuple(p.shape), p.dtype) for n, p in part.named_parameters(recurse=False))


def _time_loop(part: nn.Module, layer: ExpertLayer, tokens: int, *, held_nbytes: int, threads: int) -> LoopTime | None:
    copies = max(2, -(-held_nbytes // layer.nbytes))
    if copies * layer.nbytes > available_nbytes():
        return None
    most = min(layer.experts, layer.top_k * tokens)
    few = max(1, most // 2) if tokens == 1 else min(most, layer.top_k)
    try:
        with _as_executed(threads):
            loop = _Loop(part, layer, copies)
            many_ns = loop.run_ns(tokens, most)
            few_ns = loop.run_ns(tokens, few) if few < most else 0.0
    except _MEETS:
        return None
    if few == most:
        return LoopTime(0.0, many_ns / most)
    each_ns = min(max(0.0, (many_ns - few_ns) / (most - few)), many_ns / most)
    return LoopTime(many_ns - most * each_ns, each_ns)


@contextmanager
def _as_executed(threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    settle_allocator()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


class _Ring:
    """Stands for a fused parameter: every expert that is asked for is the next of `copies`."""

    def __init__(self, parameter: torch.Tensor, copies: int) -> None:
        self.shape = parameter.shape
        self._experts = torch.empty(copies, *parameter.shape[1:], dtype=parameter.dtype)
        self._experts.normal_(std=parameter.shape[-1] ** -0.5)
        self._next = -1

    def __getitem__(self, expert: Any) -> torch.Tensor:
        int(expert)  # as a look-up among slots needs the number
        self._next = (self._next + 1) % len(self._experts)
        return self._experts[self._next]


class _Loop:
    """The eager loop of a layer's class, on a stand-in for the layer."""

    def __init__(self, part: nn.Module, layer: ExpertLayer, copies: int) -> None:
        self._layer = layer
        self._part = copy.copy(part)
        held: dict[str, Any] = dict(part._parameters)  # pyright: ignore[reportPrivateUsage]
        first = held[layer.parameters[0]]
        self._width = first.shape[1] if getattr(part, "is_transposed", False) else first.shape[-1]
        self._dtype = first.dtype
        for name, parameter in held.items():
            if name in layer.parameters:
                held[name] = _Ring(parameter, copies)
            elif parameter is not None and parameter.is_meta:
                held[name] = torch.zeros(parameter.shape, dtype=parameter.dtype)
        self._part.__dict__["_parameters"] = held
        self._eager: Any = type(part).forward.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]

    def run_ns(self, tokens: int, distinct: int) -> float:
        """Of a call whose tokens ask for `distinct` experts in all."""
        top_k = min(self._layer.top_k, distinct)
        ids = (torch.arange(tokens * top_k) % distinct).reshape(tokens, top_k)
        gates = torch.full((tokens, top_k), 1 / top_k, dtype=self._dtype)
        hidden = torch.randn(tokens, self._width).to(self._dtype)
        taken: list[int] = []
        for _ in range(_WARM + _ROUNDS):
            began = time.perf_counter_ns()
            self._eager(self._part, hidden, ids, gates)
            taken.append(time.perf_counter_ns() - began)
        return float(median(taken[_WARM:]))
