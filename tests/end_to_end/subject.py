"""A model with its references, and what the end-to-end tests compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from tensorstow.execute import random_inputs
from tensorstow.executors import open_executor
from tensorstow.ir.check import check
from tensorstow.ir.files import PlanFile
from tensorstow.ir.machine import Machine
from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import Lowered, lower_onnx, model_source
from tensorstow.planner.tile import smallest_budget, tile
from tensorstow.verify import RELATIVE_TOLERANCE
from tests.conftest import host_machine

Arrays = dict[str, NDArray[Any]]


F32, I64 = TensorProto.FLOAT, TensorProto.INT64


TIME_LIMIT_S = 2.0


class Subject:
    """A model with its references: our executor with everything resident and nothing split, and ONNX Runtime."""

    def __init__(self, path: Path, dims: dict[str, int] | None = None, inputs: Arrays | None = None) -> None:
        self.path = path
        self.lowered: Lowered = lower_onnx(path, dims=dims or {})
        self.source = model_source(path, dims or {})
        self.machine: Machine = host_machine()
        resident = self.file(self.lowered, self.machine, "resident")
        self.peak: int = resident.plan.certificate.peak_nbytes.get("dram", 0)
        self.inputs = random_inputs(resident) if inputs is None else inputs
        self.exact = self.run(resident)

    def file(self, lowered: Lowered, machine: Machine, strategy: str) -> PlanFile:
        plan = plan_graph(lowered.graph, machine, strategy=strategy, time_limit_s=TIME_LIMIT_S)
        assert not check(plan, lowered.graph, machine)
        return PlanFile(plan, lowered.graph, machine, lowered.program, self.source, 0)

    def plan(self, nbytes: int, strategy: str = "stow") -> PlanFile:
        """A plan within `nbytes` of DRAM."""
        machine = self.machine.with_capacity({"dram": nbytes})
        file = self.file(tile(self.lowered, machine), machine, strategy)
        certificate = file.plan.certificate
        assert certificate.peak_nbytes.get("dram", 0) <= nbytes
        assert certificate.bound_s <= certificate.simulated_s * (1 + 1e-6)
        return file

    def smallest(self) -> int:
        return smallest_budget(self.lowered, self.machine)

    def run(self, file: PlanFile, passes: int = 1) -> Arrays:
        with open_executor(file) as executor:
            outputs = [executor.run(self.inputs) for _ in range(passes)]
            for again in outputs[1:]:
                assert_equal_bits(again, outputs[0])
        return outputs[0]

    def check_exact(self, file: PlanFile, passes: int = 2) -> None:
        """The run of `file` has the bits of the unconstrained one, in this pass and in the next."""
        assert_equal_bits(self.run(file, passes), self.exact)

    def check_close(self) -> None:
        """The unconstrained run has the values of a whole-model session."""
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        outputs = cast("list[NDArray[Any]]", session.run(None, self.inputs))
        for info, expected in zip(session.get_outputs(), outputs, strict=True):
            found = self.exact[info.name]
            assert found.shape == expected.shape
            assert found.dtype == expected.dtype
            if expected.dtype.kind == "f":
                largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
                np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE_TOLERANCE * largest)
            else:
                np.testing.assert_array_equal(found, expected)


def assert_equal_bits(found: Arrays, expected: Arrays) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), f"output '{name}' differs"


def varied(arrays: Arrays) -> bool:
    """Whether outputs could show a wrong byte: more than a few values, none of them wild."""
    return all(np.isfinite(a).all() and len(np.unique(a)) > 3 for a in arrays.values() if a.dtype.kind == "f")


def budgets(subject: Subject) -> list[int]:
    smallest = subject.smallest()
    return [(subject.peak + smallest) // 2, smallest]


def check_at_budgets(subject: Subject) -> None:
    subject.check_close()
    for nbytes in budgets(subject):
        subject.check_exact(subject.plan(nbytes))
