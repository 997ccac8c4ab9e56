"""Models that are lowered and then run by an executor of ours, everything resident."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import Lowered, lower_onnx
from tensorstow.planner.onnx.session import open_session, options
from tensorstow.runtime.onnx_executor import OnnxExecutor
from tensorstow.runtime.store import WeightStore

from .build import IDENTITY, machine


def lowered_at(path: Path) -> Lowered:
    """The model at `path`, lowered with a cache beside it."""
    return lower_onnx(path, cache=path.parent / "cache")


def executed(lowered: Lowered, folder: Path, inputs: Mapping[str, object], passes: int = 1) -> list[dict[str, Any]]:
    """What each of so many passes gives."""
    plan = plan_graph(lowered.graph, machine(), strategy="resident", time_limit_s=2)
    with (
        WeightStore.open_or_build(lowered.program, identity=IDENTITY, folder=folder / "store") as store,
        OnnxExecutor(plan, lowered.graph, lowered.program, store, machine()) as executor,
    ):
        return [executor.run(inputs) for _ in range(passes)]


def whole(path: Path, inputs: Mapping[str, object], passes: int = 1) -> list[dict[str, Any]]:
    """The same by one session of the whole model, without optimisations."""
    session = open_session(path.read_bytes(), options())
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(inputs)), strict=True)) for _ in range(passes)]
