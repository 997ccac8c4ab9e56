"""Cases from seeds: plan a random graph on a random machine by any strategy, and run a random model by such a plan.

What must hold of each: the checker finds nothing, the bound is not above the simulated time, nothing but the errors
that the interface names is raised, and an executed plan has the bits of the run with everything in memory.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tensorstow.execute import random_inputs
from tensorstow.executors import open_executor
from tensorstow.ir.check import check
from tensorstow.ir.errors import InfeasibleError, NotApplicableError, TensorstowError, TimeLimitError
from tensorstow.ir.files import PlanFile, read_plan, write_plan
from tensorstow.ir.machine import Machine
from tensorstow.ir.plan import Plan
from tensorstow.planner.build import plan_graph
from tensorstow.planner.onnx import Lowered, lower_onnx, model_source
from tensorstow.planner.strategies import strategy_names
from tensorstow.planner.tile import smallest_budget, tile
from tests.conftest import host_machine
from tests.faults.kinds import STREAMS
from tests.faults.random_graphs import posed
from tests.faults.random_models import write_model

ROUNDING = 1e-6
TIME_LIMIT_S = 1.0
SLOW = frozenset({"stow-recompute", "stow-order", "cosma", "malloc-game", "checkmate", "poet", "least-traffic"})
"""Strategies that solve integer programs or search for as long as they are given."""
REFUSALS = (InfeasibleError, TimeLimitError, NotApplicableError)
"""What a strategy may answer in place of a plan."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a case ended: 'planned', 'executed', 'refused', or 'failed' with what `said` tells; `wrong_bits` where
    outputs differed."""

    seed: int
    what: str
    status: str
    said: str = ""
    wrong_bits: bool = False


def run_case(seed: int, kind: str) -> Done:
    """The case of `seed` and a kind of `kinds.MARKS`: the same each time, time limits aside."""
    rng = np.random.default_rng([seed, STREAMS[kind]])
    try:
        return _runner(kind)(seed, rng)
    except Exception:  # noqa: BLE001 - whatever it is, it is what the case has found
        return Done(seed, kind, "failed", traceback.format_exc(limit=-6))


def _runner(kind: str) -> Callable[[int, np.random.Generator], Done]:
    if kind in ("module", "training"):  # PyTorch is loaded where it is wanted
        from tests.faults import module_cases

        return module_cases.run_module if kind == "module" else module_cases.run_training
    return _executed if kind == "onnx" else _planned


def choose_strategy(rng: np.random.Generator) -> str:
    """Any that is registered; 'stow' often, those that take all the time they are given seldom."""
    names = strategy_names()
    weights = np.array([8.0 if n == "stow" else 0.25 if n in SLOW else 1.0 for n in names])
    return str(rng.choice(names, p=weights / weights.sum()))


def _planned(seed: int, rng: np.random.Generator) -> Done:
    case, strategy = posed(rng), choose_strategy(rng)
    dram = case.machine.tier["dram"].usable_nbytes
    what = f"{strategy} on {case.graph.name} of {len(case.graph.operators)}, {len(case.machine.tiers)} tiers, {dram}"
    try:
        plan = plan_graph(case.graph, case.machine, strategy=strategy, mode=case.mode, time_limit_s=TIME_LIMIT_S)
    except REFUSALS as error:
        return Done(seed, what, *judge_refusal(error, case.machine))
    wrong = wrong_of(plan, [v.message for v in check(plan, case.graph, case.machine)])
    return Done(seed, what, "failed" if wrong else "planned", wrong)


def judge_refusal(error: TensorstowError, machine: Machine) -> tuple[str, str]:
    """A refusal is right where it is clear; 'infeasible' must not name a smaller budget than the one given."""
    unclear = unclear_of(error)
    named = error.smallest_nbytes if isinstance(error, InfeasibleError) else None
    if named is not None and named <= machine.tier[machine.units[0].tier].capacity_nbytes and "tier" in str(error):
        unclear = unclear or f"calls {named} bytes the least, and had more: {error}"
    return ("failed", unclear) if unclear else ("refused", str(error))


def wrong_of(plan: Plan, violations: list[str]) -> str:
    """What is wrong with a plan, in words; empty where nothing is."""
    certificate = plan.certificate
    if violations:
        return f"{len(violations)} violations, the first: {violations[0]}"
    if certificate.bound_s > certificate.simulated_s * (1 + ROUNDING):
        return f"bound {certificate.bound_s} s above the simulated {certificate.simulated_s} s"
    return ""


def unclear_of(error: BaseException) -> str:
    """Why an error does not tell a user what to do; empty where it does: it is one of ours, and names an object or a
    number in a sentence of some length."""
    if not isinstance(error, TensorstowError):
        return f"{type(error).__name__} is none of our errors: {error}"
    text = str(error)
    if len(text) < 20 or "Traceback" in text or not any(c.isdigit() or c in "'/" for c in text):
        return f"says too little: {text!r}"
    return ""


def _executed(seed: int, rng: np.random.Generator) -> Done:
    with tempfile.TemporaryDirectory() as name, patch.dict(os.environ, {"TENSORSTOW_CACHE": name}):
        folder = Path(name)
        path = write_model(rng, folder / "model.onnx")
        lowered = lower_onnx(path, cache=folder)
        box = host_machine()
        resident = _file(path, lowered, box, "resident")
        inputs = random_inputs(resident, seed)
        with open_executor(resident) as executor:
            expected = executor.run(inputs)
        smallest, peak = smallest_budget(lowered, box), resident.plan.certificate.peak_nbytes.get("dram", 0)
        budget = int(smallest + rng.uniform(0, 1.05) * max(peak - smallest, 0)) + 1
        strategy = choose_strategy(rng)
        what = f"{strategy} on {len(lowered.graph.operators)} operators of ONNX, {budget} bytes of {peak}"
        small = box.with_capacity({"dram": budget})
        try:
            file = _file(path, tile(lowered, small), small, strategy)
        except REFUSALS as error:
            return Done(seed, what, *judge_refusal(error, small))
        wrong = wrong_of(file.plan, [v.message for v in check(file.plan, file.graph, small)])
        if wrong:
            return Done(seed, what, "failed", wrong)
        write_plan(file, folder / "plan.json")
        with open_executor(read_plan(folder / "plan.json")) as executor:
            passes = [executor.run(inputs) for _ in range(3)]
    for number, found in enumerate(passes):
        for output, array in expected.items():
            if found[output].tobytes() != array.tobytes():
                return Done(seed, what, "failed", f"output '{output}' differs in pass {number}", wrong_bits=True)
    return Done(seed, what, "executed")


def _file(path: Path, lowered: Lowered, machine: Machine, strategy: str) -> PlanFile:
    plan = plan_graph(lowered.graph, machine, strategy=strategy, time_limit_s=TIME_LIMIT_S)
    return PlanFile(plan, lowered.graph, machine, lowered.program, model_source(path, {}), 0)
