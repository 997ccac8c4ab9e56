"""Tests of runtime/module/row_ranges.py: a product in ranges has the bits of the whole one, or is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import nn

import tensorstow as ts
from tensorstow.ir.errors import InfeasibleError
from tensorstow.runtime.module import row_ranges

from ..planner.test_pytorch_row_ranges import ROWS, Headed

pytestmark = pytest.mark.usefixtures("one_thread")


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, ROWS, shape, generator=torch.Generator().manual_seed(sum(shape)))


def smallest(module: nn.Module, example: torch.Tensor) -> int:
    with pytest.raises(InfeasibleError) as refused:
        ts.plan(module, (example,), machine=ts.Machine.detect(dram="64KiB"))
    assert refused.value.smallest_nbytes is not None
    return refused.value.smallest_nbytes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("agreeing", [True, False])
def test_bits_are_those_of_the_whole(tied: bool, agreeing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module: Any = Headed(tied=tied).eval()
    inputs = [ids(2, 3), ids(1, 1), ids(1, 7)]
    with torch.no_grad():
        expected = [module(i) for i in inputs]
        values = module.head.weight.detach().clone()
    if not agreeing:
        monkeypatch.setattr(row_ranges, "agree", lambda *_: False)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    budget = smallest(module, inputs[0])
    assert budget < values.nbytes
    plan = ts.plan(module, (inputs[0],), machine=ts.Machine.detect(dram=str(budget)))
    assert plan.module is not None
    assert len(plan.module.rows) == 1
    ts.apply(plan, module)
    with torch.no_grad():
        for _ in range(2):
            for given, wanted in zip(inputs, expected, strict=True):
                assert torch.equal(module(given), wanted)
        module.head.weight.requires_grad_(False)
        assert torch.equal(module(inputs[0]), expected[0])
    assert torch.equal(module.head.weight.clone(), values)
    assert torch.equal(module.state_dict()["head.weight"].clone(), values)
    module.tensorstow.close()


@pytest.mark.usefixtures("no_measuring")
def test_a_directory_is_run_in_ranges_too(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=ROWS)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    whole: Any = LlamaForCausalLM.from_pretrained(tmp_path)
    plan = ts.plan(f"hf:{tmp_path}", machine=ts.Machine.detect(dram="2MiB"), dims={"length": 4})
    assert plan.module is not None
    assert [r.module for r in plan.module.rows] == ["lm_head"]
    model = ts.apply(plan)
    prompt = torch.tensor([[5, 9, 200, 31]])
    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(prompt, **asked), whole.generate(prompt, **asked))
    model.tensorstow.close()


def test_disagreement_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that sums otherwise when it is given few rows."""
    x, weight = torch.randn(2, 5, 64), nn.Parameter(torch.zeros(1000, 64))
    spans = [(0, 320), (320, 640), (640, 1000)]
    with torch.no_grad():
        assert row_ranges.agree(x, weight, True, spans)

    linear = F.linear

    def otherwise(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        made = linear(x, w, bias)
        if len(w) == 360:  # the last range's last row alone
            made[..., -1] = linear(x[..., :32], w[-1:, :32]).add(linear(x[..., 32:], w[-1:, 32:]))[..., 0]
        return made

    monkeypatch.setattr(row_ranges.F, "linear", otherwise)
    with torch.no_grad():
        assert not row_ranges.agree(x, weight, False, spans)
