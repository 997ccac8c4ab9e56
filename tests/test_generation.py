"""Text generation planned before anything runs, on directories that transformers has written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tensorstow as ts
from tensorstow import modules
from tensorstow.generation import GeneratingModel, generating
from tensorstow.ir.check import check
from tensorstow.ir.errors import InputError
from tensorstow.ir.machine import Machine
from tensorstow.planner.pytorch.generation import Generation
from tensorstow.workflow import Planned, Request, make_plan

from .conftest import Cli, host_machine
from .planner.hf_models import TEXT

transformers: Any = pytest.importorskip("transformers")

PROMPT, NEW = 6, 5
LINK = 1e7
COMMON: dict[str, Any] = {"vocab_size": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TWO_SIDED: dict[str, Any] = {
    f"{side}_{what}": n
    for side in ("encoder", "decoder")
    for what, n in (("layers", 1), ("ffn_dim", 256), ("attention_heads", 4))
}


def by_formulas(lowered: Any, *_: Any) -> Any:
    """In place of measuring operators."""
    return lowered


def build(name: str, layers: int) -> Any:
    """A model of which not everything runs for a token; a T5 of so many layers on either side."""
    torch.manual_seed(0)
    t = transformers
    if name == "t5":
        sizes = {"d_model": 96, "d_kv": 24, "d_ff": 256, "num_layers": layers, "num_heads": 4}
        return t.T5ForConditionalGeneration(t.T5Config(**COMMON, **sizes, decoder_start_token_id=0))
    if name == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(**COMMON, hidden_size=96, num_hidden_layers=1, state_size=8))
    if name == "bart":
        config = t.BartConfig(**COMMON, **TWO_SIDED, d_model=96, decoder_start_token_id=2, max_position_embeddings=64)
        return t.BartForConditionalGeneration(config)
    assert name == "whisper"
    sizes = {"num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 40, "decoder_start_token_id": 3}
    none: dict[str, Any] = {"suppress_tokens": None, "begin_suppress_tokens": None}
    return t.WhisperForConditionalGeneration(t.WhisperConfig(**COMMON, **TWO_SIDED, **sizes, **none, d_model=96))


def saved(name: str, folder: Path, layers: int = 1) -> Path:
    build(name, layers).eval().save_pretrained(folder / name)
    return folder / name


def slow_disk() -> Machine:
    """This box with a link over which every weight is waited for."""
    box = host_machine()
    return replace(box, links=tuple(replace(k, bytes_per_s=LINK) for k in box.links))


def planned(model: GeneratingModel, share: float, machine: Machine) -> tuple[Planned, Generation]:
    """A plan for the least memory that works and a `share` of the weights."""
    least = model.smallest_budget(machine)
    nbytes = sum(p.nbytes for p in model.last.module.parameters())
    machine = machine.with_capacity({"dram": least + int(share * nbytes)})
    found = make_plan(Request(model, machine, time_limit_s=5))
    return found, model.predict(found.file)


def heard(name: str) -> dict[str, Any]:
    """What `generate` is given."""
    generator = torch.Generator().manual_seed(1)
    if name == "whisper":
        return {"input_features": torch.randn(1, 16, 60, generator=generator)}
    return {"input_ids": torch.randint(3, 256, (1, PROMPT), generator=generator)}


NAMES = ["t5", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mamba", "bart", "whisper"))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("no_measuring", "one_thread")
def test_one_plan_reads_the_prompt_and_makes_the_tokens(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "measured_here", by_formulas)
    path = saved(name, tmp_path)
    model = generating(f"hf:{path}", {"length": 2 if name == "whisper" else PROMPT}, NEW)
    plan, found = planned(model, 0.25, host_machine())
    file = plan.file
    assert not check(file.plan, file.graph, file.machine)
    assert file.plan.certificate.moved_nbytes["ssd->dram"] > 0
    for one in (model.prefill, model.first, model.last):  # either pass has the memory that it needs
        pass_ = one.parts(file.machine).graph
        assert max(op.workspace_nbytes for op in pass_.operators) <= file.plan.workspace_nbytes["dram"]
        assert {s for op in pass_.operators for s in pass_.reads(op) if "[" not in s} <= set(file.graph.storage)
    assert 0 < found.token_s < found.prefill_s
    assert found.decode_bound_s is not None
    assert found.decode_bound_s <= found.token_s
    assert found.tokens_per_s > 0

    applied: Any = ts.apply(file, threads=1)
    reference = type(applied).from_pretrained(path).eval()
    asked: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    try:
        for _ in range(2):
            assert torch.equal(applied.generate(**heard(name), **asked), reference.generate(**heard(name), **asked))
    finally:
        applied.tensorstow.close()


@pytest.mark.slow
@pytest.mark.usefixtures("no_measuring", "one_thread")
def test_an_encoder_is_read_for_the_prompt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for what a token needs, no token waits for the encoder, though all weights do not fit."""
    monkeypatch.setattr(modules, "measured_here", by_formulas)
    model = generating(f"hf:{saved('t5', tmp_path, 2)}", {"length": PROMPT}, 40)
    assert model.prefill.kwargs["input_ids"].shape == (1, PROMPT)
    assert model.prefill.kwargs["decoder_input_ids"].shape == (1, 1)
    last = model.last.kwargs
    assert last["encoder_outputs"].last_hidden_state.shape[:2] == (1, PROMPT)
    assert last["past_key_values"].get_seq_length() == 39, "39 tokens are in the cache when the 40th is made"
    plan, found = planned(model, 0.75, slow_disk())
    assert plan.file.source is not None
    assert plan.file.source.dims["encoded"] == PROMPT, "the prompt's pass has all the parts: it is what is run"
    moved_s = plan.file.plan.certificate.moved_nbytes["ssd->dram"] / LINK
    assert moved_s > 0
    assert found.decode_bound_s is not None
    assert found.token_s < 1.05 * found.decode_bound_s
    assert found.stale_s == pytest.approx(moved_s, rel=0.5)
    assert found.seconds < found.prefill_s + 39 * found.token_s + 2.1 * found.stale_s


@pytest.mark.usefixtures("no_measuring", "one_thread")
def test_the_command_answers_tokens_a_second(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "measured_here", by_formulas)
    plan = tmp_path / "plan.json"
    path = saved("t5", tmp_path)
    dims = ("--dim", f"length={PROMPT}", "--new", NEW, "--tier", "dram=64MiB")
    said = cli("plan", f"hf:{path}", *dims, "--time-limit", 5, "-o", plan, "--json")
    assert said.status == 0, said.err
    told = said.json["generation"]
    assert (told["prompt"], told["new"]) == (PROMPT, NEW)
    assert 0 < told["tokens_per_s"] <= told["decode_bound_tokens_per_s"]
    ran = cli("run", plan, "--repeat", 1, "--verify", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]


def test_a_prompt_has_the_logits_of_its_last_position_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `generate` computes it; a plain pass has those of all positions."""
    monkeypatch.setattr(modules, "measured_here", by_formulas)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**TEXT, "vocab_size": 4096})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = generating(f"hf:{tmp_path}", {"length": 48}, NEW)
    plain = modules.module_from_entry(f"hf:{tmp_path}", {"length": 48})
    shapes = [one.operators().graph for one in (model.prefill, plain)]
    assert [g.tensor[g.outputs[0]].shape for g in shapes] == [(1, 1, 4096), (1, 48, 4096)]
    machine = host_machine()
    needed = [max(o.workspace_nbytes for o in one.parts(machine).graph.operators) for one in (model.prefill, plain)]
    assert needed[1] - needed[0] >= 40 * 4096 * 4
    again = modules.module_from_entry(f"hf:{tmp_path}", model.prefill.dims)
    assert again.kwargs.keys() == model.prefill.kwargs.keys()
    assert again.operators().graph == replace(shapes[0], name=again.name)


def test_what_new_cannot_be_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="leave --dim logits away"):
        generating(f"hf:{tmp_path}", {"logits": 1}, 1)
    with pytest.raises(InputError, match=r"64 positions, in the table 'transformer\.wpe', and is to read 65 tokens"):
        generating(f"hf:{tmp_path}", {"length": 60}, 6)
    model = generating(f"hf:{tmp_path}", {"length": 60}, 5)
    assert model.last.dims["context"] == 63
    with pytest.raises(InputError, match="mode 'training' is not available for text generation"):
        model.lower(host_machine(), "training")
    assert generating(f"hf:{tmp_path}", {"length": 64}, 1).first.dims["context"] == 63


@pytest.mark.usefixtures("no_measuring", "one_thread")
def test_times_of_a_profile_are_those_of_tokens_and_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of the planned pass takes a millisecond more in real passes: so it does in each of the passes."""
    monkeypatch.setattr(modules, "measured_here", by_formulas)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)).save_pretrained(tmp_path)
    model = generating(f"hf:{tmp_path}", {"length": PROMPT}, NEW)
    plan = make_plan(Request(model, host_machine(), time_limit_s=5)).file
    before = model.predict(plan)
    more_ns, graph = 1_000_000, plan.graph
    slower = tuple(replace(op, measured_ns=(op.measured_ns or 0) + more_ns) for op in graph.operators)
    steps = tuple(replace(s, duration_ns=s.duration_ns + more_ns) for s in plan.plan.steps)
    profiled = replace(plan, graph=replace(graph, operators=slower), plan=replace(plan.plan, steps=steps))
    after = model.predict(profiled)
    more_s = len(graph.operators) * 1e-3
    assert after.token_s - before.token_s == pytest.approx(more_s, rel=0.01)
    assert after.prefill_s - before.prefill_s == pytest.approx(more_s, rel=0.01)
    assert before.decode_bound_s is not None
    assert after.decode_bound_s is not None
    assert after.decode_bound_s - before.decode_bound_s == pytest.approx(more_s, rel=0.01)
