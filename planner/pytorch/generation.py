"""Text generation before anything runs: a prompt is one pass, every new token another, and one plan serves both.

A plan names parts of a pass and what is resident when; not how long the parts take. So the prefill and the decode pass
are two steady states of one plan, which the one simulator times with the durations of either. Throughput as in FlexGen
(Sheng et al., ICML 2023, arXiv 2303.06865, section 4.3): tokens of all sequences over the prompt's pass and the decode
passes. The cache of keys and values is not moved: all of it counts as workspace, at the length it has in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.errors import InputError, PlanMismatchError
from ...ir.graph import Graph
from ...ir.machine import Machine
from ...ir.plan import Plan, Step
from ...ir.simulate import simulate
from ..bounds import find_bound
from ..costs import duration_ns
from ..instance import make_instance


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
    mean context, None where it was not asked for."""

    workload: Workload
    prefill_s: float
    first_token_s: float
    last_token_s: float
    cache_nbytes: int
    decode_bound_s: float | None = None
    decode_bound_kind: str = ""

    @property
    def token_s(self) -> float:
        """Mean seconds of a decode pass."""
        return (self.first_token_s + self.last_token_s) / 2

    @property
    def seconds(self) -> float:
        """From the prompt to the last token. The prompt's pass makes the first one."""
        return self.prefill_s + (self.workload.new - 1) * self.token_s

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


def joint_graph(decode: Graph, prefill: Graph, *, cache_growth_nbytes: int = 0) -> Graph:
    """The graph to plan for both: the decode pass, with the workspace that each part needs in the hungrier pass.

    `cache_growth_nbytes` are held beside it throughout: the cache at its full length less what the decode graph counts
    already as its inputs. Raises PlanMismatchError where the two passes have other parts.
    """
    _require_same_parts(decode, prefill)
    if cache_growth_nbytes < 0:
        raise InputError(f"the cache at its full length is {-cache_growth_nbytes} bytes smaller than the graph's own")
    operators = tuple(
        replace(d, workspace_nbytes=max(d.workspace_nbytes + cache_growth_nbytes, p.workspace_nbytes))
        for d, p in zip(decode.operators, prefill.operators, strict=True)
    )
    return replace(decode, operators=operators)


def with_durations(plan: Plan, graph: Graph, machine: Machine) -> Plan:
    """`plan` with the durations that the parts have in `graph`, a pass over the same parts with other inputs.

    Its certificate is that of the plan as it was made. Raises PlanMismatchError where the graph misses a part.
    """
    units = {u.name: u for u in machine.units}
    steps: list[Step] = []
    for step in plan.steps:
        op = graph.operator.get(step.op)
        if op is None:
            raise PlanMismatchError(
                f"the plan runs part '{step.op}', which '{graph.name}' does not have; plan that pass by itself"
            )
        steps.append(replace(step, duration_ns=duration_ns(op, units[step.unit])))
    return replace(plan, steps=tuple(steps))


def pass_s(plan: Plan, planned: Graph, durations: Graph, machine: Machine) -> float:
    """Seconds of a pass in the steady state of `plan`, made for `planned`, when its parts take what they take in
    `durations`."""
    return simulate(with_durations(plan, durations, machine), planned, machine).pass_ns / 1e9


def predict_generation(
    plan: Plan,
    planned: Graph,
    machine: Machine,
    workload: Workload,
    *,
    prefill: Graph,
    first: Graph,
    last: Graph,
    cache_nbytes: int,
    bound_limit_s: float = 0.0,
) -> Generation:
    """What `plan` takes for `workload`; `planned` is the graph it was made for (`joint_graph`).

    `prefill`, `first` and `last` are the compacted graphs of the prompt's pass, and of the decode passes with the
    shortest and the longest context: what attention takes grows in between evenly. (The simulated time of a pass is a
    convex function of its durations, so the mean of the two ends is at or above the mean of all passes.) With a
    `bound_limit_s`, so many seconds at the most are spent on the bound of the decode pass.
    """
    bound = None
    if bound_limit_s > 0:
        bound = find_bound(make_instance(_mean(first, last, planned, machine), machine), time_limit_s=bound_limit_s)
    first_s, last_s = (pass_s(plan, planned, graph, machine) for graph in (first, last))
    return Generation(
        workload,
        pass_s(plan, planned, prefill, machine),
        first_s,
        last_s,
        cache_nbytes,
        None if bound is None else bound.seconds,
        "" if bound is None else bound.kind,
    )


def _mean(first: Graph, last: Graph, planned: Graph, machine: Machine) -> Graph:
    """`planned` with the mean durations of two passes."""
    unit = machine.units[0]

    def mean_ns(op_id: str) -> int:
        return (duration_ns(first.operator[op_id], unit) + duration_ns(last.operator[op_id], unit)) // 2

    return replace(planned, operators=tuple(replace(op, measured_ns=mean_ns(op.id)) for op in planned.operators))


def _require_same_parts(one: Graph, other: Graph) -> None:
    ours, theirs = ([op.id for op in g.operators] for g in (one, other))
    if ours != theirs:
        pairs = enumerate(zip(ours, theirs, strict=False))
        at = next((k for k, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        names: Sequence[str] = [repr(ids[at]) if at < len(ids) else "nothing" for ids in (ours, theirs)]
        raise PlanMismatchError(
            f"part {at} of '{one.name}' is {names[0]}, of '{other.name}' {names[1]}; make a plan for each"
        )
