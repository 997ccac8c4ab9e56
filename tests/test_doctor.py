"""`tensorstow doctor` tells what is there, what lacks, and what is broken."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from tensorstow import doctor
from tensorstow.doctor import REQUIRED, State, examine
from tensorstow.solvers import linear
from tensorstow.solvers.linear import LinearAnswer, LinearProgram
from tensorstow.solvers.result import Status
from tests.conftest import Cli


def test_nothing_is_broken_here() -> None:
    found = {f.subject: f for f in examine()}
    assert set(REQUIRED) | {"memory", "disk", "gpu", "compiler", "calibration", "solver highs"} <= set(found)
    assert [f.subject for f in found.values() if f.state is State.BROKEN] == []
    assert found["numpy"].text == np.__version__
    assert all(f.advice for f in found.values() if f.state is not State.FINE)


def test_a_solver_that_answers_wrongly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: LinearProgram, time_limit_s: float) -> LinearAnswer:
        del time_limit_s
        return LinearAnswer(Status.OPTIMAL, np.zeros(len(program.cost)), None)

    monkeypatch.setitem(linear.ENGINES, "glop", wrong)
    found = {f.subject: f for f in examine()}
    assert found["solver glop"].state is State.BROKEN
    assert "0.0 where 2.8" in found["solver glop"].text


def test_a_missing_package_ends_with_status_1(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_pulp(name: str) -> str:
        if name == "pulp":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without_pulp)
    said = cli("doctor", "--json")
    assert said.status == 1
    facts = json.loads(said.out)
    assert facts["broken"] == 1
    (pulp,) = [f for f in facts["findings"] if f["subject"] == "pulp"]
    assert pulp["state"] == "broken"
    assert "pip install pulp" in pulp["advice"]


def test_a_cache_that_cannot_be_made_is_a_finding(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    for path in (plain, plain / "below"):
        monkeypatch.setenv("TENSORSTOW_CACHE", str(path))
        said = cli("doctor", "--json")
        assert said.status == 1
        (disk,) = [f for f in said.json["findings"] if f["subject"] == "disk"]
        assert disk["state"] == "broken"
        assert str(path) in disk["text"]
        assert "TENSORSTOW_CACHE" in disk["advice"]
