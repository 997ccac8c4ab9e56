"""--sparse-ffn: rows of active neurons alone, bit for bit; refused where there is no such layer."""

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


@pytest.fixture(scope="module")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT, whose feed-forward layers are behind ReLU; most of their neurons are zero."""
    folder = tmp_path_factory.mktemp("opt")
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 1024}
    model = OPTForCausalLM(
        OPTConfig(
            **sizes, word_embed_proj_dim=128, vocab_size=256, max_position_embeddings=64, activation_function="relu"
        )
    )
    for name, value in model.named_parameters():
        if name.endswith("fc1.bias"):
            torch.nn.init.constant_(value, -0.3)
    model.save_pretrained(folder)
    return folder


def test_a_plan_reads_rows(cli: Cli, relu: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    said = cli("plan", f"hf:{relu}", "--tier", "dram=18MiB", "--sparse-ffn", "64", "-o", plan, "--json")
    assert said.status == 0, said.err
    found = read_plan(plan)
    assert found.module is not None
    assert found.module.sparse is not None
    assert len(found.module.sparse.sites) == 3
    assert not any("fc2" in r.storage for r in found.plan.residencies)
    ran = cli("run", plan, "--repeat", 2, "--verify", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]


def test_all_rows_are_taken_when_the_process_is_measured(
    cli: Cli, relu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On weights of zeros no neuron is active, and what rows take would not be seen."""
    from tensorstow.rehearse import fixed_nbytes
    from tensorstow.runtime.module.sparse import SparseForwards

    plan, found = tmp_path / "plan.json", list[tuple[int, int]]()
    said = cli("plan", f"hf:{relu}", "--tier", "dram=18MiB", "--sparse-ffn", "64", "-o", plan, "--json")
    assert said.status == 0, said.err
    touch = SparseForwards.touch

    def touched(self: SparseForwards) -> None:
        touch(self)
        found.extend((layer.traffic.whole, layer.down.neurons) for layer in self.layers)

    monkeypatch.setattr(SparseForwards, "touch", touched)
    assert fixed_nbytes(plan, rehearse=True) > 0
    assert found == [(1, 1024)] * 3


def test_from_python(relu: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM.from_pretrained(relu)
    model = ts.apply(ts.plan(f"hf:{relu}", sparse_ffn=128))
    resident = {r.storage for r in model.tensorstow.plan.residencies}
    assert resident
    assert not any("fc2" in name for name in resident)
    prompt = torch.tensor([[5, 9, 200, 31]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), whole.generate(prompt, **options))
    model.tensorstow.close()


def test_refused_without_such_layers(cli: Cli, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, vocab_size=100)).save_pretrained(tmp_path)
    said = cli("plan", f"hf:{tmp_path}", "--sparse-ffn", "64", "--json")
    assert said.status == 2
    assert "silu" in said.json["error"]
    with pytest.raises(InputError, match="PyTorch module"):
        ts.plan("model.onnx", sparse_ffn=3)
