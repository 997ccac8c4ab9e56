"""A model and a plan of it, which tests may spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bad_input.wrong import BUDGET
from tests.conftest import Cli
from tests.models import write_mlp


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x [2, 256] through four matrices of 256 KiB."""
    return write_mlp(tmp_path_factory.mktemp("model") / "mlp.onnx", width=256, layers=4, rows=2)


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    for path in model.parent.iterdir():
        shutil.copy2(path, tmp_path / path.name)
    return tmp_path / model.name


@pytest.fixture
def planned(copied: Path, cli: Cli) -> Path:
    """A plan for the copy."""
    path = copied.with_name("plan.json")
    said = cli("plan", copied, "--tier", BUDGET, "-o", path)
    assert said.status == 0, said.err
    return path
