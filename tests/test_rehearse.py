"""What a process is measured to hold: with every pass that its plan serves, without weights, and where nothing can be
written for it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Cli

MIB = 1 << 20
PROMPT = 768

PASSES = """
import sys
from pathlib import Path
import torch
import tensorstow as ts
from tensorstow.ir.files import read_plan
from tensorstow.runtime.memory import peak_rss_nbytes

model = ts.apply(read_plan(Path(sys.argv[1])))
with torch.no_grad():
    cache = model(input_ids=torch.ones((1, int(sys.argv[2])), dtype=torch.int64), use_cache=True).past_key_values
    model(input_ids=torch.ones((1, 1), dtype=torch.int64), past_key_values=cache)
print(peak_rss_nbytes())
"""


def llama(folder: Path, intermediate: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 256}
    LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=intermediate)).save_pretrained(folder)
    return folder


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of operators are not what is looked at."""
    from tensorstow import modules

    def by_formulas(lowered: Any, *_: Any) -> Any:
        return lowered

    monkeypatch.setattr(modules, "measured_here", by_formulas)


@pytest.mark.slow
@pytest.mark.usefixtures("formulas")
def test_the_promise_holds_for_the_prompt_too(cli: Cli, tmp_path: Path) -> None:
    """A prompt takes some 150 MiB that no token's pass takes."""
    plan = tmp_path / "plan.json"
    folder = llama(tmp_path / "m", intermediate=16384)
    sizes = ("--dim", f"length={PROMPT}", "--new", 2, "--tier", "dram=1GiB")
    said = cli("plan", f"hf:{folder}", *sizes, "-o", plan, "--json")
    assert said.status == 0, said.err
    managed = said.json["promised_peak_nbytes"] - said.json["fixed_nbytes"]
    assert managed > 100 * MIB
    done = subprocess.run(
        [sys.executable, "-c", PASSES, str(plan), str(PROMPT)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 1.05 * said.json["promised_peak_nbytes"]


@pytest.mark.usefixtures("formulas")
def test_a_directory_without_weights(cli: Cli, tmp_path: Path) -> None:
    """Planned for this box as any other; run when there are weights."""
    folder, plan = llama(tmp_path / "m", intermediate=2048), tmp_path / "plan.json"
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "aside")
    said = cli("plan", f"hf:{folder}", "--tier", "dram=1200KiB", "-o", plan, "--json")
    assert said.status == 0, said.err
    assert said.json["fixed_nbytes"] > 100 * MIB
    ran = cli("run", plan, "--repeat", 1, "--json")
    assert ran.status == 2
    assert "holds no weights" in ran.json["error"]
    (tmp_path / "aside").rename(weights)
    ran = cli("run", plan, "--repeat", 1, "--verify", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]


def test_where_nothing_can_be_written_the_work_is_not_begun(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorstow import workflow

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def begin(*_: Any) -> Any:
        raise AssertionError

    script = tmp_path / "net.py"
    script.write_text("import torch\ndef make():\n    return torch.nn.Linear(256, 256).eval(), (torch.ones(1, 256),)\n")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(workflow, "prepare", begin)
    said = cli("plan", f"{script}:make", "--json")
    assert said.status == 2
    assert "set TENSORSTOW_CACHE" in said.json["error"]
    assert said.json["exit_status"] == 2
