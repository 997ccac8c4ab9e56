"""Text generation in the workflow: one plan for the pass over a prompt and for every new token's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .hosts import Progress, silent
from .ir.errors import InfeasibleError, InputError, TimeLimitError
from .ir.files import PlanFile
from .ir.graph import Graph
from .ir.machine import Machine
from .ir.plan import Plan
from .ir.program import ModelSource, ModuleProgram
from .models import Lowered, Solve
from .modules import ModuleModel, module_from_entry, with_sizes
from .planner.entry import HF

if TYPE_CHECKING:
    from .planner.pytorch.generation import Generation, Passes

BOUND_S = 10.0
"""Seconds that the bound of a token's pass may take."""


@dataclass(frozen=True)
class GeneratingModel:
    """A model that reads a prompt and makes `new` tokens: the passes with the shortest and the longest context, and the
    prompt's. What is planned is the last token's pass, with the memory of the hungriest; where the prompt's pass has
    parts with weights of their own, an encoder say, after these."""

    prefill: ModuleModel
    first: ModuleModel
    last: ModuleModel
    batch: int
    prompt: int
    new: int
    _graphs: dict[str, Graph] = field(default_factory=dict[str, Graph], compare=False, repr=False)
    _wait_ns: dict[str, int] = field(default_factory=dict[str, int], compare=False, repr=False)
    """Of the graphs' durations, what experts are waited for."""

    @property
    def name(self) -> str:
        """The directory's."""
        return self.last.name

    def lower(self, machine: Machine, mode: str, progress: Progress = silent) -> Lowered:
        """The parts of a token's pass, with the workspace that the prompt's pass needs where that is more; and the
        parts that only the prompt's pass has. The pass that reads more weights says how these are divided."""
        from .planner.pytorch.joint import join, own_weights

        if mode != "inference":
            raise InputError(f"mode '{mode}' is not available for text generation; leave --new or --mode away")
        tables = self._tables(machine, progress)
        prompt, token = (self._plain(name, machine, tables[name], progress) for name in ("prefill", "last"))
        leads, follows = ("prefill", "last") if own_weights(token, prompt) else ("last", "prefill")
        needed = {"prefill": _workspace_nbytes(prompt), "last": _workspace_nbytes(token)}
        more = max(0, needed[follows] - needed[leads])
        leading = self._passes[leads].parts(machine, progress, looked_up=tables[leads], beside_nbytes=more)
        found = {leads: leading}
        for name in ("prefill", "first", "last"):
            if name != leads:
                like = leading.program
                found[name] = self._passes[name].parts(machine, progress, looked_up=tables[name], like=like)
        for name, one in found.items():
            self._graphs[name], self._wait_ns[name] = one.graph, _wait_ns(one.program)
        joint = join(found["last"], found["prefill"])
        self._graphs["joint"] = joint.graph
        program = replace(joint.program, entry=self.last.entry)
        return Lowered(joint.graph, module=program, improve=self._improved if leads == "prefill" else None)

    def _improved(self, plan: Plan, graph: Graph, machine: Machine, solve: Solve, bound_limit_s: float) -> Plan:
        """Of `plan` and one that keeps memory for what tokens read, the one by which the whole text takes less."""
        from .planner.pytorch.joint import own_weights
        from .planner.pytorch.joint_plan import can_stream, with_loads, with_scratch

        if not plan.transfers or not can_stream(machine):
            return plan
        own = own_weights(self._graphs["last"], self._graphs["prefill"])
        scratched = with_scratch(graph, own, machine.tier[plan.home_tier].alignment)
        try:
            made = solve(scratched)
        except (InfeasibleError, TimeLimitError):
            return plan
        other = with_loads(made, scratched, graph, machine, time_limit_s=bound_limit_s)
        if other is None or self._seconds(other, graph, machine) >= self._seconds(plan, graph, machine):
            return plan
        return other

    def _seconds(self, plan: Plan, graph: Graph, machine: Machine) -> float:
        """Of the whole text."""
        from .planner.pytorch.generation import Workload, predict_generation

        workload, passes = Workload(self.batch, self.prompt, self.new), self._timed(graph, machine)
        return predict_generation(plan, graph, machine, workload, passes, cache_nbytes=0).seconds

    @property
    def _passes(self) -> dict[str, ModuleModel]:
        return {"prefill": self.prefill, "first": self.first, "last": self.last}

    @property
    def _leads(self) -> str:
        """Which pass reads all weights that the plan places: a token's, as far as is known before `lower`."""
        from .planner.pytorch.joint import own_weights

        known = self._graphs.keys() >= {"last", "prefill"}
        return "prefill" if known and own_weights(self._graphs["last"], self._graphs["prefill"]) else "last"

    def _tables(self, machine: Machine, progress: Progress) -> dict[str, frozenset[str]]:
        """By pass, the tables to leave in the store: those for which that pays for a token, and of those that a token
        does not look up, for the prompt."""
        from .planner.pytorch import tables

        known = {name: frozenset(tables(model.timed(machine, progress))) for name, model in self._passes.items()}
        chosen = self.last.tables_left(machine, progress)
        if known["prefill"] - known["last"]:
            chosen |= self.prefill.tables_left(machine, progress) - known["last"]
        return {name: chosen & found for name, found in known.items()}

    def _plain(self, name: str, machine: Machine, looked_up: frozenset[str], progress: Progress = silent) -> Graph:
        """A pass with its weights undivided and its experts as they are."""
        plain = ModuleProgram("", None, False, (), (), {})
        return self._passes[name].parts(machine, progress, looked_up=looked_up, like=plain).graph

    def source(self) -> ModelSource | None:
        """The directory's files; the plan is run on the inputs of a token's pass, and serves the prompt's. Where the
        prompt's pass reads more weights, it is run on the prompt's, and serves the token's."""
        first, other = (self.prefill, self.last) if self._leads == "prefill" else (self.last, self.prefill)
        found = first.source()
        return None if found is None else replace(found, others=(dict(other.dims),))

    def smallest_budget(self, machine: Machine) -> int:
        """Of the pass with the larger parts, with the workspace of the hungrier one."""
        tables = self._tables(machine, silent)
        found: list[tuple[int, int]] = []
        for name in ("prefill", "last"):
            needed = _workspace_nbytes(self._plain(name, machine, tables[name]))
            found.append((self._passes[name].smallest_budget(machine), needed))
        hungriest = max(needed for _, needed in found)
        return max(least + hungriest - needed for least, needed in found)

    def predict(self, file: PlanFile) -> Generation:
        """What the plan, made of this model by `lower`, takes for the prompt and for the tokens."""
        from .moe_bounds import reads_hidden
        from .planner.pytorch.generation import Workload, predict_generation

        found = predict_generation(
            file.plan,
            file.graph,
            file.machine,
            Workload(self.batch, self.prompt, self.new),
            self._timed(file.graph, file.machine),
            cache_nbytes=self._cache_nbytes(),
            bound_limit_s=BOUND_S,
        )
        experts = None if file.module is None else file.module.experts
        if experts is None or found.decode_bound_s is None:
            return found
        # the bound is of the mean of both passes' durations
        waited_ns = -(-(self._wait_ns["first"] + self._wait_ns["last"]) // 2)
        if file.graph != self._graphs["joint"]:  # which both have from a profile: see `_timed`
            waited_ns += sum(experts.wait_ns) - self._wait_ns[self._leads]
        caching = replace(experts, wait_ns=(max(0, waited_ns),))
        bound_s, kind = reads_hidden(found.decode_bound_s, found.decode_bound_kind, caching, file.machine)
        # where all of it may be waits, nothing is known
        return replace(found, decode_bound_s=min(bound_s, found.token_s) or None, decode_bound_kind=kind)

    def _cache_nbytes(self) -> int:
        """When the last token is made."""
        from .planner.pytorch.generation import cache_nbytes, inputs_nbytes

        first, last = self._graphs["first"], self._graphs["last"]
        low, high = (model.dims["context"] for model in (self.first, self.last))
        return inputs_nbytes(last) if low == high else cache_nbytes(first, last, (low, high), high + 1)

    def _timed(self, planned: Graph, machine: Machine) -> Passes:
        """The passes; after a profile, whose times `planned` has, with what their parts took longer in it than was
        known of them before."""
        from .planner.pytorch.generation import Passes, as_profiled

        unit, graphs = machine.units[0], {name: self._graphs[name] for name in self._passes}
        if planned != self._graphs["joint"]:
            ran = graphs[self._leads]
            graphs = {name: as_profiled(graph, ran, planned, unit) for name, graph in graphs.items()}
        return Passes(graphs["prefill"], graphs["first"], graphs["last"])


def _wait_ns(program: ModuleProgram | None) -> int:
    """Of a pass, for all experts; 0 where none are cached."""
    return 0 if program is None or program.experts is None else sum(program.experts.wait_ns)


def _workspace_nbytes(graph: Graph) -> int:
    return max((op.workspace_nbytes for op in graph.operators), default=0)


def generating(text: str, dims: Mapping[str, int], new: int, *, allow_pickle: bool = False) -> GeneratingModel:
    """A Hugging Face directory that generates `new` tokens after a prompt of `length` tokens, `batch` at once; its
    weights may be in a pickle with `allow_pickle`."""
    if not text.startswith(HF):
        raise InputError(f"--new plans text generation of a Hugging Face directory; '{text}' is none: give hf:DIR")
    if new < 1:
        raise InputError(f"--new {new}: give 1 token or more")
    for name in ("context", "encoded", "logits"):
        if name in dims:
            raise InputError(f"--new says how the context grows and what is computed; leave --dim {name} away")
    from .planner.pytorch.generation import Workload
    from .planner.pytorch.hf_inputs import encodes_text, keeps_logits

    batch, prompt = dims.get("batch", 1), dims.get("length", 1)
    read = module_from_entry(text, {**dims, "batch": batch, "length": 1}, allow_pickle=allow_pickle)
    workload = Workload(batch, prompt, new)
    read = replace(read, workload=workload)
    sizes = {"batch": batch}
    if encodes_text(read.module):  # the prompt is the encoder's, a decoder begins with one token
        sizes["encoded"], prompt = prompt, 1
    logits = {"logits": 1} if keeps_logits(read.module) else {}
    prefill = with_sizes(read, {**sizes, "length": prompt, **logits})
    # The prompt's pass makes the first token, and each further pass reads the one that was made before it. If there is
    # none, a pass is planned that a module has positions for.
    begin, end = (prompt, prompt + new - 2) if new > 1 else (max(1, prompt - 1),) * 2
    first = with_sizes(read, {**sizes, "length": 1, "context": begin})
    last = with_sizes(read, {**sizes, "length": 1, "context": end})
    return GeneratingModel(prefill, first, last, batch, workload.prompt, new)


def generation_facts(found: Generation) -> dict[str, Any]:
    """As `plan --json` has it."""
    return {
        "batch": found.workload.batch,
        "prompt": found.workload.prompt,
        "new": found.workload.new,
        "prefill_s": found.prefill_s,
        "token_s": found.token_s,
        "tokens_per_s": found.tokens_per_s,
        "decode_tokens_per_s": found.decode_tokens_per_s,
        "decode_bound_tokens_per_s": found.decode_bound_tokens_per_s,
        "decode_bound_kind": found.decode_bound_kind,
        "cache_nbytes": found.cache_nbytes,
    }
