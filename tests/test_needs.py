"""Without PyTorch: ONNX files are planned and run; what needs it says so, and does not end as our own fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.models import write_mlp

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Missing())
from tensorstow.cli import run_cli
sys.exit(run_cli(sys.argv[1:]))
"""
MAKER = """
import torch

def make():
    return torch.nn.Linear(64, 64), (torch.zeros(2, 64),)
"""


def without_torch(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process that finds no PyTorch."""
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=folder)


@pytest.fixture
def maker(tmp_path: Path) -> str:
    (tmp_path / "maker.py").write_text(MAKER, encoding="utf-8")
    return "maker.py:make"


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_module_says_what_to_install(tmp_path: Path, maker: str, mode: str) -> None:
    done = without_torch("plan", maker, "--mode", mode, "--json", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    said = json.loads(done.stdout)["error"]
    assert said.startswith(f"'{maker}' needs PyTorch")
    assert "pip install torch" in said
    assert "Traceback" not in done.stderr


def test_so_do_a_directory_a_device_and_a_plan(
    cli: Cli, tmp_path: Path, maker: str, monkeypatch: pytest.MonkeyPatch, no_measuring: int
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = cli("plan", maker, "-o", "plan.json", "--time-limit", "2")
    assert planned.status == 0, planned.err
    for command in (("plan", "hf:."), ("machine", "show", "cuda"), ("run", "plan.json")):
        done = without_torch(*command, folder=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "needs PyTorch" in done.stderr
        assert "Traceback" not in done.stderr
    shown = without_torch("show", "plan.json", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr


def test_an_onnx_file_needs_none(tmp_path: Path) -> None:
    write_mlp(tmp_path / "model.onnx", width=64, layers=2, rows=2)
    planned = without_torch("plan", "model.onnx", "-o", "plan.json", "--time-limit", "2", folder=tmp_path)
    assert planned.returncode == 0, planned.stderr
    done = without_torch("run", "plan.json", "--repeat", "1", "--verify", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"]["bit_identical"]


def test_doctor_goes_on_without(tmp_path: Path) -> None:
    done = without_torch("doctor", "--json", folder=tmp_path)
    found = {f["subject"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["gpu"]["state"] == "lacks"
    assert "compiler" not in found
    assert "Traceback" not in done.stderr
