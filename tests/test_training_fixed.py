"""What a process that trains holds beside its plan: measured when planning, and kept by the process that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.runtime.memory import peak_rss_nbytes, reset_peak
from tests.runtime.training_steps import mean_square

MIB = 1 << 20

SCRIPT = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    layers = [m for _ in range(6) for m in (nn.Linear(256, 256), nn.GELU())]
    return nn.Sequential(*layers), (torch.randn(4096, 256),), lambda y: y.square().mean()
"""


@pytest.mark.slow
def test_the_process_that_runs_a_plan_stays_within_its_promise(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SCRIPT)

    def said(*arguments: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "tensorstow", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    options = ("--mode", "training", "--tier", "dram=40MiB", "--time-limit", "2", "-o", tmp_path / "plan.json")
    planned = said("plan", f"{tmp_path / 'net.py'}:make", *options)
    assert planned["fixed_nbytes"] > 100 * MIB
    assert planned["promised_peak_nbytes"] == planned["fixed_nbytes"] + planned["peak_nbytes"]["dram"]
    run = said("run", tmp_path / "plan.json", "--repeat", 2)
    assert 0.9 * planned["promised_peak_nbytes"] <= run["peak_rss_nbytes"] <= 1.05 * planned["promised_peak_nbytes"]


def test_a_module_in_memory_is_promised_the_process_that_it_is_in() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(m for _ in range(6) for m in (nn.Linear(256, 256), nn.GELU())))
    batch = (torch.randn(2048, 256),)
    machine = ts.Machine.detect(dram="20MiB")
    file = ts.plan(module, batch, machine=machine, mode="training", loss=mean_square, time_limit_s=2.0)
    assert file.fixed_nbytes > 100 * MIB
    assert "the process" in str(file)
    reset_peak()
    step: Any = ts.apply(file, module)
    with step:
        for _ in range(2):
            module.zero_grad()
            step(*batch).backward()
        peak = peak_rss_nbytes()
    assert 0.95 * file.promised_peak_nbytes <= peak <= 1.05 * file.promised_peak_nbytes


def test_a_machine_elsewhere_is_promised_no_process() -> None:
    from tests.runtime.training_steps import box

    module, batch = nn.Linear(64, 64), (torch.randn(64, 64),)
    file = ts.plan(module, batch, machine=box(1 << 30), mode="training", loss=mean_square, time_limit_s=1.0)
    assert file.fixed_nbytes == 0
