"""Experts of a module that stay in the store: which layers have them, and how many of them to keep in memory.

What tokens choose is known only when they do. So a plan places the other weights, and leaves room for a cache of
experts beside them; `runtime/module/experts.py` fills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ...ir.errors import InfeasibleError
from ...ir.graph import Graph, StorageKind
from ...ir.machine import Machine
from ...ir.program import ExpertCaching, ExpertLayer
from ...ir.sizes import format_size
from ..instance import make_instance
from .lowered import OpLowered
from .parts import ModuleLowered

BLOCK = 4096
DECAY = 0.95
"""The decay of the policy 'decayed' of traces."""
UNIFORM = "if tokens choose evenly and independently"
TOP_K = "aten.topk.default"


@dataclass(frozen=True, slots=True)
class Routed:
    """A layer with experts, and `tokens` of an example pass that choose among them."""

    layer: ExpertLayer
    tokens: int

    @property
    def asked(self) -> int:
        """Experts that a pass may ask for at once."""
        return min(self.layer.experts, self.layer.top_k * self.tokens)

    @property
    def expected(self) -> float:
        """Experts that a pass asks for, where each token chooses evenly and independently."""
        e = self.layer.experts
        return e * (1 - (1 - min(1.0, self.layer.top_k / e)) ** self.tokens)


def find_fused(module: nn.Module, lowered: OpLowered) -> tuple[Routed, ...]:
    """Layers whose experts are slices of parameters [experts, ...] and that transformers computes by its interface for
    experts, in the order of the module.

    Biases and what else is small stay with the other weights.
    """
    dense = {w.names[0] for w in lowered.weights.values() if len(w.names) == 1 and w.strides is None and not w.written}
    found: list[Routed] = []
    for name, part in module.named_modules():
        experts = _fused_experts(part)
        if not experts:
            continue
        held: dict[str, Any] = dict(part.named_parameters(recurse=False))
        fused = tuple(n for n, p in held.items() if p.dim() == 3 and p.shape[0] == experts)
        if not fused or not all(f"{name}.{n}".lstrip(".") in dense for n in fused):
            continue
        tokens, top_k = _routing(lowered, name.rpartition(".")[0], experts)
        nbytes = sum(held[n].numel() * held[n].element_size() for n in fused) // experts
        found.append(Routed(ExpertLayer(name, experts, top_k, fused, nbytes, True), tokens))
    return tuple(found)


def _fused_experts(part: nn.Module) -> int:
    """Experts of a module under transformers' interface for them; 0 of any other module."""
    marked = all(hasattr(part, name) for name in ("has_gate", "is_transposed", "num_experts"))
    known = marked and hasattr(type(part).forward, "__wrapped__")
    experts: Any = getattr(part, "num_experts", 0) if known else 0
    return experts if isinstance(experts, int) else 0


def _routing(lowered: OpLowered, block: str, experts: int) -> tuple[int, int]:
    """Tokens of the pass, and experts that each chooses: the shape of the last choice that is made in `block`."""
    inside = f"{block}." if block else ""
    for op in reversed(lowered.graph.operators):
        module = lowered.calls[op.id].module
        if op.op_type == TOP_K and (module == block or module.startswith(inside)) and len(op.outputs) == 2:
            shape = lowered.graph.tensor[op.outputs[1]].shape
            if shape:
                k = min(shape[-1], experts)
                tokens = 1
                for n in shape[:-1]:
                    tokens *= n
                return max(tokens, 1), k
    return 1, 1


def without_experts(found: ModuleLowered, layers: Sequence[ExpertLayer]) -> ModuleLowered:
    """A module whose plan leaves the experts of `layers` in the store: no operator reads them."""
    tensor = {name: p.tensor for p in found.program.parameters for name in p.names}
    graph = found.graph
    left = {tensor[name] for layer in layers for name in expert_parameters(layer)}
    storages = {graph.tensor[t].storage for t in left}
    kinds = tuple(replace(s, kind=StorageKind.EXPERT) if s.id in storages else s for s in graph.storages)
    operators = tuple(replace(o, inputs=tuple(t for t in o.inputs if t not in left)) for o in graph.operators)
    changed = Graph(graph.name, kinds, graph.tensors, operators, graph.inputs, graph.outputs)
    return ModuleLowered(changed, found.program)


def expert_parameters(layer: ExpertLayer) -> tuple[str, ...]:
    """Qualified names of all parameters of a layer's experts."""
    if layer.fused:
        return tuple(f"{layer.module}.{name}".lstrip(".") for name in layer.parameters)
    return tuple(f"{layer.module}.{e}.{name}" for e in range(layer.experts) for name in layer.parameters)


def placed_layers(found: ModuleLowered, layers: Sequence[Routed]) -> tuple[Routed, ...]:
    """Those of which the program places every expert."""
    placed = {p.names[0] for p in found.program.parameters if len(p.names) == 1 and p.strides is None}
    return tuple(r for r in layers if placed.issuperset(expert_parameters(r.layer)))


def slot_nbytes(found: ModuleLowered, layer: ExpertLayer) -> int:
    """The most memory that a slot takes: each parameter begins where its bytes do in a block of the store."""
    nbytes = {n: found.graph.tensor[p.tensor].nbytes for p in found.program.parameters for n in p.names}
    share = layer.experts if layer.fused else 1
    names = expert_parameters(layer)[: len(layer.parameters)]
    return sum(-(-(nbytes[n] // share + BLOCK - 1) // BLOCK) * BLOCK for n in names)


def choose_caching(
    found: ModuleLowered, layers: Sequence[Routed], machine: Machine, *, beside_nbytes: int = 0
) -> ExpertCaching | None:
    """How to cache the experts of `layers`; None where all weights fit, or where a plan that reads whole layers moves
    fewer bytes, as with many tokens at once. Experts of a module list are always cached, in as many slots as there are
    experts if that fits: no operator of the graph reads them.

    The other weights are read in every pass, an expert in some: so they have their room first, and the experts what is
    left, evenly over the layers. Where that is less than one pass asks for, the other weights give room, down to what
    the hungriest part needs. `beside_nbytes` are left for other passes than this one. Raises InfeasibleError where not
    one expert fits then.
    """
    usable = machine.tier[machine.units[0].tier].usable_nbytes - beside_nbytes
    whole = _Sizes.of(found, machine)
    listed = any(not r.layer.fused for r in layers)
    if not layers or (whole.resident_nbytes <= usable and not listed):
        return None
    rest = _Sizes.of(without_experts(found, [r.layer for r in layers]), machine)
    slot = max(slot_nbytes(found, r.layer) for r in layers)
    every = sum(slot_nbytes(found, r.layer) for r in layers)
    asked = max(r.asked for r in layers)
    slots, shared = (usable - rest.resident_nbytes) // every, False
    if slots < asked:
        slots = max(slots, min(asked, (usable - rest.least_nbytes) // every))
    if slots < 1:
        slots, shared = (usable - rest.least_nbytes) // slot, True
    if slots < 1:
        reserve = machine.tier[machine.units[0].tier].reserve_nbytes
        smallest = rest.least_nbytes + slot + reserve + beside_nbytes
        raise InfeasibleError(
            f"module '{found.graph.name}' needs {format_size(rest.least_nbytes)} beside its experts, and "
            f"{format_size(slot)} for one of these; {format_size(usable)} can be planned; the smallest feasible budget "
            f"is {format_size(smallest)}",
            smallest_nbytes=smallest,
        )
    slots = min(slots, sum(r.layer.experts for r in layers) if shared else max(r.layer.experts for r in layers))
    hit_rate = _uniform(layers, slots, shared=shared)
    memory = slots * (slot if shared else every)
    cached = sum(r.expected * (1 - hit_rate) * r.layer.nbytes for r in layers)
    cached += max(0, rest.resident_nbytes + memory - usable)
    if not listed and whole.least_nbytes <= usable and cached >= whole.resident_nbytes - usable:
        return None
    top_k = max(r.layer.top_k for r in layers)
    return ExpertCaching(tuple(r.layer for r in layers), slots, shared, DECAY, top_k, hit_rate, UNIFORM)


def streamed_nbytes(found: ModuleLowered, caching: ExpertCaching, machine: Machine) -> int:
    """What a pass reads of the other weights, at the least: the part for which there is no room beside the slots.
    `found` still has its experts."""
    rest = _Sizes.of(without_experts(found, caching.layers), machine)
    needed = rest.resident_nbytes + slots_nbytes(found, caching)
    return max(0, needed - machine.tier[machine.units[0].tier].usable_nbytes)


def slots_nbytes(found: ModuleLowered, caching: ExpertCaching) -> int:
    """Of all slots. `found` still has its experts."""
    each = [slot_nbytes(found, layer) for layer in caching.layers]
    return caching.slots * (max(each) if caching.shared else sum(each))


def _uniform(layers: Sequence[Routed], slots: int, *, shared: bool) -> float:
    """Share of what a pass asks for that is in memory where every expert is as likely as any other."""
    if shared:
        return min(1.0, slots / sum(r.layer.experts for r in layers))
    asked = sum(r.expected for r in layers)
    return sum(r.expected * min(1.0, slots / r.layer.experts) for r in layers) / asked


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a graph of parts takes with all of its weights resident, and what its hungriest part takes."""

    resident_nbytes: int
    least_nbytes: int

    @classmethod
    def of(cls, found: ModuleLowered, machine: Machine) -> _Sizes:
        tier = machine.units[0].tier
        posed = make_instance(found.graph, machine.with_capacity({tier: 1 << 60}))
        resident = sum(-(-i.nbytes // BLOCK) * BLOCK for i in posed.items)
        return cls(resident + posed.workspace_nbytes, posed.smallest_budget - posed.fast.reserve_nbytes)


def smallest_caching(layers: Sequence[Routed]) -> ExpertCaching | None:
    """That of the least memory: one expert at a time. None without layers of experts."""
    if not layers:
        return None
    return ExpertCaching(tuple(r.layer for r in layers), 1, True, DECAY, 0, 0.0, UNIFORM)


def leave_experts(found: ModuleLowered, caching: ExpertCaching, *, remembered_nbytes: int = 0) -> ModuleLowered:
    """`found` without the experts that `caching` caches, and with the memory that this takes beside the plan: the
    slots, and `remembered_nbytes` for what the policy remembers."""
    nbytes = slots_nbytes(found, caching) + remembered_nbytes
    changed = without_experts(found, caching.layers)
    graph = changed.graph
    operators = tuple(replace(op, workspace_nbytes=op.workspace_nbytes + nbytes) for op in graph.operators)
    program = replace(changed.program, experts=caching)
    return ModuleLowered(replace(graph, operators=operators), program)
