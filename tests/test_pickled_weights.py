"""Weights of a directory in a pickle: read where that is asked for, and the plan remembers that it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tensorstow as ts
from tensorstow.ir.errors import InputError
from tensorstow.ir.files import read_plan
from tests.conftest import Cli

pytestmark = pytest.mark.usefixtures("no_measuring")


@pytest.fixture(autouse=True)
def formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of operators are not what is looked at."""
    from tensorstow import modules

    def by_formulas(lowered: Any, *_: Any) -> Any:
        return lowered

    monkeypatch.setattr(modules, "measured_here", by_formulas)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("pickled")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=512))
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_on_the_command_line(cli: Cli, pickled: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    refused = cli("plan", f"hf:{pickled}", "--json")
    assert refused.status == 2
    assert "--allow-pickle" in refused.json["error"]
    said = cli("plan", f"hf:{pickled}", "--allow-pickle", "--tier", "dram=900KiB", "-o", plan, "--json")
    assert said.status == 0, said.err
    source = read_plan(plan).source
    assert source is not None
    assert source.allow_pickle
    ran = cli("run", plan, "--repeat", 1, "--verify", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]


def test_from_python(pickled: Path) -> None:
    machine = ts.Machine.detect(dram="900KiB")
    with pytest.raises(InputError, match="allow_pickle=True"):
        ts.plan(f"hf:{pickled}", machine=machine)
    model = ts.apply(ts.plan(f"hf:{pickled}", machine=machine, time_limit_s=2, allow_pickle=True))
    state = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])
    model.tensorstow.close()


def test_what_has_no_weights_in_files_refuses_the_option(tmp_path: Path) -> None:
    script = tmp_path / "net.py"
    script.write_text("import torch\ndef make():\n    return torch.nn.Linear(2, 2), (torch.ones(1, 2),)\n")
    for model, inputs in ((f"{script}:make", None), (torch.nn.Linear(2, 2), (torch.ones(1, 2),)), ("a.onnx", None)):
        with pytest.raises(InputError, match="leave allow_pickle out"):
            ts.plan(model, inputs, allow_pickle=True)
