"""`tensorstow run` of training plans: the steps are run from the plan file, and compared with those without a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Cli

CALLABLE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        block = lambda: nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 64))
        self.layers = nn.Sequential(*(block() for _ in range(4)))

    def forward(self, x, y):
        return (self.layers(x) - y).pow(2).mean()


def make():
    torch.manual_seed(0)
    return Net(), (torch.randn(512, 64), torch.randn(512, 64))


def with_optimizer():
    module, batch = make()
    return module, batch, None, torch.optim.AdamW(module.parameters(), lr=1e-2)


def wide():
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    square = lambda out: out.square().mean()
    return module, (torch.randn(16, 256),), square, torch.optim.AdamW(module.parameters())


def broken():
    module, batch = make()
    with open(__file__ + ".count", "a+") as file:
        file.write("x")
        module.layers[0][0].weight.data += file.tell()
    return module, batch
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(CALLABLE)
    return path


@pytest.mark.parametrize("name", ["make", "with_optimizer"])
def test_steps_of_a_plan_file_are_those_without_it(
    cli: Cli, script: Path, tmp_path: Path, no_measuring: int, name: str
) -> None:
    assert no_measuring
    plan = tmp_path / "plan.json"
    said = cli("plan", f"{script}:{name}", "--mode", "training", "--tier", "dram=5MiB", "-o", plan, "--time-limit", "3")
    assert said.status == 0, said.err
    said = cli("run", plan, "--repeat", "2", "--verify", "--json")
    assert said.status == 0, said.err
    facts = json.loads(said.out)
    assert facts["verified"]["bit_identical"]
    assert facts["verified"]["max_abs_err"] == 0
    assert len(facts["measured_s"]) == 2
    assert facts["limit_s"]["compute"] > 0
    assert facts["fixed_nbytes"] > 0


def test_a_step_runs_in_less_memory_than_its_parameters_take(
    cli: Cli, script: Path, tmp_path: Path, no_measuring: int
) -> None:
    assert no_measuring
    plan, parameters_nbytes = tmp_path / "plan.json", 8 * (256 * 256 + 256) * 4
    budget = ("--tier", f"dram={parameters_nbytes - 1}", "--time-limit", "2")
    said = cli("plan", f"{script}:wide", "--mode", "training", *budget, "-o", plan, "--json")
    assert said.status == 0, said.err
    planned = json.loads(said.out)
    assert planned["training"]["placed_parameters"] >= 8
    assert planned["peak_nbytes"]["dram"] < parameters_nbytes
    said = cli("run", plan, "--repeat", "2", "--verify", "--json")
    assert said.status == 0, said.err
    facts = json.loads(said.out)
    assert facts["verified"]["bit_identical"]
    assert facts["written_nbytes"] > 0


def test_the_steps_of_another_module_are_told(cli: Cli, script: Path, tmp_path: Path, no_measuring: int) -> None:
    """What is made for the reference has other weights, for every call gives others: verification must see it."""
    assert no_measuring
    plan = tmp_path / "plan.json"
    said = cli(
        "plan", f"{script}:broken", "--mode", "training", "--tier", "dram=20MiB", "-o", plan, "--time-limit", "3"
    )
    assert said.status == 0, said.err
    said = cli("run", plan, "--repeat", "1", "--verify", "--json")
    assert said.status == 1
    assert not json.loads(said.out)["verified"]["bit_identical"]


def test_options_of_inference_are_refused(cli: Cli, script: Path, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    plan = tmp_path / "plan.json"
    assert cli("plan", f"{script}:make", "--mode", "training", "--tier", "dram=20MiB", "-o", plan).status == 0
    said = cli("run", plan, "--trace", tmp_path / "t.json")
    assert said.status == 2
    assert "--trace" in said.err


def test_a_directory_is_trained_with_its_weights(cli: Cli, tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=200, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(sizes).save_pretrained(tmp_path / "gpt2")
    plan = tmp_path / "plan.json"
    dims = ("--dim", "batch=4", "--dim", "length=32", "--time-limit", "3")
    said = cli("plan", f"hf:{tmp_path / 'gpt2'}", "--mode", "training", *dims, "--tier", "dram=5MiB", "-o", plan)
    assert said.status == 0, said.err
    said = cli("run", plan, "--repeat", "1", "--verify", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["verified"]["bit_identical"]
