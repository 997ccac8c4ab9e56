"""A directory is trained by a plan that places parameters, and its weights are never in memory as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tensorstow as ts
from tensorstow.runtime.memory import current_rss_nbytes, peak_rss_nbytes, reset_peak
from tensorstow.training import open_module

pytestmark = pytest.mark.usefixtures("one_thread")


def saved(folder: Path, *, layers: int = 3, width: int = 512) -> int:
    """A GPT-2 with random weights in `folder`; the bytes of these."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = GPT2Config(
        n_embd=width, n_layer=layers, n_head=4, vocab_size=128, n_positions=32, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    module = GPT2LMHeadModel(sizes)
    module.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in module.parameters())


def batch() -> dict[str, torch.Tensor]:
    ids = torch.arange(32).reshape(2, 16)
    return {"input_ids": ids, "labels": ids}


def plain(folder: Path) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).train()


def grown(before: int) -> int:
    return peak_rss_nbytes() - before


def test_the_weights_are_never_in_memory_as_a_whole(tmp_path: Path, no_measuring: int) -> None:
    assert no_measuring
    whole = saved(tmp_path)
    if not reset_peak():
        pytest.skip("this system does not let a process reset its peak")
    before = current_rss_nbytes()
    module = open_module(tmp_path)
    assert grown(before) < whole // 4
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    budget = ts.Machine.detect(dram=str(whole * 2 // 5))
    plan = ts.plan(module, batch(), machine=budget, mode="training", optimizer=optimizer, time_limit_s=2.0)
    assert plan.training is not None
    placed = sum(plan.graph.tensor[p.tensor].nbytes for p in plan.training.parameters)
    assert placed > 0.9 * whole
    reset_peak()
    before = current_rss_nbytes()
    step = ts.apply(plan, module)
    assert grown(before) < whole * 2 // 3  # the arena and the largest parameter
    losses = [step(**batch()) for _ in range(2)]
    twin = plain(tmp_path)
    theirs = torch.optim.SGD(twin.parameters(), lr=1e-2)
    for loss in losses:
        theirs.zero_grad()
        wanted = twin(**batch()).loss
        wanted.backward()
        theirs.step()
        assert torch.equal(loss, wanted.detach())
    for (name, ours), other in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, other), name
    step.close()
