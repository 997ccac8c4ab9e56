"""A small model with a plan that streams its weights, and one that spills: what faults are injected into."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from tensorstow.executors import open_executor
from tensorstow.ir.files import PlanFile
from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import lower_onnx, model_source
from tensorstow.planner.tile import tile
from tests.conftest import host_machine
from tests.models import write_mlp

Arrays = dict[str, NDArray[Any]]
ROOT = Path(__file__).parents[2]
WIDTH, LAYERS, ROWS = 256, 4, 2
BUDGET_NBYTES = 600 << 10  # of four matrices of 256 KiB


@dataclass(frozen=True)
class Streamed:
    """A plan file, inputs, and the outputs of the same model with everything in memory."""

    file: PlanFile
    inputs: Arrays
    expected: Arrays

    @property
    def model(self) -> Path:
        """Where the model lies."""
        assert self.file.source is not None
        return Path(self.file.source.path)


@contextmanager
def cache_in(folder: Path) -> Generator[None]:
    """The cache is there until the block ends."""
    folder.mkdir(exist_ok=True)
    with patch.dict(os.environ, {"TENSORSTOW_CACHE": str(folder)}):
        yield


def streamed(folder: Path, seed: int = 0) -> Streamed:
    """x [2, 256] through four matrices of 256 KiB in 600 KiB, its model in `folder`, the cache in `folder`/cache."""
    model = write_mlp(folder / "mlp.onnx", width=WIDTH, layers=LAYERS, rows=ROWS, seed=seed)
    with cache_in(folder / "cache"):
        lowered, source, box = lower_onnx(model), model_source(model, {}), host_machine()
        small = box.with_capacity({"dram": BUDGET_NBYTES})
        tiled = tile(lowered, small)
        resident = plan_graph(lowered.graph, box, strategy="resident")
        plan = plan_graph(tiled.graph, small, strategy="belady-prefetch")
        inputs = {"x": np.random.default_rng(seed).standard_normal((ROWS, WIDTH), dtype=np.float32)}
        with open_executor(PlanFile(resident, lowered.graph, box, lowered.program, source, 0)) as executor:
            expected = executor.run(inputs)
    assert plan.transfers, "the plan must read in every pass"
    return Streamed(PlanFile(plan, tiled.graph, small, tiled.program, source, 0), inputs, expected)


@cache
def shared_folder() -> Path:
    """A folder for what several faults only read; it goes with the process."""
    import tempfile

    keep = tempfile.TemporaryDirectory(prefix="faults.")
    _KEPT.append(keep)
    return Path(keep.name)


_KEPT: list[object] = []


@cache
def shared_subject() -> Streamed:
    """A subject that faults use without changing its files."""
    return streamed(shared_folder())


def shared_cache() -> Path:
    """Its cache."""
    shared_subject()
    return shared_folder() / "cache"


def same_bits(found: Arrays, expected: Arrays) -> bool:
    """Whether both hold the same arrays to the bit."""
    return found.keys() == expected.keys() and all(found[n].tobytes() == expected[n].tobytes() for n in expected)


def run(subject: Streamed, passes: int = 2) -> Arrays:
    """The last of some passes of a new executor."""
    with open_executor(subject.file) as executor:
        for _ in range(passes - 1):
            executor.run(subject.inputs)
        return executor.run(subject.inputs)
