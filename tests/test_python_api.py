"""The Python interface: plan, apply, compare, machines, and what a wrong call raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import tensorstow as ts
from tests.models import write_mlp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [2, 256] through six matrices of 256 KiB."""
    return write_mlp(tmp_path_factory.mktemp("model") / "mlp.onnx", width=256, layers=6, rows=2)


def test_the_python_api(model: Path, no_measuring: int, capsys: pytest.CaptureFixture[str]) -> None:
    machine = ts.Machine.detect(dram="900KiB")
    assert machine.tier["dram"].capacity_nbytes == 900 << 10
    plan = ts.plan(model, machine=machine, mode="inference")
    assert plan.promised_peak_nbytes <= (900 << 10) + no_measuring
    print(plan)  # noqa: T201
    said = capsys.readouterr().out
    for words in ("peak", "pass", "bound", "mlp", "stow"):
        assert words in said
    assert len(said) < 1000
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    with ts.apply(plan) as applied:
        y = applied.run({"x": x})["y"]
        np.testing.assert_array_equal(applied({"x": x})["y"], y)
    with ts.apply(plan, model) as applied:
        np.testing.assert_array_equal(applied({"x": x})["y"], y)
    assert ts.Machine.load("rtx4090").tier["hbm"].capacity_nbytes == 24 << 30
    comparison = ts.compare(model, machine=machine, strategies=("lru", "stow"))
    assert [r.strategy for r in comparison.rows] == ["lru", "stow"]


WRONG_CALLS: list[tuple[Callable[[Path], Any], type[Exception]]] = [
    (lambda m: ts.plan(m, machine=ts.Machine.detect(dram=4096)), ts.InfeasibleError),
    (lambda m: ts.plan(m, strategy="magic"), ts.InputError),
    (lambda m: ts.plan(m, mode="training"), ts.InputError),
    (lambda m: ts.plan(cast(Any, 3)), ts.InputError),
    (lambda m: ts.plan(str(m) + ".no"), ts.InputError),
    (lambda m: ts.Machine.load("nope"), ts.InputError),
    (lambda m: ts.Machine.load("rtx4090", dram="much"), ts.InputError),
    (lambda m: ts.Machine.load("rtx4090", nope="1GiB"), ts.InputError),
]


@pytest.mark.parametrize(("call", "error"), WRONG_CALLS)
def test_errors_of_the_python_api(model: Path, call: Callable[[Path], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call(model)
