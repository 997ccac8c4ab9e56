"""From the command line: the limit of a training process, and gradients that are clipped in its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(128, 128), nn.GELU())]
    return nn.Sequential(*layers), (torch.randn(512, 128),), lambda result: result.square().mean()

def with_optimizer():
    module, batch, loss = plain()
    return module, batch, loss, torch.optim.SGD(module.parameters(), lr=0.1)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "steps.py"
    path.write_text(SCRIPT)
    return path


def test_the_process_limit_holds_in_training(cli: Cli, script: Path, no_measuring: int) -> None:
    room = 2 << 20
    options = (f"{script}:plain", "--mode", "training", "--time-limit", 1, "--json", "--process-limit")
    said = cli("plan", *options, no_measuring + room)
    assert said.status == 0, said.err
    assert said.json["fixed_nbytes"] == no_measuring
    assert said.json["promised_peak_nbytes"] <= no_measuring + room
    assert said.json["moved_nbytes"] or said.json["peak_nbytes"]["dram"] > room // 2, "the budget was felt"
    refused = cli("plan", *options, no_measuring + 4096)
    assert refused.status == 3
    assert "--process-limit" in refused.json["error"]


def test_steps_that_clip_are_verified(cli: Cli, script: Path, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    path, options = tmp_path / "plan.json", ("--mode", "training", "--tier", "dram=64MiB", "--time-limit", 1)
    planned = cli("plan", f"{script}:with_optimizer", *options, "--clip-norm", 1e-3, "-o", path, "--json")
    assert planned.status == 0, planned.err
    run = cli("run", path, "--repeat", 2, "--verify", "--json")
    assert run.status == 0, run.err
    assert run.json["verified"]["bit_identical"]
    refused = cli("plan", f"{script}:plain", *options, "--clip-norm", 1.0)
    assert refused.status == 2
    assert "optimizer" in refused.err
