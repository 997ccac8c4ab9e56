"""Every node test of the onnx package: plain ONNX Runtime beside our path, with plenty of memory and with the least."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import table
from .conformance_case import Case

WORKERS = 2
STAGES = ("plain", "free", "tight")

Facts = dict[str, Any]


def collect() -> list[Case]:
    """The node tests of the onnx package, those of opsets that are not released included, in its order."""
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # read when the package makes its cases
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow and divide by zero on purpose
        found = collect_testcases(None)
    return [
        Case(c.name, c.model.SerializeToString(), tuple(inputs), tuple(outputs), c.rtol, c.atol)
        for c in found
        if c.model is not None
        for inputs, outputs in c.data_sets or ()
    ]


def run_cases(cases: Sequence[Case], folder: Path, workers: int = WORKERS) -> list[Facts]:
    """What `conformance_case` finds of each case, in order; a case that killed its process says so.

    Each worker has a cache and a results file of its own in `folder`.
    """
    pickled = folder / "cases.pickle"
    pickled.write_bytes(pickle.dumps(list(cases)))
    files = [folder / f"results-{n}.jsonl" for n in range(workers)]
    running = {n: _start(pickled, files[n], n, workers) for n in range(workers)}
    deaths: dict[str, str] = {}
    while running:
        for number, process in list(running.items()):
            _, errors = process.communicate()
            if process.returncode == 0:
                del running[number]
                continue
            lines = _lines(files[number])
            if not lines or lines[-1]["name"] in deaths:
                raise RuntimeError(f"a worker fails beyond its cases:\n{errors[-2000:]}")
            deaths[lines[-1]["name"]] = f"the process died with status {process.returncode}: {errors.strip()[-3000:]}"
            running[number] = _start(pickled, files[number], number, workers)
    facts: dict[str, Facts] = {c.name: {"name": c.name} for c in cases}
    for line in (line for file in files for line in _lines(file)):
        facts[line["name"]] |= line
    for name, why in deaths.items():
        for stage in STAGES:
            facts[name].setdefault(stage, why)
    return list(facts.values())


def _start(pickled: Path, results: Path, number: int, workers: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        "TENSORSTOW_CACHE": str(results.with_suffix(".cache")),
        "ALLOW_RELEASED_ONNX_OPSET_ONLY": "0",
    }
    command = [sys.executable, "-m", f"{__package__}.conformance_case"]
    return subprocess.Popen(
        [*command, str(pickled), str(results), str(number), str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
    )


def _lines(results: Path) -> list[Facts]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def differing(facts: Sequence[Facts]) -> list[Facts]:
    """The cases that plain ONNX Runtime passes and our path does not."""
    return [f for f in facts if not f["plain"] and (f.get("free", "not run") or f.get("tight", "not run"))]


def main() -> dict[str, Any]:
    """Run all cases; counts, and every case that differs."""
    with tempfile.TemporaryDirectory() as folder:
        facts = run_cases(collect(), Path(folder))
    plain = [f for f in facts if not f["plain"]]
    counts = {
        "cases": len(facts),
        "plain": len(plain),
        "unconstrained": sum(f.get("free") == "" for f in plain),
        "constrained": sum(f.get("tight") == "" for f in plain),
        "constrained at the working set": sum(
            f.get("tight") == "" and f["tight_nbytes"] == f["smallest_nbytes"] for f in plain
        ),
        "random": sum(f.get("random", False) for f in plain),
    }
    table(
        "node tests of the onnx package that pass; bits as in ONNX Runtime without prepacking",
        (
            "cases",
            "plain ONNX Runtime",
            "ours, unconstrained",
            "ours, smallest budget",
            "of these, the largest working set",
            "random: form alone",
        ),
        [[str(n) for n in counts.values()]],
    )
    different = differing(facts)
    for f in different:
        print(f"{f['name']}: unconstrained: {f.get('free') or 'passes'}; constrained: {f.get('tight') or 'passes'}")
    return {"counts": counts, "differing": different}
