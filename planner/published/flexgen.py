"""FlexGen (Sheng et al., ICML 2023, arXiv 2303.06865): percentages by an LP, weights split by midpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ...ir.errors import InfeasibleError, TimeLimitError
from ...ir.plan import Plan
from ..instance import Instance
from ..stays import Decisions, Placed
from ..strategies import Effort, register
from .common import fitted
from .flexgen_model import Layers, Policy, divide, evictions, measure, predicted_s, solve_policy


@register
@dataclass(frozen=True, slots=True)
class FlexGen:
    """One policy for all layers: percentages of weights and cache per tier, found by a cost model and an LP (section
    4.3), executed layer by layer, the next layer's tensors moving while this one computes (section 4.1, algorithm 1).

    The cost model: T = sum over layers of max(load, store, compute) where moving overlaps computing; memory = what is
    at home in the fast tier + the streamed weights of this layer and the next + what the layer works on. Without
    overlap (FlexGen's switch of that name) the three add up and one layer's weights are enough; it is used where two
    layers do not fit. Section 4.3 takes all layers to be equal; here each has its own row, which is the same when they
    are. Weights get their homes as `init_weight_list` of the published code gives them (see `homes`).

    Adapted:
    - Two tiers: wc and wd (cc, cd) are one share, 1 - wg.
    - A graph has no layers. The weights in the order of first use are cut into consecutive parts of equal bytes, and
      the operators with them. FlexGen searches batch sizes in an outer loop with an LP each; the batch of a graph is
      given, so the outer loop searches the number of layers, and the micro-batch block schedule (zig-zag) does not
      apply.
    - The cache (keys and values) is what rests over at least one whole layer: made in one, read two or more later.
      Hidden states go from a layer straight to the next: with one batch they have no time to leave, so hg = 1. FlexGen
      splits a cache tensor; here whole tensors are spread so that their bytes follow the percentage in program order.
    - Addresses are FlexGen's allocator's business; ours places, and no load begins before the layer ahead of its own.

    `layers`: their number, 0 to search. `realised`: how many of the policies that the model likes best are tried in the
    simulator; more only where none of them can be placed.
    """

    name: ClassVar[str] = "flexgen"
    layers: int = 0
    realised: int = 16

    def plan(self, instance: Instance, effort: Effort) -> Plan:
        """The fastest of the best policies. Raises InfeasibleError or TimeLimitError where none can be placed."""
        deadline = time.monotonic() + effort.time_limit_s
        counts = [self.layers] if self.layers else _counts(instance)
        divided = {layers.begins: layers for layers in (divide(instance, count) for count in counts)}
        solved = [(solve_policy(instance, layers, instance.capacity_nbytes), layers) for layers in divided.values()]
        ranked = [(policy, layers) for policy, layers in solved if policy is not None]
        ranked.sort(key=lambda pair: predicted_s(instance, pair[1], pair[0]))
        best, failure = None, None
        for tried, (policy, layers) in enumerate((*ranked, *_last_resorts(instance))):
            if best is not None and (tried >= self.realised or time.monotonic() > deadline):
                break
            try:
                plan = _realise(instance, effort, self.name, layers, policy)
            except (InfeasibleError, TimeLimitError) as error:
                failure = error
                continue
            if best is None or plan.certificate.simulated_s < best.certificate.simulated_s:
                best = plan
        if best is None:
            raise failure or InfeasibleError(f"strategy '{self.name}' has no policy for '{instance.graph.name}'")
        return best


def _counts(instance: Instance) -> list[int]:
    """Numbers of layers to try: up to one weight a layer, each a fifth larger than the one before."""
    weights = max(1, sum(i.homed for i in instance.items))
    counts = [min(weights, 2)]
    while counts[-1] < weights:
        counts.append(min(weights, counts[-1] + max(1, counts[-1] // 5)))
    return counts


def _last_resorts(instance: Instance) -> Iterator[tuple[Policy, Layers]]:
    """Nothing at home in the fast tier and every operator a layer, one after another: what needs least memory."""
    if not instance.steps:
        return
    single = measure(instance, tuple(range(instance.steps)))
    yield Policy(0.0, 1.0, False), single
    yield Policy(0.0, 0.0, False), single


def _realise(instance: Instance, effort: Effort, name: str, layers: Layers, policy: Policy) -> Plan:
    """The policy placed; where whole tensors do not fit as shares did, the LP is asked again under less capacity."""

    def decide(capacity_nbytes: int) -> Decisions | None:
        chosen: Policy | None = policy
        if capacity_nbytes != instance.capacity_nbytes:
            chosen = solve_policy(instance, layers, capacity_nbytes)
        if chosen is None:
            return None
        return Decisions(evictions(instance, layers, chosen), prefetch=chosen.overlap)

    def one_layer_ahead(placed: list[Placed]) -> None:
        for piece in placed:
            if piece.stay.loads:
                piece.start = max(piece.start, _earliest(instance, layers, piece))

    return fitted(instance, effort, name, decide, one_layer_ahead)


def _earliest(instance: Instance, layers: Layers, piece: Placed) -> int:
    """The begin of the layer before the one that the load is for, in the pass before if that was the last layer."""
    layer = layers.of(piece.stay.first)
    return layers.begins[layer - 1] - (0 if layer else instance.steps)
