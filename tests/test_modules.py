"""PyTorch modules from the command line and from Python: planned, run inside their memory, bits equal."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tensorstow as ts
from tensorstow.modules import module_in_memory
from tests.conftest import Cli
from tests.graphs import machine as small_machine

CALLABLE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(256, 256), nn.GELU())])
    return net.eval(), (torch.randn(4, 256),)

def forgets():
    return nn.Linear(2, 2)

def fails():
    return 1 / 0
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 9 MB in four shards."""
    folder = tmp_path_factory.mktemp("llama")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="3MB")
    return folder


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(CALLABLE)
    return path


def half(nbytes: int) -> str:
    return str(nbytes // 2)


def placed_nbytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def mlp(layers: int = 6, width: int = 256) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.GELU())]).eval()


def test_a_directory_is_planned_and_run(cli: Cli, directory: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    whole = cli("plan", f"hf:{directory}", "--dim", "length=8", "--tier", "dram=1GiB", "--json").json["graph"]["nbytes"]
    said = cli("plan", f"hf:{directory}", "--dim", "length=8", "--tier", f"dram={half(whole)}", "-o", plan, "--json")
    assert said.status == 0, said.err
    assert said.json["peak_nbytes"]["dram"] <= whole // 2
    assert said.json["moved_nbytes"]["ssd->dram"] > 0
    assert said.json["bound_s"] <= said.json["simulated_s"]
    ran = cli("run", plan, "--repeat", 2, "--verify", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]
    # What a pass begins for the next one counts where it ends: up to a pass's more, or less.
    a_pass = said.json["moved_nbytes"]["ssd->dram"]
    assert a_pass < ran.json["read_nbytes"] <= 3 * a_pass
    assert "nothing wrong" in cli("show", plan).out


@pytest.mark.usefixtures("no_measuring")
def test_what_runs_the_directory_is_the_model_itself(directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM.from_pretrained(directory)
    machine = ts.Machine.detect(dram=half(placed_nbytes(whole)))
    model = ts.apply(ts.plan(f"hf:{directory}", machine=machine))
    prompt = torch.tensor([[5, 9, 200, 31]])
    assert torch.equal(
        model.generate(prompt, max_new_tokens=8, do_sample=False),
        whole.generate(prompt, max_new_tokens=8, do_sample=False),
    )


@pytest.mark.usefixtures("no_measuring")
def test_a_callable_of_a_file(cli: Cli, script: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    said = cli("plan", f"{script}:make", "--tier", "dram=900KiB", "-o", plan, "--json")
    assert said.status == 0, said.err
    ran = cli("run", plan, "--repeat", 2, "--verify", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]


def test_a_module_in_memory() -> None:
    module, inputs = mlp(), torch.randn(4, 256)
    with torch.no_grad():
        expected = [module(inputs), module(2 * inputs[:2])]
    machine = ts.Machine.detect(dram="900KiB")
    plan = ts.plan(module, (inputs,), machine=machine)
    assert plan.plan.certificate.moved_nbytes["ssd->dram"] > 0
    applied = ts.apply(plan, module)
    assert applied is module
    for _ in range(2):
        assert torch.equal(module(inputs), expected[0])
        assert torch.equal(module(2 * inputs[:2]), expected[1])
    for name, value in mlp().state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_compare_takes_modules(cli: Cli, script: Path) -> None:
    said = cli(
        "compare", f"{script}:make", "--tier", "dram=900KiB", "--strategies", "stow,lru", "--workers", 0, "--json"
    )
    assert said.status == 0, said.err
    assert {row["strategy"] for row in said.json["rows"]} == {"stow", "lru"}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("hf:/nowhere", "/nowhere"),
        ("{script}:nothing", "nothing"),
        ("{script}:forgets", "example_inputs"),
        ("{script}:fails", "division by zero"),
        ("{script}.absent.py:make", "absent.py"),
        ("no_such_package.module:make", "no_such_package"),
    ],
)
def test_what_is_no_module_is_told(cli: Cli, script: Path, model: str, words: str) -> None:
    said = cli("plan", model.format(script=script), "--json")
    assert said.status == 2
    assert words in said.json["error"]


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise SystemExit(0)", "raised SystemExit: 0"),
        ("    sys.exit(0)", "raised SystemExit: 0"),
        (
            "    return Net(), torch.ones(2)\n"
            "class Net(torch.nn.Module):\n    def forward(self, x):\n        sys.exit(0)",
            "the model's own code ended the process: SystemExit: 0",
        ),
    ],
)
def test_a_model_that_ends_the_process_is_an_error(cli: Cli, tmp_path: Path, body: str, words: str) -> None:
    """When its file is loaded, when it is made, and when it is traced."""
    path = tmp_path / "ending.py"
    path.write_text("import sys, torch\n" + ("def make():\n" if body[0] == " " else "") + body + "\n")
    said = cli("plan", f"{path}:make", "--machine", "h100", "--json")
    assert said.status == 2
    assert words in said.json["error"]
    assert said.json["exit_status"] == 2


def test_too_little_memory_says_what_is_enough(cli: Cli, script: Path) -> None:
    said = cli("plan", f"{script}:make", "--tier", "dram=200KiB", "--json")
    assert said.status == 3
    again = cli("plan", f"{script}:make", "--tier", f"dram={said.json['smallest_nbytes']}", "--json")
    assert again.status == 0, again.err


def _wrong_type() -> Any:
    return ts.plan(3)  # type: ignore[arg-type]


def _no_inputs() -> Any:
    return ts.plan(mlp())


def _dims() -> Any:
    return ts.plan(mlp(), (torch.zeros(1, 256),), dims={"n": 3})


@pytest.mark.parametrize(
    ("wrong", "words"), [(_wrong_type, "int"), (_no_inputs, "example_inputs"), (_dims, "symbolic dimensions")]
)
def test_wrong_arguments_are_told(wrong: Callable[[], Any], words: str) -> None:
    with pytest.raises(ts.InputError, match=words):
        wrong()


def test_what_cannot_be_done_with_an_applied_module_is_refused() -> None:
    module = mlp()
    ts.apply(ts.plan(module, (torch.zeros(1, 256),), machine=ts.Machine.detect(dram="900KiB")), module)
    with pytest.raises(ts.TensorstowError):
        pickle.dumps(module)
    with pytest.raises(ts.TensorstowError):
        module.to(torch.float64)
    assert module.to(torch.float32) is module


def test_a_table_that_is_read_faster_whole_is_left_where_it_does_not_fit_whole() -> None:
    module = nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 64)).eval()
    ids = torch.arange(40).reshape(2, 20)
    machine = small_machine(1 << 30)
    slow = replace(machine, links=tuple(replace(k, latency_s=1e-3) for k in machine.links))
    model = module_in_memory(module, {}, (ids,))
    least = model.smallest_budget(slow)
    assert least < 300 * 64 * 4
    assert model.tables_left(slow) == frozenset()
    tight = slow.with_capacity({"dram": least})
    assert model.tables_left(tight) == {"0.weight"}
    assert ts.plan(module, (ids,), machine=tight, time_limit_s=2).plan.certificate.peak_nbytes["dram"] <= least


def test_a_model_is_cut_into_parts_once_for_all_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorstow.ir.profiles import load_machine
    from tensorstow.planner import pytorch

    cut: list[frozenset[str]] = []
    parts = pytorch.parts

    def counted(lowered: Any, unit: Any, **options: Any) -> Any:
        cut.append(options["looked_up"])
        return parts(lowered, unit, **options)

    monkeypatch.setattr(pytorch, "parts", counted)
    module = nn.Sequential(nn.Embedding(50, 64), *(nn.Linear(64, 64) for _ in range(4)))
    model = module_in_memory(module, {}, (torch.arange(8)[None],))
    machine = load_machine("rtx4090")
    tier = machine.units[0].tier
    found = [model.parts(machine.with_capacity({tier: nbytes})).graph for nbytes in (1 << 30, 1 << 24, 1 << 30)]
    assert found[0] == found[2]
    assert cut and len(set(cut)) == len(cut)
