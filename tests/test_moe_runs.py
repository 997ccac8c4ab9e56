"""Mixture-of-experts models whose experts do not fit: planned, run and compared without being asked for."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tensorstow import moe_bounds, moe_runs
from tensorstow.ir.errors import InputError
from tensorstow.ir.files import read_plan
from tensorstow.moe_recording import narrowed, record_routing
from tensorstow.planner.experts.trace import Trace, write_trace
from tensorstow.runtime.module.experts_record import ListCall
from tests.conftest import Cli

pytestmark = pytest.mark.usefixtures("no_measuring")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 16 experts of 384 KiB, of which a token chooses 2."""
    folder = tmp_path_factory.mktemp("olmoe")
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_experts": 16, "num_experts_per_tok": 2}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**sizes, **heads, **tokens))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(folder)
    return folder


def test_experts_that_do_not_fit_are_cached(cli: Cli, olmoe: Path, tmp_path: Path) -> None:
    plan, trace = tmp_path / "plan.json", tmp_path / "trace.npz"
    said = cli("plan", f"hf:{olmoe}", "--tier", "dram=6MiB", "-o", plan, "--json")
    assert said.status == 0, said.err
    told = said.json["experts"]
    assert told["experts"] == [16, 16]
    assert told["top_k"] == 2
    assert 2 <= told["slots"] < 16
    assert told["hit_rate"] == pytest.approx(told["slots"] / 16, abs=0.05)
    assert not told["traced"]
    assert said.json["simulated_s"] - told["all_hit_s"] == pytest.approx(told["wait_s_expected"])
    assert 0 < told["wait_s_expected"] <= told["read_s_expected"] * 1.5
    assert said.json["bound_s"] <= told["all_hit_s"] * (1 + 1e-6)
    found = read_plan(plan)
    assert not any("experts" in r.storage for r in found.plan.residencies)
    shown = cli("show", plan)
    assert "32 in 2 layers" in shown.out
    assert "cached as they are chosen" in shown.out
    assert "experts' reads" in shown.out
    ran = cli("run", plan, "--repeat", 3, "--verify", "--record-routing", trace, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["verified"]["bit_identical"]
    experts, first = ran.json["experts"], ran.json["experts"]["first_pass"]
    assert experts["passes"] == 2
    assert experts["hits"] + experts["misses"] >= 2 * 2 * 2
    assert first["misses"] >= 2 * 2  # its caches were empty
    assert experts["predicted_hit_rate"] == told["hit_rate"]
    misses, ahead = (experts[what] + first[what] for what in ("misses", "ahead"))
    size, read = told["expert_nbytes"], experts["read_nbytes"] + first["read_nbytes"]
    assert misses * size <= read <= (misses + ahead) * size  # what was read ahead last may be under way
    analysed = cli("experts", trace, "--experts", 16, "--cache", told["slots"], "--policies", "lru,decayed", "--json")
    assert analysed.status == 0, analysed.err
    assert (analysed.json["layers"], analysed.json["top_k"]) == (2, 2)
    again = cli("plan", f"hf:{olmoe}", "--tier", "dram=6MiB", "--routing", trace, "-o", plan, "--json")
    assert again.status == 0, again.err
    rows = {row["policy"]: row["hit_rate"] for row in analysed.json["rows"]}
    assert 0 < rows["decayed"] < 1
    assert again.json["experts"]["hit_rate"] == 1.0  # three passes with the same inputs, of which one warms up
    assert again.json["experts"]["wait_s_expected"] == 0
    assert again.json["experts"]["traced"]
    assert "trace.npz" in again.json["experts"]["rests_on"]
    assert_first_pass_apart(cli, plan)


def assert_first_pass_apart(cli: Cli, plan: Path) -> None:
    """The passes that were recorded run again: all that differs is what the first of them finds."""
    thrice, once = (" ".join(cli("run", plan, "--repeat", n).out.split()) for n in (3, 1))
    assert "hit rate 1.00, predicted 1.00" in thrice
    assert "not counted is the first pass" in thrice
    assert "hit rate 0.00, predicted 1.00" in once
    assert "caches were empty" in once
    for said in (thrice, once):
        assert "the routing was not" not in said
        assert "experts' reads" in said


def test_waits_of_a_profile_are_not_in_the_bound(cli: Cli, olmoe: Path) -> None:
    """One slot for all: every expert of every pass of the profile is waited for."""
    refused = cli("plan", f"hf:{olmoe}", "--tier", "dram=600KiB", "--json")
    said = cli("plan", f"hf:{olmoe}", "--tier", f"dram={refused.json['smallest_nbytes']}", "--profile", "--json")
    assert said.status == 0, said.err
    told = said.json["experts"]
    assert told["hit_rate"] == 0.0
    assert "profile" in told["rests_on"]
    assert told["read_nbytes_expected"] == 4 * told["expert_nbytes"]
    assert told["wait_s_expected"] > 0
    assert said.json["bound_s"] <= told["all_hit_s"] * (1 + 1e-6)


def test_a_comparison_has_the_bound_of_a_plan(cli: Cli, olmoe: Path) -> None:
    said = cli("compare", f"hf:{olmoe}", "--tier", "dram=6MiB", "--strategies", "stow", "--json")
    assert said.status == 0, said.err
    (row,) = said.json["rows"]
    for kind in (said.json["bound_kind"], row["bound_kind"]):
        assert kind.endswith("experts' reads behind it, or none")
    assert row["gap"] > 0


@pytest.mark.slow
def test_the_bound_of_new_tokens_is_without_the_mean_wait(
    cli: Cli, olmoe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is of the mean durations of the first and the last pass, which do not wait alike."""
    taken: list[tuple[int, ...]] = []
    plain_like, plain_bound = moe_runs.cache_like, moe_bounds.reads_hidden

    def like(*given: Any) -> Any:
        found = plain_like(*given)
        assert found.program.experts is not None
        caching = replace(found.program.experts, wait_ns=(12_345, 0))
        return replace(found, program=replace(found.program, experts=caching))

    def hidden(bound_s: float, kind: str, caching: Any, at: Any) -> tuple[float, str]:
        taken.append(caching.wait_ns)
        return plain_bound(bound_s, kind, caching, at)

    monkeypatch.setattr(moe_runs, "cache_like", like)
    monkeypatch.setattr(moe_bounds, "reads_hidden", hidden)
    said = cli("plan", f"hf:{olmoe}", "--tier", "dram=6MiB", "--dim", "length=6", "--new", 8, "--json")
    assert said.status == 0, said.err
    of_plan, of_tokens = taken
    assert sum(of_tokens) == ceil((12_345 + sum(of_plan)) / 2)


def test_what_fits_and_what_reads_everything_anyway_is_planned_as_a_whole(
    cli: Cli, olmoe: Path, tmp_path: Path
) -> None:
    plan, trace = tmp_path / "plan.json", tmp_path / "trace.npz"
    write_trace(Trace(np.zeros((3, 2, 1), np.int32), 16, np.array([0, 3], np.int64), ("",)), trace)
    for options in (["--tier", "dram=64MiB"], ["--tier", "dram=13MiB", "--dim", "length=64"]):
        said = cli("plan", f"hf:{olmoe}", *options, "--routing", trace, "-o", plan, "--json")
        assert "--routing trace.npz does not count" in said.err
        assert said.status == 0, said.err
        assert "experts" not in said.json


def test_less_than_one_expert_is_refused(cli: Cli, olmoe: Path, tmp_path: Path) -> None:
    said = cli("plan", f"hf:{olmoe}", "--tier", "dram=600KiB", "--json")
    assert said.status == 3, said.err
    smallest = said.json["smallest_nbytes"]
    plan = tmp_path / "plan.json"
    said = cli("plan", f"hf:{olmoe}", "--tier", f"dram={smallest}", "-o", plan, "--json")
    assert said.status == 0, said.err
    assert (said.json["experts"]["slots"], said.json["experts"]["shared"]) == (1, True)
    ran = cli("run", plan, "--repeat", 1, "--verify", "--json")
    assert ran.json["verified"]["bit_identical"]


def test_generated_tokens_are_those_of_the_eager_loop(cli: Cli, olmoe: Path, tmp_path: Path) -> None:
    import tensorstow as ts

    plan = tmp_path / "plan.json"
    said = cli("plan", f"hf:{olmoe}", "--tier", "dram=6MiB", "--dim", "length=6", "--new", 8, "-o", plan, "--json")
    assert said.status == 0, said.err
    assert said.json["experts"]["slots"] >= 2
    model = ts.apply(read_plan(plan))
    whole = transformers.AutoModelForCausalLM.from_pretrained(olmoe, experts_implementation="eager")
    prompt = torch.tensor([[5, 9, 100, 31, 7, 8]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(prompt, **options), whole.generate(prompt, **options))
    assert model.tensorstow.experts.stats.misses
    model.tensorstow.close()


def test_a_module_with_a_list_of_experts(no_measuring: int) -> None:
    import tensorstow as ts

    from .planner.test_pytorch_experts import Net

    net: Any = Net().eval()
    reference: Any = Net().eval()
    x = torch.randn(1, 64)
    nbytes = sum(p.nbytes for p in net.parameters())
    model: Any = ts.apply(ts.plan(net, (x,), machine=ts.Machine.load("host", dram=str(nbytes // 2))), net)
    experts = model.tensorstow.experts
    with torch.no_grad():
        for rows in (1, 5, 1, 40, 1):
            x = torch.randn(rows, 64)
            assert torch.equal(model(x), reference(x))
        assert torch.equal(model.layers[0].experts[3](x), reference.layers[0].experts[3](x))
    assert experts.reading.slots < 8
    stats, size = experts.stats, experts.reading.layers[0].nbytes  # what was read ahead last may be under way
    assert stats.misses * size <= stats.read_nbytes <= (stats.misses + stats.ahead) * size
    assert_recorded(model, reference)
    model.tensorstow.close()


def assert_recorded(model: Any, reference: Any) -> None:
    """What is recorded of a list is what its router chose; rows that are no token's are refused."""
    experts = model.tensorstow.experts
    recorder = record_routing(experts)
    chosen: list[torch.Tensor] = []

    def note(_: Any, __: Any, out: torch.Tensor) -> None:
        chosen.append(torch.topk(out, 2).indices)

    for layer in reference.layers:
        layer.router.register_forward_hook(note)
    x = torch.randn(6, 64)
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))
    experts.record(None)
    trace = narrowed(recorder.trace())
    assert trace.ids.shape == (6, 2, 2)
    assert all((np.sort(trace.ids[:, n], 1) == np.sort(chosen[n].numpy(), 1)).all() for n in range(2))
    call = ListCall("layers.0.experts", (x,), {})
    with pytest.raises(InputError, match=r"expert 3 of the list 'layers.0.experts' is given rows"):
        call.took(3, (x + 1,), {})
