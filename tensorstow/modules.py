"""PyTorch modules in the workflow: what names one, and how it is lowered for a machine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .hosts import Progress, on_processor, silent
from .ir.errors import InputError
from .ir.machine import Machine, TierKind
from .ir.program import ModelSource, ModuleProgram, SourceFile
from .models import Lowered, refuse_pickle
from .module_times import measured_here
from .planner.entry import HF, Directory, as_call, make, parse_entry

if TYPE_CHECKING:
    from torch import nn

    from .planner.pytorch import ModuleLowered, OpLowered
    from .planner.pytorch.generation import Workload
    from .planner.pytorch.matching import Matched

SETTLING = 8
"""Rounds in which the smallest budget is looked for; the third one mostly is the last."""


@dataclass(frozen=True)
class ModuleModel:
    """A module with example inputs. `entry` names what makes it again, None for one in memory; `matched` are the files
    of its weights, `origin` the files it came from; `loss` and `optimizer` what its callable gave for training. With
    `sparse_rows` only the rows of active neurons are read (`sparse_rows.py`). `routing` is a trace of what
    tokens choose, `workload` the texts that this is a pass of. With `allow_pickle` the weights may be in a pickle.
    Lowered once; compacted anew for each budget."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entry: str | None = None
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    matched: Matched | None = None
    origin: tuple[SourceFile, ...] = ()
    loss: Any = None
    optimizer: Any = None
    sparse_rows: int | None = None
    routing: Path | None = None
    workload: Workload | None = None
    allow_pickle: bool = False
    _known: dict[str, Any] = field(default_factory=dict[str, Any], compare=False, repr=False)

    def operators(self, progress: Progress = silent) -> OpLowered:
        """The operators of a pass, by formulas."""
        from .moe_runs import lower_experts

        if "" not in self._known:
            progress(f"tracing {self.name}", 0.0)
            self._known[""], self._known["lists"] = lower_experts(self)
        return self._known[""]

    def lower(self, machine: Machine, mode: str, progress: Progress = silent, *, beside_nbytes: int = 0) -> Lowered:
        """The parts of a pass, with times measured on this box where it is for this box. `beside_nbytes` of the budget
        are not for a cache of experts."""
        if mode != "inference":
            raise InputError(f"mode '{mode}' is not available for a PyTorch module; give inference or training")
        lowered = self.parts(machine, progress, beside_nbytes=beside_nbytes)
        program = replace(lowered.program, entry=self.entry)
        return Lowered(lowered.graph, module=program)

    def parts(
        self,
        machine: Machine,
        progress: Progress = silent,
        *,
        looked_up: frozenset[str] | None = None,
        like: ModuleProgram | None = None,
        beside_nbytes: int = 0,
    ) -> ModuleLowered:
        """The parts of a pass, bound to the files. `looked_up` are the tables to leave in the store; by default those
        for which that pays. Experts are cached, and weights divided, as in the program `like`, if one is given; else as
        it pays in what `beside_nbytes` leave of the budget."""
        from .moe_predict import Passing
        from .moe_runs import cache_experts, cache_like
        from .planner.pytorch import ModuleLowered
        from .planner.pytorch.binding import bind, choose_reading
        from .planner.pytorch.row_ranges import split_like

        lowered = self.timed(machine, progress)
        left = self.tables_left(machine, progress) if looked_up is None else looked_up
        found = self._cut(lowered, machine, left)
        if self.matched is not None:
            reading = choose_reading(found.program, self.matched)
            found = ModuleLowered(*bind(found.graph, found.program, self.matched, reading))
        found = self._rows_left(found, lowered, machine)
        passing = Passing(found, lowered, self.module, machine, left, self.routing, self.workload)
        if like is None:
            found = cache_experts(passing, self._known["lists"], beside_nbytes=beside_nbytes)
        elif like.experts is not None:
            found = cache_like(passing, like.experts)
        if like is not None:
            return split_like(found, lowered, self.module, like.rows)
        return self._divided(found, lowered, machine, beside_nbytes)

    def _cut(self, lowered: OpLowered, machine: Machine, looked_up: frozenset[str]) -> ModuleLowered:
        """The parts of `lowered` with these tables in the store; made once for all budgets."""
        from .planner.pytorch import parts, store_link

        unit, link = machine.units[0], store_link(machine)
        known = self._known.setdefault("parts", {})
        key = id(lowered), unit, link, looked_up  # `lowered` is kept here as well, so its id stays its own
        if key not in known:
            known[key] = parts(lowered, unit, looked_up=looked_up, link=link)
        return known[key]

    def tables_left(self, machine: Machine, progress: Progress = silent) -> frozenset[str]:
        """The tables to leave in the store: those for which that pays, and those that do not fit beside what their
        readers need."""
        from .planner.instance import make_instance
        from .planner.pytorch import choose_lookups, tables

        lowered = self.timed(machine, progress)
        paying = choose_lookups(lowered, machine)
        others = set(tables(lowered)) - paying
        if not others:
            return paying
        tier = machine.units[0].tier
        graph = self._cut(lowered, machine, paying).graph
        whole = make_instance(graph, machine.with_capacity({tier: 1 << 60}))
        room = machine.tier[tier].usable_nbytes - whole.workspace_nbytes
        tight = (graph.operator[o] for o, nbytes in zip(whole.order, whole.base_nbytes, strict=True) if nbytes > room)
        return paying | {s for op in tight for s in graph.touches(op) if s in others}

    def _divided(
        self, found: ModuleLowered, lowered: OpLowered, machine: Machine, beside_nbytes: int = 0
    ) -> ModuleLowered:
        """With large weights in ranges of rows, where the processor computes and not everything fits twice over;
        `beside_nbytes` of the budget are not for them."""
        from .planner.pytorch.row_ranges import split_rows

        tier = machine.tier[machine.units[0].tier]
        if tier.kind is not TierKind.DRAM or found.graph.nbytes <= tier.usable_nbytes // 2:
            return found
        return split_rows(found, lowered, self.module, tier.usable_nbytes - beside_nbytes)

    def _rows_left(self, found: ModuleLowered, lowered: OpLowered, machine: Machine) -> ModuleLowered:
        """Without what is read by rows."""
        if self.sparse_rows is None:
            return found
        from .sparse_rows import leave_rows

        return leave_rows(found, lowered, machine, self.sparse_rows)

    def timed(self, machine: Machine, progress: Progress) -> OpLowered:
        """With measured times of operators, if the machine is this box."""
        lowered = self.operators(progress)
        if not on_processor(machine):
            return lowered
        if "measured" not in self._known:
            self._known["measured"] = measured_here(lowered, self, machine, progress)
        return self._known["measured"]

    def source(self) -> ModelSource | None:
        """The files it came from."""
        if self.entry is None:
            return None
        return ModelSource(self.entry, dict(self.dims), self.origin, allow_pickle=self.allow_pickle)

    def smallest_budget(self, machine: Machine) -> int:
        """What the hungriest part needs: its weights, the activations that live then, and the reserve."""
        from .moe_runs import cache_least
        from .planner.instance import make_instance
        from .planner.pytorch import parts, store_link, tables

        tier = machine.units[0].tier
        roomy = machine.with_capacity({tier: 1 << 60})
        lowered = self.operators()
        looked_up = frozenset(tables(lowered))
        found = parts(lowered, machine.units[0], looked_up=looked_up, link=store_link(machine))
        found = self._rows_left(found, lowered, machine)
        found = cache_least(found, lowered, self.module, machine, self._known["lists"])
        reserve = machine.tier[tier].reserve_nbytes

        def needed(one: ModuleLowered) -> int:
            return make_instance(one.graph, roomy).smallest_budget

        undivided = needed(found)
        budget = reserve + 1
        for _ in range(SETTLING):  # how finely weights are divided depends on the budget, and the need on that
            need = needed(self._divided(found, lowered, machine.with_capacity({tier: budget})))
            if need <= budget:
                return min(budget, undivided)
            budget = need
        return undivided


def module_in_memory(module: object, dims: Mapping[str, int], example_inputs: object) -> ModuleModel:
    """A module that the user holds, with the inputs to plan for."""
    torch = sys.modules.get("torch")  # whoever holds a module has imported it
    if torch is None or not isinstance(module, torch.nn.Module):
        raise InputError(
            f"cannot plan a {type(module).__name__}; give the path of an ONNX file, 'hf:DIR', 'file.py:callable', or a "
            "torch.nn.Module with example inputs"
        )
    if example_inputs is None:
        raise InputError("a module is planned for inputs of certain shapes: give example_inputs, a tuple or a dict")
    if dims:
        raise InputError("a module in memory has no symbolic dimensions; its example inputs say the shapes")
    args, kwargs = as_call(example_inputs, "example_inputs")
    return ModuleModel(type(module).__name__, cast("nn.Module", module), args, kwargs)


def module_from_entry(text: str, dims: Mapping[str, int], *, allow_pickle: bool = False) -> ModuleModel:
    """The module that 'hf:DIR', 'file.py:callable' or 'pkg.module:callable' names. `allow_pickle`: the weights of a
    directory may be in a pickle, which PyTorch's restricted unpickler reads."""
    found = parse_entry(text)
    if isinstance(found, Directory):
        return _from_directory(found.path, dims, allow_pickle)
    if allow_pickle:
        refuse_pickle(text)
    if dims:
        raise InputError(f"'{text}' makes its own example inputs; --dim {next(iter(dims))} has nothing to set")
    made = make(found)
    if found.file is None:
        return ModuleModel(
            found.name, made.module, made.args, made.kwargs, entry=text, loss=made.loss, optimizer=made.optimizer
        )
    path = found.file.resolve()
    entry = f"{path}:{found.name}"
    origin = (source_file(path),)
    return ModuleModel(
        found.name,
        made.module,
        made.args,
        made.kwargs,
        entry=entry,
        origin=origin,
        loss=made.loss,
        optimizer=made.optimizer,
    )


def _from_directory(path: Path, dims: Mapping[str, int], allow_pickle: bool) -> ModuleModel:
    from .planner.pytorch.hf import make_skeleton, open_directory
    from .planner.pytorch.hf_inputs import example_inputs
    from .planner.pytorch.matching import match

    directory = open_directory(path, allow_pickle=allow_pickle)
    module = make_skeleton(directory)
    kwargs = _randomised(example_inputs(module, **_sizes(dims)), module)
    matched = None if directory.files is None else match(module, directory.files)
    resolved = path.resolve()
    origin = (source_file(resolved / "config.json"), *(directory.files.files if directory.files else ()))
    made = ModuleModel(resolved.name, module, (), kwargs, f"{HF}{resolved}", dict(dims), matched=matched, origin=origin)
    return replace(made, allow_pickle=allow_pickle)


def with_sizes(model: ModuleModel, dims: Mapping[str, int]) -> ModuleModel:
    """The model of a directory with example inputs of other sizes."""
    from .planner.pytorch.hf_inputs import example_inputs

    kwargs = _randomised(example_inputs(model.module, **_sizes(dims)), model.module)
    return replace(model, kwargs=kwargs, dims=dict(dims), _known={})


def _sizes(dims: Mapping[str, int]) -> dict[str, int]:
    """What --dim may set of a directory: sequences at once, tokens of a pass, tokens already in the cache, tokens of an
    encoder, positions whose logits are computed."""
    known = ("batch", "length", "context", "encoded", "logits")
    for name in dims:
        if name not in known:
            raise InputError(f"--dim {name}: a Hugging Face model has {', '.join(known)} to set")
    return dict(dims)


def _randomised(kwargs: dict[str, Any], module: Any) -> dict[str, Any]:
    """Example inputs with values worth computing on: tokens of the vocabulary, normal numbers; caches as they are."""
    import torch

    generator = torch.Generator().manual_seed(0)
    vocabulary = int(getattr(module.config, "vocab_size", 0) or 2)
    found = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found[name] = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.dtype)
        elif isinstance(value, torch.Tensor) and name.endswith("input_ids"):
            found[name] = torch.randint(0, vocabulary, value.shape, generator=generator, dtype=value.dtype)
    return found


def source_file(path: Path) -> SourceFile:
    """A file as it is now."""
    status = path.stat()
    return SourceFile(str(path), status.st_size, status.st_mtime_ns)
