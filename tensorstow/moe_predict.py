"""Plans that leave experts in the store: what a pass is expected to wait for, and which policy is planned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .hosts import on_processor
from .ir.errors import InputError
from .ir.machine import Link, Machine
from .ir.program import ExpertCaching

if TYPE_CHECKING:
    from torch import nn

    from .moe_forecast import Forecast
    from .moe_passes import Passes
    from .planner.experts.trace import Trace
    from .planner.pytorch import ModuleLowered, OpLowered
    from .planner.pytorch.experts_time import Pace
    from .planner.pytorch.generation import Workload
    from .runtime.module.experts_loop import LoopTime

REMEMBERED = 4096
"""Passes that `recall` compares, if their room is a small part of the slots'."""
LEAST_REMEMBERED = 256
ROOM = 1 / 64
"""Share of the slots' bytes that may be taken for what `recall` remembers."""
SAVED = 0.05
"""Misses an event that `recall` saves against decayed counts, at the least, where nothing is known of the routing: on
the data sets of gpt-oss-20b that nothing was tuned on, at a quarter to a half of the experts in memory."""
SETTLING = 3
"""Rounds in which the share of the link that other weights take is found: they change little after the second."""


@dataclass(frozen=True)
class Passing:
    """A pass whose experts stay in the store: `lowered` in parts (`found`, still with its experts) of `module`, for
    `machine`; `looked_up` are the tables of the parts. `routing` is a trace, `workload` the texts that it is of."""

    found: ModuleLowered
    lowered: OpLowered
    module: nn.Module
    machine: Machine
    looked_up: frozenset[str] = frozenset()
    routing: Path | None = None
    workload: Workload | None = None

    def loops(self, caching: ExpertCaching, tokens: int) -> tuple[LoopTime, ...] | None:
        """What the layers' loops take here; None where the machine is another one, or they cannot be timed."""
        if not on_processor(self.machine):
            return None
        from .module_times import torch_threads
        from .runtime.module.experts_loop import time_loops

        threads = self.machine.units[0].threads or torch_threads()
        return time_loops(self.module, caching.layers, tokens, slots=caching.slots, threads=threads)


@dataclass(frozen=True)
class Expected:
    """`caching`, with what is expected of it, and `found`, the parts of the pass with the times of their experts' loops
    in place of what these were traced as. `decide_ns` is what the policy takes here in a pass."""

    caching: ExpertCaching
    found: ModuleLowered
    decide_ns: float


def recall_memory(caching: ExpertCaching) -> int:
    """Passes that `recall` is to remember for these caches; 0 where it is not for them, or the room is too small."""
    from .runtime.module.experts_recall import recall_nbytes

    if caching.shared or not all(layer.fused for layer in caching.layers):
        return 0
    counts = [layer.experts for layer in caching.layers]
    room = ROOM * caching.slots * sum(layer.nbytes for layer in caching.layers)
    each = recall_nbytes(counts, 1) - recall_nbytes(counts, 0)
    memory = min(REMEMBERED, int((room - recall_nbytes(counts, 0)) / each))
    return memory if memory >= LEAST_REMEMBERED else 0


def expected_best(planned: ExpertCaching, remembering: ExpertCaching | None, passing: Passing, tokens: int) -> Expected:
    """Of the policies for the caches `planned` the one to plan: by what a trace says, deciding counted, else decayed
    counts, or `remembering`, which caches by `recall`, where deciding costs less than it saves at the least."""
    replaying = _Replaying(passing, planned, tokens)
    if passing.routing is not None:
        choices = [planned, replace(planned, ahead=0), replace(planned, ahead=0, decay=None)]
        if remembering is not None:
            choices += [remembering, replace(remembering, ahead=0)]
        found = [replaying.expected(choice) for choice in choices]
        return min(found, key=lambda one: sum(one.caching.wait_ns) + one.decide_ns)
    found = [replaying.expected(choice) for choice in (planned, remembering) if choice is not None]
    if remembering is None:
        return found[0]
    saved_ns = SAVED * sum(replaying.link.transfer_ns(layer.nbytes) for layer in planned.layers)
    return found[1] if found[1].decide_ns - found[0].decide_ns < saved_ns else found[0]


def expected(caching: ExpertCaching, passing: Passing, tokens: int) -> Expected:
    """What is to be expected of a pass of `tokens` under `caching`. Raises InputError for a trace of another model."""
    return _Replaying(passing, caching, tokens).expected(caching)


class _Replaying:
    """The passes to replay, and the pace of this one."""

    def __init__(self, passing: Passing, caching: ExpertCaching, tokens: int) -> None:
        from .moe_passes import drawn_passes, traced_passes
        from .planner.lookups import store_link

        self._passing, self._tokens = passing, tokens
        self.link: Link = store_link(passing.machine)
        trace = None if passing.routing is None else trace_of(caching, passing.routing)
        workload = passing.workload
        self._passes: Passes = (
            drawn_passes(caching, tokens, workload) if trace is None else traced_passes(trace, tokens, workload)
        )
        self._loops = passing.loops(caching, tokens)
        self._found = self._timed(caching)
        self._pace = self._paced(caching)

    def _timed(self, caching: ExpertCaching) -> ModuleLowered:
        from .planner.pytorch.experts_time import without_products

        one = self._passing
        if self._loops is None:
            return one.found
        return without_products(one.found, one.lowered, caching.layers, one.looked_up, one.machine.units[0])

    def _paced(self, caching: ExpertCaching) -> Pace:
        from .planner.pytorch.experts_time import pace_of

        unit = self._passing.machine.units[0]
        return pace_of(self._found, caching.layers, unit, self._passes.means(), self._loops)

    def expected(self, caching: ExpertCaching) -> Expected:
        """What is to be expected under `caching`, whose layers are those that this was made for."""
        from .planner.pytorch.experts_time import expert_operators, with_waits

        found, routing = self._forecast(caching), self._passing.routing
        changed = replace(
            caching,
            hit_rate=found.hit_rate,
            tokens=self._tokens,
            wait_ns=tuple(round(ns) for ns in found.wait_ns),
            read_nbytes=found.read_nbytes,
        )
        if routing is not None:
            rests_on = f"in the last {self._passes.about} of {routing.name}"
            changed = replace(changed, least_nbytes=found.least_nbytes, traced=True, rests_on=rests_on)
        parts = self._found
        if self._loops is not None:
            operators = expert_operators(parts, caching.layers)
            more = [round(ns + found.decide_ns / len(found.loop_ns)) for ns in found.loop_ns]
            parts = replace(parts, graph=with_waits(parts.graph, operators, more, self._passing.machine.units[0]))
        return Expected(changed, parts, found.decide_ns)

    def _forecast(self, caching: ExpertCaching) -> Forecast:
        """Where other weights do not all stay in memory, they take the link, too: so long as a pass lasts, for what is
        read of them in it."""
        from .moe_forecast import forecast
        from .planner.pytorch.experts import streamed_nbytes

        found = forecast(caching, self._pace, self.link, self._passes)
        streamed_ns = streamed_nbytes(self._passing.found, caching, self._passing.machine) / self.link.bytes_per_s * 1e9
        for _ in range(SETTLING if streamed_ns else 0):
            lasts_ns = max(found.pass_ns, streamed_ns + found.read_nbytes / self.link.bytes_per_s * 1e9)
            left = max(1 - streamed_ns / lasts_ns, 1e-3)
            slower = replace(self.link, bytes_per_s=self.link.bytes_per_s * left)
            found = forecast(caching, self._pace, slower, self._passes)
        return found


def trace_of(caching: ExpertCaching, path: Path) -> Trace:
    """The trace in the file `path`. Raises InputError for one of another model."""
    from .planner.experts.trace import read_trace

    counts = {layer.experts for layer in caching.layers}
    trace = read_trace(path, max(counts))
    if trace.layers != len(caching.layers) or len(counts) > 1:
        raise InputError(
            f"{path} has {trace.layers} layers, the model {len(caching.layers)} with {sorted(counts)} experts; give a "
            "trace that was recorded of this model"
        )
    return trace
