"""Text generation before anything runs: a prompt is one pass, every new token another, and one plan serves both.

A plan names parts of a pass and what is resident when; not how long the parts take. So the prefill and the decode pass
are two steady states of one plan, which the one simulator times with the durations of either; parts that a pass leaves
out take no time, and what only they read does not come (`joint`). Throughput as in FlexGen (Sheng et al., ICML 2023,
arXiv 2303.06865, section 4.3): tokens of all sequences over the prompt's pass and the decode passes. The cache of keys
and values is not moved: all of it counts as workspace, at the length it has in the end.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

from ...ir.errors import InputError
from ...ir.graph import Graph
from ...ir.machine import Machine, TierKind, Unit
from ...ir.plan import Plan, Step
from ...ir.served import served
from ...ir.simulate import simulate
from ..bounds import find_bound
from ..costs import duration_ns
from ..instance import make_instance
from .joint import calls_of, chained

STALE_PASSES = 2
"""Passes that leave a part out before what only it reads is left out, too (`runtime/module/skipping.py`)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`batch` sequences of `prompt` tokens each, `new` tokens to be made for each."""

    batch: int
    prompt: int
    new: int

    def __post_init__(self) -> None:
        for what, n in (("sequences", self.batch), ("tokens in the prompt", self.prompt), ("new tokens", self.new)):
            if n < 1:
                raise InputError(f"text generation with {n} {what}; give 1 or more")


@dataclass(frozen=True, slots=True)
class Generation:
    """What a plan promises of a workload. Seconds of the prompt's pass and of a new token's: the first and the last,
    between which it grows as the context does. `decode_bound_s` is what no plan decodes a token faster than, at the
    mean context, None where it was not asked for. `stale_s`: what the first two tokens take longer, while weights still
    come that the prompt alone needs."""

    workload: Workload
    prefill_s: float
    first_token_s: float
    last_token_s: float
    cache_nbytes: int
    decode_bound_s: float | None = None
    decode_bound_kind: str = ""
    stale_s: float = 0.0

    @property
    def token_s(self) -> float:
        """Mean seconds of a decode pass."""
        return (self.first_token_s + self.last_token_s) / 2

    @property
    def seconds(self) -> float:
        """From the prompt to the last token. The prompt's pass makes the first one."""
        decoded = self.workload.new - 1
        return self.prefill_s + decoded * self.token_s + min(decoded, STALE_PASSES) * self.stale_s

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all sequences over all of the time."""
        return self.workload.batch * self.workload.new / self.seconds

    @property
    def decode_tokens_per_s(self) -> float:
        """New tokens of all sequences a second while decoding."""
        return self.workload.batch / self.token_s

    @property
    def decode_bound_tokens_per_s(self) -> float | None:
        """No plan decodes more a second."""
        return None if self.decode_bound_s is None else self.workload.batch / self.decode_bound_s


@dataclass(frozen=True)
class Passes:
    """The compacted graphs of the prompt's pass, and of the decode passes with the shortest and the longest context."""

    prefill: Graph
    first: Graph
    last: Graph


def inputs_nbytes(graph: Graph) -> int:
    """Bytes of the graph's inputs: in a decode pass, the cache as it is before, and the new tokens."""
    return sum(graph.tensor[t].nbytes for t in graph.inputs)


def cache_nbytes_per_token(shorter: Graph, longer: Graph, tokens: int) -> float:
    """Bytes by which what a decode pass is given grows with each token of context, over all sequences of the batch.

    The graphs are of decode passes whose contexts differ by `tokens`. What grows are the keys and values, and a mask
    where the model takes one. A fraction where a cache grows by blocks; 0 where it has a fixed size (a sliding window,
    a state). Raises InputError where the longer context takes fewer bytes.
    """
    if tokens < 1:
        raise InputError(f"the contexts must differ by 1 token or more, not by {tokens}")
    few, many = inputs_nbytes(shorter), inputs_nbytes(longer)
    if many < few:
        raise InputError(
            f"the decode pass with {tokens} more tokens of context takes {many} bytes of inputs, the one with fewer "
            f"{few}; give the one with the shorter context first"
        )
    return (many - few) / tokens


def cache_nbytes(shorter: Graph, longer: Graph, contexts: tuple[int, int], length: int) -> int:
    """Bytes of the inputs of a decode pass with `length` tokens of context, by the line through two of other lengths
    (`contexts`, the shorter one first): keys and values, and what else is given."""
    low, high = contexts
    rate = cache_nbytes_per_token(shorter, longer, high - low)
    return max(0, round(inputs_nbytes(shorter) + rate * (length - low)))


def with_durations(plan: Plan, planned: Graph, graph: Graph, machine: Machine) -> Plan:
    """`plan`, made for `planned`, with the durations that the parts have in `graph`, one of the passes that `planned`
    was made of; a nanosecond for parts that this pass leaves out.

    Its certificate is that of the plan as it was made. Raises PlanMismatchError for another pass.
    """
    units = {u.name: u for u in machine.units}
    ops = calls_of(planned, graph)
    steps: list[Step] = []
    for step in plan.steps:
        op = ops.get(step.op)
        steps.append(replace(step, duration_ns=1 if op is None else duration_ns(op, units[step.unit])))
    return replace(plan, steps=tuple(steps))


def as_profiled(one: Graph, ran: Graph, profiled: Graph, unit: Unit) -> Graph:
    """`one` with what its parts took longer, or shorter, in passes that were profiled than was known of them before:
    `profiled` is the planned graph with the times of the profile, `ran` the pass that was profiled, as it was timed
    before. What a pass adds to its parts by themselves (Python, cold caches, transfers beside it) it adds to any."""
    more = {
        name: duration_ns(profiled.operator[name], unit) - duration_ns(op, unit)
        for name, op in calls_of(profiled, ran).items()
    }
    calls = calls_of(profiled, one)
    ns = {op.id: max(1, duration_ns(op, unit) + more.get(name, 0)) for name, op in calls.items()}
    return replace(one, operators=tuple(replace(op, measured_ns=ns[op.id]) for op in one.operators))


def pass_s(plan: Plan, planned: Graph, durations: Graph, machine: Machine, *, stale: bool = False) -> float:
    """Seconds of a pass in the steady state of `plan`, made for `planned`, when its parts take what they take in
    `durations`. What only parts read that the pass leaves out does not come, but in the first passes (`stale`)."""
    timed = with_durations(plan, planned, durations, machine)
    if not stale:
        timed = _without_stale(timed, planned, machine, calls_of(planned, durations))
    return simulate(timed, planned, machine).pass_ns / 1e9


def _without_stale(plan: Plan, planned: Graph, machine: Machine, ran: Container[str]) -> Plan:
    """`plan` without the transfers of which the runtime finds that no step needs them, where only the parts `ran` do;
    for a device it moves everything."""
    tier = machine.tier[machine.units[0].tier]
    if tier.kind is not TierKind.DRAM or all(step.op in ran for step in plan.steps):
        return plan
    readers: dict[int, bool] = {}
    for one in served(plan, planned):
        readers[one.index] = readers.get(one.index, False) or plan.steps[one.step].op in ran
    left = tuple(t for index, t in enumerate(plan.transfers) if readers.get(index, True))
    return replace(plan, transfers=left)


def predict_generation(
    plan: Plan,
    planned: Graph,
    machine: Machine,
    workload: Workload,
    passes: Passes,
    *,
    cache_nbytes: int,
    bound_limit_s: float = 0.0,
) -> Generation:
    """What `plan` takes for `workload`; `planned` is the graph it was made for (`joint_graph`).

    What attention takes grows evenly between the first and the last decode pass. (The simulated time of a pass is a
    convex function of its durations, so the mean of the two ends is at or above the mean of all passes.) With a
    `bound_limit_s`, so many seconds at the most are spent on the bound of the decode pass.
    """
    prefill, first, last = passes.prefill, passes.first, passes.last
    bound = None
    if bound_limit_s > 0:
        posed = make_instance(_mean(first, last, planned, machine), machine)
        bound = find_bound(posed, time_limit_s=bound_limit_s)
    first_s, last_s = (pass_s(plan, planned, graph, machine) for graph in (first, last))
    stale_s = 0.0
    if len(first.operators) < len(planned.operators):
        stale_s = max(0.0, pass_s(plan, planned, first, machine, stale=True) - first_s)
    return Generation(
        workload,
        pass_s(plan, planned, prefill, machine, stale=True),
        first_s,
        last_s,
        cache_nbytes,
        None if bound is None else bound.seconds,
        "" if bound is None else bound.kind,
        stale_s,
    )


def _mean(first: Graph, last: Graph, planned: Graph, machine: Machine) -> Graph:
    """The parts of `planned` that run for a token, with the mean durations of two such passes. The memory is that which
    any plan of the whole leaves them."""
    unit = machine.units[0]
    before, after = calls_of(planned, first), calls_of(planned, last)
    workspace_nbytes = max((op.workspace_nbytes for op in planned.operators), default=0)

    def mean_ns(op_id: str) -> int:
        return sum(duration_ns(ops[op_id], unit) for ops in (before, after) if op_id in ops) // 2

    ran = tuple(
        replace(op, measured_ns=mean_ns(op.id), workspace_nbytes=workspace_nbytes)
        for op in planned.operators
        if op.id in before or op.id in after
    )
    if len(ran) == len(planned.operators):
        return replace(planned, operators=ran)
    return replace(planned, operators=chained(ran, (t for op in planned.operators for t in op.outputs)))
