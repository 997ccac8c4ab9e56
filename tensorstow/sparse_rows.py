"""Feed-forward layers behind ReLU of which only the rows of active neurons are read, as an option of planning.

LLM in a flash (Alizadeh et al., 2023, arXiv 2312.11514), bit for bit; `runtime/module/sparse.py` says how. What is read
depends on the data, so a plan counts the memory that this takes and none of its time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from .ir.errors import InputError
from .ir.machine import Machine, TierKind
from .ir.program import ModuleProgram, RowSite, SparseRows
from .models import Model
from .modules import ModuleModel

if TYPE_CHECKING:
    from .planner.pytorch import ModuleLowered, OpLowered
    from .runtime.module.executor import ModuleExecutor

WINDOW = 5
"""Calls whose neurons stay in memory, if they fit: that of the paper's section 4.1."""


def with_sparse_rows(model: Model, rows: int) -> ModuleModel:
    """The same model, to be planned with at most `rows` neurons of each such layer in memory. Raises InputError."""
    if rows < 0:
        raise InputError(f"--sparse-ffn {rows}: neurons that a layer keeps in memory are 0 or more")
    if not isinstance(model, ModuleModel):
        raise InputError(
            f"--sparse-ffn reads rows of a PyTorch module, '{model.name}' is none, or generates text: give "
            "hf:DIR, file.py:callable, or a module"
        )
    return replace(model, sparse_rows=rows, _known={})


def leave_rows(found: ModuleLowered, lowered: OpLowered, machine: Machine, rows: int) -> ModuleLowered:
    """`found` without the weights whose rows are read, and with the memory that this takes. Raises InputError."""
    from .planner.lookups import store_link
    from .planner.pytorch.parts import ModuleLowered
    from .planner.pytorch.sparse import find_feed_forwards, sparse_memory_nbytes, without_rows

    name = lowered.graph.name
    if machine.tier[machine.units[0].tier].kind is not TierKind.DRAM:
        raise InputError(
            f"--sparse-ffn computes on the processor; machine '{machine.name}' does not: plan for --machine host"
        )
    sites = find_feed_forwards(lowered)
    if not sites:
        raise InputError(
            f"--sparse-ffn: '{name}' has no feed-forward layer behind ReLU ({_activations(lowered)}); only where an "
            "activation is exactly zero for most neurons may rows be left unread: plan without it"
        )
    changed, kept = without_rows(found, sites)
    if not kept:
        raise InputError(
            f"--sparse-ffn: the feed-forward layers of '{name}' are too small to be planned; plan without it"
        )
    nbytes = sparse_memory_nbytes(kept, rows)
    graph = changed.graph
    operators = tuple(replace(op, workspace_nbytes=op.workspace_nbytes + nbytes) for op in graph.operators)
    link = store_link(machine)
    reading = SparseRows(
        tuple(RowSite(s.down, s.up, s.gate, s.squared) for s in kept),
        window=WINDOW,
        rows=rows,
        bridge_nbytes=int(link.latency_s * link.bytes_per_s),
    )
    return ModuleLowered(replace(graph, operators=operators), replace(changed.program, sparse=reading))


def _activations(lowered: OpLowered) -> str:
    known = ("silu", "gelu", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "mish", "hardswish")
    kinds = {op.op_type.split(".")[1].rstrip("_") for op in lowered.graph.operators if op.op_type.count(".") > 1}
    found = [name for name in known if name in kinds]
    return f"it computes {', '.join(found)}" if found else "it computes no activation that is known"


def install_rows(executor: ModuleExecutor, program: ModuleProgram) -> None:
    """Have the executor's module read rows, from a file that ends with the executor."""
    from .runtime.module.sparse import SparseForwards
    from .runtime.module.sparse_sites import Site

    reading = program.sparse
    if reading is not None:
        sites = cast("tuple[Site, ...]", reading.sites)
        executor.rows = SparseForwards(
            executor.module, sites, window=reading.window, rows=reading.rows, bridge_nbytes=reading.bridge_nbytes
        )
        executor.attach(executor.rows)
