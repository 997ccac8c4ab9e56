"""MEMO: a part of each layer's activations is swapped, the rest recomputed; one decision for all layers.

Source: Zhao et al., 'MEMO: Fine-grained Tensor Management For Ultra-long Context LLM Training' (arXiv 2407.12117).
Section 4.1 (token-wise recomputation and swapping): of a layer's skeletal activations, its input and the result of its
attention are always swapped, the first as all recomputation starts there, the second as it is dearest to make again; of
the others a fraction alpha of the tokens is swapped, the rest recomputed, where alpha is the largest with

    (S_input + S_attention + alpha S_others) / B <= T_layer,     and what is swapped within the tier below;

section 4.2 (bi-level planning): what is planned for one layer is used for all of them.

Adapted: storages are not cut by tokens here, so alpha picks whole ones: the others of a layer in the order of time per
byte, dearest first, as many as come nearest to alpha from below; what cannot be repeated is swapped too. Layers are the
longest run of equal stretches before the turn; without two of them the method does not apply. Nothing is given up in
the last two layers, as in MEMO, whose backward pass comes at once, unless memory asks for it. Weights, gradients and
optimizer states stay.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import NotApplicableError, TimeLimitError
from ...ir.plan import Plan
from ...ir.sizes import format_size
from ..instance import Instance
from ..one_way import store_link
from ..place import place
from ..realise import realise
from ..recompute_orders import Flow, recompute_order
from ..stays import Decisions, live_peak, make_stays
from ..strategies import Effort, register
from .capuchin import evicted_gaps
from .checkpointing import recomputable, too_small

KEPT_LAYERS = (2, 1, 0)
"""How many of the last layers are left alone: MEMO's two, as their backward comes at once, and fewer."""
ALPHA_STEPS = 8
"""Where the closed form's alpha finds no addresses, alpha falls in so many steps to 0."""


@register
@dataclass(frozen=True, slots=True)
class Memo:
    """`alpha`: the fraction swapped; None: by the closed form, falling until addresses are found."""

    name: ClassVar[str] = "memo"
    alpha: float | None = None

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The plan of the first alpha, from the closed form down, that fits."""
        flow = recomputable(instance, self.name)
        layers = equal_layers(flow)
        if len(layers) < 2:
            raise NotApplicableError(
                f"strategy '{self.name}' is for networks of equal layers; '{instance.graph.name}' has none that repeat"
            )
        if store_link(instance) is None:
            raise NotApplicableError(
                f"strategy '{self.name}' moves activations below, and machine '{instance.machine.name}' has no link "
                f"from tier '{instance.fast.name}' to '{instance.home.name}'"
            )
        began, least = time.monotonic(), None
        for kept, alpha in self._choices(instance, flow, layers):
            swapped, again = layer_policy(flow, layers[: len(layers) - kept], alpha)
            order = recompute_order(flow, again)
            posed = instance.reordered(order)
            evicted = evicted_gaps(posed, flow, swapped)
            stays = make_stays(posed, evicted)
            peak = live_peak(posed, stays)
            least = peak if least is None else min(least, peak)
            left = effort.time_limit_s - (time.monotonic() - began)
            if peak <= instance.capacity_nbytes:
                decisions = Decisions(evicted, {}, prefetch=True)
                placed = place(posed, stays, decisions, packing_time_s=max(0.1, left / 4), seed=effort.seed)
                if placed is not None:
                    return realise(posed, placed, self.name)
            if left <= 0:
                break
        if least is not None and least > instance.capacity_nbytes:
            raise too_small(instance, self.name, least)
        raise TimeLimitError(
            f"strategy '{self.name}' found no addresses inside {format_size(instance.fast.usable_nbytes)} of tier "
            f"'{instance.fast.name}' in {effort.time_limit_s:g} s; give it more memory or more time"
        )

    def _choices(self, instance: Instance, flow: Flow, layers: Sequence[Sequence[str]]) -> Iterator[tuple[int, float]]:
        best = self.alpha if self.alpha is not None else largest_alpha(instance, flow, layers)
        for kept in KEPT_LAYERS:
            if kept < len(layers):
                yield kept, best
        for step in reversed(range(ALPHA_STEPS)):
            yield 0, best * step / ALPHA_STEPS


def equal_layers(flow: Flow) -> tuple[tuple[str, ...], ...]:
    """The longest run of equal stretches of operators before the turn: types and bytes repeat with the same period."""
    ops = flow.order[: flow.turn]
    kinds = [_kind(flow, op) for op in ops]
    best, start, period = 0, 0, 0
    for length in range(2, len(ops) // 2 + 1):
        run = 0
        for i in range(len(ops) - length):
            run = run + 1 if kinds[i] == kinds[i + length] else 0
            # A run counts by the whole stretches it covers; of equals the shortest period, which is found first.
            covered = (run // length + 1) * length if run >= length else 0
            if covered > best:
                best, start, period = covered, i - run + 1, length
    if not period:
        return ()
    return tuple(ops[a : a + period] for a in range(start, start + best, period))


def _kind(flow: Flow, op: str) -> tuple[object, ...]:
    size = flow.graph.storage
    own = flow.graph.operator[op]
    return own.op_type, tuple(size[s].nbytes for s in flow.reads[op]), tuple(size[s].nbytes for s in flow.writes[op])


def skeletal(flow: Flow, layer: Sequence[str]) -> tuple[list[str], list[str]]:
    """What waits over the turn of a layer: (always swapped, others in the order of time per byte, dearest first).

    Always swapped are the layer's input, its attention's result, and what cannot be made again.
    """
    size = flow.graph.storage
    own = list(dict.fromkeys(s for op in layer for s in flow.writes[op] if flow.awaited(s)))
    inputs = [s for s in dict.fromkeys(flow.reads[layer[0]]) if not size[s].homed and flow.awaited(s)]
    attention = {s for op in layer if flow.graph.operator[op].cost_class == "attention" for s in flow.writes[op]}
    fixed = [s for s in own if s in attention or s not in flow.maker]
    others = [s for s in own if s not in fixed and s not in inputs]
    others.sort(key=lambda s: -flow.duration_of(flow.maker[s]) / size[s].nbytes)
    return list(dict.fromkeys([*inputs, *fixed])), others


def largest_alpha(instance: Instance, flow: Flow, layers: Sequence[Sequence[str]]) -> float:
    """The closed form: what the link moves while a layer computes, and what the tier below holds for all of them."""
    size = flow.graph.storage
    always, others = skeletal(flow, layers[len(layers) // 2])
    fixed, rest = (sum(size[s].nbytes for s in part) for part in (always, others))
    link = store_link(instance)
    if link is None or not rest:
        return 0.0 if link is None else 1.0
    layer_ns = sum(flow.duration_of(op) for op in layers[len(layers) // 2])
    hidden = link.bytes_per_s * 1e-9 * layer_ns
    homed = sum(s.nbytes for s in flow.graph.storages if s.homed)
    below = (instance.home.usable_nbytes - homed) / len(layers)
    return min(1.0, max(0.0, (min(hidden, below) - fixed) / rest))


def layer_policy(flow: Flow, layers: Sequence[Sequence[str]], alpha: float) -> tuple[dict[str, int], set[str]]:
    """What is swapped, after which step, and which operators are called again, in each of these layers alike."""
    size = flow.graph.storage
    swapped: dict[str, int] = {}
    again: set[str] = set()
    for layer in layers:
        always, others = skeletal(flow, layer)
        budget = alpha * sum(size[s].nbytes for s in others)
        moved = list(always)
        for s in others:
            if size[s].nbytes <= budget:
                budget -= size[s].nbytes
                moved.append(s)
        swapped |= {s: max(t for t in flow.uses[s] if t < flow.turn) for s in moved}
        kept = {flow.maker[s] for s in moved if s in flow.maker}
        # What a later layer begins with is that layer's input; it is swapped there.
        passed_on = {op for op in layer if any(s in _entries(flow, layers) for s in flow.writes[op])}
        again |= {op for op in layer if op in flow.repeatable} - kept - passed_on
    return swapped, again


def _entries(flow: Flow, layers: Sequence[Sequence[str]]) -> set[str]:
    """What layers begin with."""
    return {s for layer in layers for s in flow.reads[layer[0]]}
