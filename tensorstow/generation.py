"""Text generation in the workflow: one plan for the pass over a prompt and for every new token's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .hosts import Progress, silent
from .ir.errors import InputError
from .ir.files import PlanFile
from .ir.graph import Graph
from .ir.machine import Machine
from .ir.program import ModelSource, ModuleProgram
from .models import Lowered
from .modules import ModuleModel, module_from_entry, with_sizes
from .planner.entry import HF

if TYPE_CHECKING:
    from .planner.pytorch.generation import Generation

BOUND_S = 10.0
"""Seconds that the bound of a token's pass may take."""


@dataclass(frozen=True)
class GeneratingModel:
    """A model that reads a prompt and makes `new` tokens: the passes with the shortest and the longest context, and the
    prompt's. What is planned is the last token's pass, with the memory of the hungriest."""

    prefill: ModuleModel
    first: ModuleModel
    last: ModuleModel
    batch: int
    prompt: int
    new: int
    _graphs: dict[str, Graph] = field(default_factory=dict[str, Graph], compare=False, repr=False)

    @property
    def name(self) -> str:
        """The directory's."""
        return self.last.name

    def lower(self, machine: Machine, mode: str, progress: Progress = silent) -> Lowered:
        """The parts of a token's pass, with the workspace that the prompt's pass needs where that is more."""
        from .planner.pytorch.generation import joint_graph

        looked_up = self.last.tables_left(machine, progress)
        plain = ModuleProgram("", None, False, (), (), {})
        prompt = self.prefill.parts(machine, progress, looked_up=looked_up, like=plain).graph
        token = self.last.parts(machine, progress, looked_up=looked_up, like=plain).graph
        more = max(0, _workspace_nbytes(prompt) - _workspace_nbytes(token))
        decode = self.last.lower(machine, mode, progress, beside_nbytes=more)
        for name, model in (("prefill", self.prefill), ("first", self.first)):
            self._graphs[name] = model.parts(machine, progress, looked_up=looked_up, like=decode.module).graph
        self._graphs["last"] = decode.graph
        return replace(decode, graph=joint_graph(decode.graph, self._graphs["prefill"]))

    def source(self) -> ModelSource | None:
        """The directory's files; the plan is run on the inputs of a token's pass."""
        return self.last.source()

    def smallest_budget(self, machine: Machine) -> int:
        """Of the hungriest pass."""
        return max(model.smallest_budget(machine) for model in (self.prefill, self.last))

    def predict(self, file: PlanFile) -> Generation:
        """What the plan, made of this model by `lower`, takes for the prompt and for the tokens."""
        from .moe_runs import reads_hidden
        from .planner.pytorch.generation import Workload, inputs_nbytes, predict_generation

        found = predict_generation(
            file.plan,
            file.graph,
            file.machine,
            Workload(self.batch, self.prompt, self.new),
            prefill=self._graphs["prefill"],
            first=self._graphs["first"],
            last=self._graphs["last"],
            cache_nbytes=inputs_nbytes(self._graphs["last"]),
            bound_limit_s=BOUND_S,
        )
        experts = None if file.module is None else file.module.experts
        if experts is None or found.decode_bound_s is None:
            return found
        bound_s, kind = reads_hidden(found.decode_bound_s, found.decode_bound_kind, experts, file.machine)
        return replace(found, decode_bound_s=min(bound_s, found.token_s), decode_bound_kind=kind)


def _workspace_nbytes(graph: Graph) -> int:
    return max((op.workspace_nbytes for op in graph.operators), default=0)


def generating(text: str, dims: Mapping[str, int], new: int) -> GeneratingModel:
    """A Hugging Face directory that generates `new` tokens after a prompt of `length` tokens, `batch` at once."""
    if not text.startswith(HF):
        raise InputError(f"--new plans text generation of a Hugging Face directory; '{text}' is none: give hf:DIR")
    if new < 1:
        raise InputError(f"--new {new}: give 1 token or more")
    if "context" in dims:
        raise InputError("--new says how the context grows; leave --dim context away")
    batch, prompt = dims.get("batch", 1), dims.get("length", 1)
    from .planner.pytorch.generation import Workload

    prefill = module_from_entry(text, {**dims, "batch": batch, "length": prompt})
    prefill = replace(prefill, workload=Workload(batch, prompt, new))
    first = with_sizes(prefill, {"batch": batch, "length": 1, "context": prompt})
    last = with_sizes(prefill, {"batch": batch, "length": 1, "context": prompt + new - 1})
    return GeneratingModel(prefill, first, last, batch, prompt, new)


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
